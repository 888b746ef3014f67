package volume

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"
)

func testHead() *Head {
	return &Head{
		ID: NewID(), Name: "data", Gen: 7, Nonce: NewID(), Recent: []ID{NewID(), NewID()},
		Size: 1 << 30, Block: Block, Class: Local, MaxAge: 5, FS: "ext4",
		Epoch: 3, Owner: &Owner{NewID(), NewID()}, Journal: &JournalRef{NewID(), NewID(), 3, 20, 9}, Segment: 9, Write: 1234,
		Root: &NodeRef{Gen: 5, Random: 6, Off: 7, Len: 800, Sum: 9}, Created: time.Unix(1e9, 0).UTC(),
		Released: &Released{Epoch: 2, Write: 1000, Nonce: NewID(), Journal: JournalRef{NewID(), NewID(), 2, 10, 8}},
		Tail:     segmentSet{{Seq: 8, Epoch: 2, Random: 1, Size: 5000, Table: 4000}, {Seq: 9, Epoch: 3, Random: 2, Size: 6000, Table: 5000}},
	}
}

func TestHead(t *testing.T) {
	t.Parallel()
	h := testHead()
	p, err := h.encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeHead(p)
	if err != nil || !reflect.DeepEqual(got, h) {
		t.Errorf("got %+v, %v, want %+v", got, err, h)
	}
	for i := range p {
		q := bytes.Clone(p)
		q[i] ^= 1
		if _, err := decodeHead(q); err == nil {
			t.Errorf("byte %d of %q may be changed", i, p)
		}
	}
	h.Released = nil // as in heads of before releases were noted
	earlier, err := h.encode()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := decodeHead(earlier); err != nil || !reflect.DeepEqual(got, h) {
		t.Errorf("without a release: got %+v, %v, want %+v", got, err, h)
	}
	newer := bytes.Replace(p, []byte("remora-head 2 "), []byte("remora-head 3 "), 1)
	if _, err := decodeHead(newer); !errors.Is(err, ErrVersion) {
		t.Errorf("a newer version: %v", err)
	}
	h.Snapshots = []string{"s"}
	if _, err := h.encode(); !errors.Is(err, ErrVersion) {
		t.Errorf("what this version does not know can be written: %v", err)
	}
	if p, err = seal("head", headVersion, h); err != nil {
		t.Fatal(err)
	}
	if _, err := decodeHead(p); !errors.Is(err, ErrVersion) {
		t.Errorf("what a later version writes: %v", err)
	}
}

// TestHeadSucceeds: no head is written that could not be read, or whose numbers go back.
func TestHeadSucceeds(t *testing.T) {
	t.Parallel()
	old := testHead()
	for name, change := range map[string]func(*Head){
		"the same log":       nil,
		"one segment more":   func(h *Head) { h.Segment++; h.Tail = append(h.Tail, SegmentRef{Seq: h.Segment, Epoch: 3}) },
		"a checkpoint":       func(h *Head) { h.Tail = nil },
		"no generation":      func(h *Head) { h.Gen-- },
		"a generation less":  func(h *Head) { h.Gen -= 2 },
		"an epoch less":      func(h *Head) { h.Epoch--; h.Tail[1].Epoch-- },
		"a segment less":     func(h *Head) { h.Segment--; h.Tail = h.Tail[:1] },
		"a segment again":    func(h *Head) { h.Tail = append(h.Tail, h.Tail[0]) },
		"a segment unnamed":  func(h *Head) { h.Segment++ },
		"a write less":       func(h *Head) { h.Write-- },
		"fewer bytes":        func(h *Head) { h.Size -= Block },
		"bytes of no blocks": func(h *Head) { h.Size++ },
	} {
		next := old.clone()
		next.next()
		good := change == nil || name == "one segment more" || name == "a checkpoint"
		if change != nil {
			change(next)
		}
		_, _, _, err := swapHead(t.Context(), newTestStore(t), old, next, "", quiet())
		if missing := errors.Is(err, ErrNotFound); missing != good {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestHeadLimit: a head with as many segments as it may have is small enough.
func TestHeadLimit(t *testing.T) {
	t.Parallel()
	h := testHead()
	h.Segment, h.Epoch = 1<<60, 1<<60
	h.Tail = nil
	for i := range uint64(maxTail) {
		h.Tail = append(h.Tail, SegmentRef{Seq: 1<<59 + i, Epoch: 1 << 59, Random: 1 << 31, Size: maxSegment, Table: maxSegment})
	}
	for range recentNonces {
		h.Recent = append(h.Recent, NewID())
	}
	p, err := h.encode()
	if err != nil || len(p) > maxHead/2 {
		t.Errorf("%d bytes, %v", len(p), err)
	}
}

func TestSegment(t *testing.T) {
	t.Parallel()
	id := NewID()
	at := logPosition{id: id, epoch: 3, seq: 17, previous: 16, after: 100, write: 200, committed: 15}
	w := newSegmentWriter(at, 77, make([]byte, 0, segmentCapacity(50*frameSize(maxFrame), 50)))
	var want []extent
	lba := uint64(5)
	for i := range 50 {
		e := extent{lba: lba, blocks: uint32(1 + i%maxFrame), seq: 200 - uint64(i%3)}
		lba += uint64(e.blocks) + uint64(i%2)
		if i%7 == 3 {
			e.hole, e.blocks = true, 1<<20
			lba += 1 << 20
			w.hole(e)
		} else if err := fill(w.frame(e), byte(i)); err != nil {
			t.Fatal(err)
		}
		want = append(want, e)
	}
	p, ref, _ := w.finish()
	others := []SegmentRef{ref, ref, ref}
	others[0].Seq++
	others[1].Epoch++
	others[2].Random++
	for _, other := range others {
		if _, err := decodeTable(p[ref.Table:], id, other, MaxSize); err == nil {
			t.Errorf("the table passes for that of segment %+v", other)
		}
	}
	got, err := decodeTable(p[ref.Table:], id, ref, MaxSize)
	if err != nil || len(got) != len(want) {
		t.Fatalf("%d extents, %v", len(got), err)
	}
	for i, e := range got {
		if e.lba != want[i].lba || e.blocks != want[i].blocks || e.hole != want[i].hole || e.seq != want[i].seq {
			t.Errorf("extent %d is %+v, want %+v", i, e, want[i])
		}
		if e.hole {
			continue
		}
		frame := p[e.place.off:][:frameSize(e.place.whole)]
		blocks, err := openFrame(frame, id, ref, e.place.off)
		if err != nil || !bytes.Equal(blocks, bytes.Repeat([]byte{byte(i)}, int(e.blocks)*Block)) {
			t.Errorf("frame %d: %v", i, err)
		}
		for _, other := range others {
			if _, err := openFrame(frame, id, other, e.place.off); err == nil {
				t.Errorf("frame %d passes for one of segment %+v", i, other)
			}
		}
		if _, err := openFrame(frame, id, ref, e.place.off+1); err == nil {
			t.Errorf("frame %d passes for one of another place", i)
		}
	}
	if head, random, err := decodeSegmentHeader(p); err != nil || head != at || random != 77 {
		t.Errorf("header %+v, %d, %v", head, random, err)
	}
	if table, size, err := decodeSegmentFooter(p); err != nil || table != ref.Table || size != ref.Size {
		t.Errorf("footer %d, %d, %v", table, size, err)
	}
	for i := int(ref.Table); i < len(p)-segmentFooter; i++ {
		q := bytes.Clone(p[ref.Table:])
		q[i-int(ref.Table)] ^= 4
		if _, err := decodeTable(q, id, ref, MaxSize); err == nil {
			t.Errorf("byte %d of the table may be changed", i)
		}
	}
}

func fill(p []byte, b byte) error {
	for i := range p {
		p[i] = b
	}
	return nil
}

func TestNode(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(1, 1))
	ext, seg, inner := &mapNode{kind: extentNode}, &mapNode{kind: segmentNode}, &mapNode{kind: extentNode, level: 2}
	lba, seq, key := uint64(0), uint64(0), uint64(0)
	for range maxLeaf {
		e := extent{lba: lba + r.Uint64N(1000), seq: r.Uint64N(1 << 40),
			place: place{seg: 1 + r.Uint64N(1<<40), off: segmentHeader + r.Int64N(maxSegment-segmentHeader), whole: 1 + r.Uint32N(maxFrame)}}
		e.place.skip = r.Uint32N(e.place.whole)
		e.blocks = 1 + r.Uint32N(e.place.whole-e.place.skip)
		if n := len(ext.extents); n > 0 && r.IntN(2) == 0 {
			last := ext.extents[n-1]
			if next := last.place.off + frameSize(last.place.whole); next < maxSegment {
				e.place = place{seg: last.place.seg, off: next, whole: e.blocks}
			}
			e.seq = last.seq
		}
		lba = e.end()
		ext.extents = append(ext.extents, e)
		seq += 1 + r.Uint64N(50)
		size := r.Uint32N(maxSegment)
		seg.segments = append(seg.segments, segmentUse{
			SegmentRef{Seq: seq, Epoch: r.Uint64N(100), Random: r.Uint32(), Size: size, Table: size / 2}, r.Int64N(2000)})
	}
	for range maxChildren {
		inner.children = append(inner.children, child{key, NodeRef{
			Gen: r.Uint64N(1 << 50), Random: r.Uint32(), Off: r.Uint32(), Len: nodeHeader + r.Uint32N(maxNode-nodeHeader), Sum: r.Uint32(),
		}})
		key += 1 + r.Uint64N(1<<40)
	}
	for _, n := range []*mapNode{ext, seg, inner} {
		p := n.encode()
		if len(p) > maxNode {
			t.Errorf("a full node has %d bytes", len(p))
		}
		got, err := decodeNode(p)
		if err != nil || fmt.Sprint(got.extents, got.segments, got.children) != fmt.Sprint(n.extents, n.segments, n.children) {
			t.Errorf("kind %d, level %d: it came back as another (%v)", n.kind, n.level, err)
		}
	}
}

// TestExtents compares a set of extents with an array of blocks.
func TestExtents(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(2, 2))
	const n = 300
	for range 200 {
		var x extents
		var want [n]extent // of each block: its extent, clipped to it
		for range 60 {
			e := extent{lba: r.Uint64N(n - 40), blocks: 1 + r.Uint32N(40), hole: r.IntN(4) == 0, seq: r.Uint64N(50)}
			if !e.hole {
				e.place = place{seg: 1 + r.Uint64N(5), off: r.Int64N(1000), whole: e.blocks}
			}
			op := r.IntN(3)
			switch op {
			case 0:
				x.set(e)
			case 1:
				x.setNewer(e)
			case 2:
				x.clear(e.lba, e.end())
			}
			for b := e.lba; b < e.end(); b++ {
				switch {
				case op == 2:
					want[b] = extent{}
				case op == 0 || want[b].blocks == 0 || want[b].seq <= e.seq:
					want[b] = e.clip(b, b+1)
				}
			}
		}
		var got [n]extent
		last := uint64(0)
		x.all(func(e extent) bool {
			if e.lba < last || e.blocks == 0 {
				t.Fatalf("%+v after block %d", e, last)
			}
			last = e.end()
			for b := e.lba; b < e.end(); b++ {
				got[b] = e.clip(b, b+1)
			}
			return true
		})
		if got != want {
			t.Fatal("the set and the array differ")
		}
		lo := r.Uint64N(n)
		hi := lo + r.Uint64N(n-lo+1)
		x.overlapping(lo, hi, func(e extent) bool {
			for b := e.lba; b < e.end(); b++ {
				if b < lo || b >= hi || want[b] != e.clip(b, b+1) {
					t.Fatalf("block %d of [%d, %d) is wrong", b, lo, hi)
				}
				want[b] = extent{}
			}
			return true
		})
		for b := lo; b < hi; b++ {
			if want[b].blocks != 0 {
				t.Fatalf("block %d of [%d, %d) is missing", b, lo, hi)
			}
		}
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"", "-a", ".a", "A", "a/b", "a b", strings.Repeat("a", 64)} {
		if CheckName(s) == nil {
			t.Errorf("%q was taken", s)
		}
	}
	for _, s := range []string{"a", "0", "data-1_x.y", strings.Repeat("a", 63)} {
		if err := CheckName(s); err != nil {
			t.Errorf("%q: %v", s, err)
		}
	}
}
