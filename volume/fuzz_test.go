package volume

import (
	"bytes"
	"encoding/binary"
	"reflect"
	"testing"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/conformance/heap"
	"github.com/remora-storage/remora/internal/wire"
)

// Bytes of the store and of the journal's disk may be anything. The decoders' checksums keep a fuzzer from what is behind
// them, so these targets make them right first.

func FuzzHead(f *testing.F) {
	p, err := testHead().encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(p, false)
	f.Add([]byte(`{"block":4096,"size":1048576,"class":"remote","max_age_seconds":5,"tail":"AAAA"}`), true)
	f.Fuzz(func(t *testing.T, p []byte, body bool) {
		if body {
			head := []byte("remora-head 2 00000000\n")
			const digits = "0123456789abcdef"
			sum := wire.Sum(p)
			for i := range 8 {
				head[14+i] = digits[sum>>(28-4*i)&15]
			}
			p = append(head, p...)
		}
		var h *Head
		var err error
		heap.RecordMost(len(p)).Allocates(t, func() int64 { h, err = decodeHead(p); return 0 })
		if err != nil {
			return
		}
		if _, err := h.encode(); err != nil && len(p) < maxHead/2 {
			t.Errorf("a head that was read cannot be written: %v", err)
		}
	})
}

func FuzzTable(f *testing.F) {
	id := ID{1}
	w := newSegmentWriter(logPosition{id: id, seq: 1, write: 9}, 1, make([]byte, 0, segmentCapacity(frameSize(2), 2)))
	w.hole(extent{lba: 3, blocks: 4, seq: 9})
	w.frame(extent{lba: 10, blocks: 2, seq: 8})
	p, ref, _ := w.finish()
	f.Add(p[ref.Table:], ref.Table)
	f.Fuzz(func(t *testing.T, p []byte, table uint32) {
		if len(p) >= tableHeader {
			body := p[tableHeader:min(len(p), tableHeader+int(binary.LittleEndian.Uint32(p[8:])))]
			binary.LittleEndian.PutUint32(p[20:], tableSum(p, body, id, SegmentRef{Seq: 1}))
		}
		const size = 1 << 40
		var all []extent
		var err error
		heap.RecordMost(len(p)).Allocates(t, func() int64 {
			all, err = decodeTable(p, id, SegmentRef{Seq: 1, Table: table}, size)
			return 0
		})
		if err != nil {
			return
		}
		last := uint64(0)
		for _, e := range all {
			if e.lba < last || e.blocks == 0 || e.end() > size/Block || e.seq > binary.LittleEndian.Uint64(p[12:]) {
				t.Fatalf("%+v behind block %d", e, last)
			}
			if !e.hole && e.place.off+frameSize(e.place.whole) > int64(table) {
				t.Fatalf("%+v is in the table", e)
			}
			last = e.end()
		}
	})
}

func FuzzNode(f *testing.F) {
	for _, n := range []*mapNode{
		{kind: extentNode, extents: []extent{{lba: 1, blocks: 2, seq: 3, place: place{seg: 4, off: 96, whole: 2}},
			{lba: 3, blocks: 1, seq: 3, place: place{seg: 4, off: 500, skip: 1, whole: 2}}}},
		{kind: segmentNode, segments: []segmentUse{{SegmentRef{Seq: 1, Epoch: 2, Size: 5, Table: 4}, 3}}},
		{kind: extentNode, level: 1, children: []child{{0, NodeRef{Gen: 1, Len: 20}}, {9, NodeRef{Gen: 2, Len: 30}}}},
	} {
		f.Add(n.encode())
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		var n *mapNode
		var err error
		heap.RecordMost(len(p)).Allocates(t, func() int64 { n, err = decodeNode(p); return 0 })
		if err != nil {
			return
		}
		again, err := decodeNode(n.encode())
		if err != nil || len(again.extents) != len(n.extents) || len(again.children) != len(n.children) ||
			len(again.segments) != len(n.segments) {
			t.Fatalf("it does not survive being written again: %v", err)
		}
		last := uint64(0)
		for _, e := range n.extents {
			if e.lba < last || e.blocks == 0 || e.place.skip+e.blocks > e.place.whole {
				t.Fatalf("%+v behind block %d", e, last)
			}
			last = e.end()
		}
	})
}

// FuzzRoot: what a decoder takes can be written again, and is then read as the same. No decoder takes much, whatever it makes of the bytes.
func FuzzRoot(f *testing.F) {
	root := &mapRoot{Write: 1, Packs: []packUse{{Gen: 1, Size: 100, Live: 50}}}
	p, err := root.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(p)
	f.Add(appendPackFooter(nil, NodeRef{Off: 1, Len: 2, Sum: 3}))
	w := newSegmentWriter(logPosition{id: ID{1}, epoch: 2, seq: 3, write: 4}, 5, nil)
	w.hole(extent{lba: 3, blocks: 4, seq: 4})
	segment, _, _ := w.finish()
	f.Add(segment)
	f.Add(segment[:segmentHeader])
	lease, err := seal("node", memberVersion, memberState{Node: ID{6}, Counter: 7, State: stateLive})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(lease)
	f.Fuzz(func(t *testing.T, p []byte) {
		heap.RecordMost(len(p)).Allocates(t, func() int64 {
			var s memberState
			_, _ = decodeRoot(p) // below is what comes of them
			_, _ = decodePackFooter(p, packID{})
			_, _, _ = decodeSegmentHeader(p)
			_, _, _ = decodeSegmentFooter(p)
			_ = unseal("node", memberVersion, p, &s)
			return 0
		})
		if r, err := decodeRoot(p); err == nil {
			q, err := r.encode()
			if err != nil {
				t.Fatalf("a root cannot be written again: %v", err)
			}
			if again, err := decodeRoot(q); err != nil || !reflect.DeepEqual(again, r) {
				t.Errorf("root %+v came back as %+v (%v)", r, again, err)
			}
		}
		if ref, err := decodePackFooter(p, packID{}); err == nil && !bytes.Equal(appendPackFooter(nil, ref), p[len(p)-packFooter:]) {
			t.Errorf("end %x of a pack is written as another", p[len(p)-packFooter:])
		}
		if at, random, err := decodeSegmentHeader(p); err == nil {
			again, r, err := decodeSegmentHeader(newSegmentWriter(at, random, nil).p)
			if err != nil || again != at || r != random {
				t.Errorf("header %+v, %d came back as %+v, %d (%v)", at, random, again, r, err)
			}
		}
		if table, size, err := decodeSegmentFooter(p); err == nil && (table > size || len(p) < segmentFooter) {
			t.Errorf("a table at %d of a segment of %d bytes", table, size)
		}
		var s memberState
		if unseal("node", memberVersion, p, &s) == nil {
			q, err := seal("node", memberVersion, s)
			if err != nil {
				t.Fatalf("a lease cannot be written again: %v", err)
			}
			var again memberState
			if err := unseal("node", memberVersion, q, &again); err != nil || !reflect.DeepEqual(again, s) {
				t.Errorf("lease %+v came back as %+v (%v)", s, again, err)
			}
		}
	})
}

func FuzzJournal(f *testing.F) {
	vid, id := ID{1}, ID{2}
	f.Add([]byte{1, 0, 0, 0}, uint16(0))
	f.Fuzz(func(t *testing.T, p []byte, at uint16) {
		disk := &simDisk{stable: pages{}, now: pages{}}
		if err := formatJournal(disk, vid, id); err != nil {
			t.Fatal(err)
		}
		super, err := openSuperblock(disk, vid, id)
		if err != nil {
			t.Fatal(err)
		}
		// A record whose header is right, but for what the fuzzer writes over it, with a checksum that is right.
		b := &batch{at: super.start, first: 1,
			entries: []entry{{lba: 1, blocks: 1, data: make([]byte, Block), sum: wire.Sum(make([]byte, Block))}}, size: Block}
		j := newJournal(disk, super, super.start, super.start, 0, 1, 0)
		b.record.buf = blockdev.AlignedBuffer(2 * Block)
		j.encodeLocked(b)
		copy(b.record.buf[min(int(at), Block):], p)
		binary.LittleEndian.PutUint32(b.record.buf[4:], wire.Sum(b.record.buf[8:Block]))
		if _, err := disk.WriteAt(b.record.buf, journalRing); err != nil {
			t.Fatal(err)
		}
		most := heap.RecordMost(len(b.record.buf))
		most.Memory += Block + maxRecord // a record may be as long
		most.Allocates(t, func() int64 {
			_, _ = replay(disk, vid, id, nil, true, func(_ uint64, entries []entry, _ cursor) {
				for _, e := range entries {
					if e.blocks == 0 || !e.hole && len(e.data) != int(e.blocks)*Block {
						t.Fatalf("entry %+v", e)
					}
				}
			})
			return 0
		})
	})
}

func FuzzDiary(f *testing.F) {
	f.Add(DiaryEntry{Word{NewID(), NewID()}, Word{NewID(), NewID()}}.encode())
	f.Add(DiaryEntry{}.encode())
	f.Add([]byte(nil))
	f.Fuzz(func(t *testing.T, p []byte) {
		var e DiaryEntry
		var ok bool
		heap.RecordMost(len(p)).Allocates(t, func() int64 {
			e, ok = decodeDiary(p)
			return 0
		})
		if again, ok2 := decodeDiary(e.encode()); !ok2 || again != e {
			t.Errorf("%+v is read as %+v", e, again)
		}
		if ok && len(p) != len(e.encode()) {
			t.Errorf("%d bytes are read as an entry", len(p))
		}
	})
}
