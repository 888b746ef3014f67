package volume

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/remora-storage/remora/internal/wire"
	"github.com/remora-storage/remora/remote/store"
)

// A segment is immutable:
//
//	header | frames | table of extents | footer
//
// A frame is a header of 16 bytes and the blocks of one extent, at most maxFrame. docs/formats.md has every byte.
const (
	segmentMagic  = "RSG1"
	frameMagic    = "RFR2"
	tableMagic    = "RST2"
	frameMagic1   = "RFR1" // whose checksums do not cover all that makes a segment unique
	tableMagic1   = "RST1"
	footerMagic   = "RSE1"
	segmentHeader = 96 // bytes
	frameHeader   = 16
	tableHeader   = 24
	segmentFooter = 16
	maxFrame      = 32      // blocks
	segmentTarget = 8 << 20 // bytes of a segment that nobody waits for
)

// segmentVersion is what is written; earlier ones are read.
const segmentVersion = 2

// logPosition says where in the log a segment belongs.
type logPosition struct {
	id        ID
	epoch     uint64
	seq       uint64
	previous  uint64 // segment
	after     uint64 // the writes that it holds are later than this one
	write     uint64 // and not later than this one
	committed uint64 // segment that counted when it was made
}

// segmentWriter builds one segment.
type segmentWriter struct {
	at      logPosition
	random  uint32
	p       []byte
	extents []extent
}

// segmentCapacity returns how many bytes a segment takes at most that has frames of so many bytes and so many extents.
func segmentCapacity(frames int64, extents int) int {
	return segmentHeader + int(frames) + tableHeader + 3*binary.MaxVarintLen64*extents + segmentFooter
}

// newSegmentWriter returns a writer into p, whose length is 0 and whose capacity is enough for all frames; what it begins with
// and where it lies are of no matter.
func newSegmentWriter(at logPosition, random uint32, p []byte) *segmentWriter {
	p = append(p, segmentMagic...)
	p = binary.LittleEndian.AppendUint32(p, segmentVersion)
	p = append(p, at.id[:]...)
	for _, v := range []uint64{at.epoch, at.seq, at.previous, at.after, at.write, at.committed} {
		p = binary.LittleEndian.AppendUint64(p, v)
	}
	p = binary.LittleEndian.AppendUint32(p, random)
	p = append(p, make([]byte, segmentHeader-4-len(p))...)
	p = binary.LittleEndian.AppendUint32(p, wire.Sum(p))
	return &segmentWriter{at: at, random: random, p: p}
}

// hole adds blocks that read as zeros.
func (w *segmentWriter) hole(e extent) {
	e.hole, e.place = true, place{}
	w.extents = append(w.extents, e)
}

// frame adds a frame of an extent, and returns where its blocks are to be put before finish. Its capacity is the
// segment's, which must not grow any more: what was returned would be another's.
func (w *segmentWriter) frame(e extent) []byte {
	off := len(w.p)
	size := int(frameSize(e.blocks))
	w.p = w.p[:off+size]
	e.place = place{seg: w.at.seq, off: int64(off), whole: e.blocks}
	w.extents = append(w.extents, e)
	return w.p[off+frameHeader:]
}

// putFrameHeader fills in the header of a frame that is all of p.
func putFrameHeader(p []byte, id ID, ref SegmentRef, off int64) {
	copy(p, frameMagic)
	binary.LittleEndian.PutUint32(p[4:], uint32(len(p)-frameHeader))
	binary.LittleEndian.PutUint32(p[8:], 0) // codec: plain
	binary.LittleEndian.PutUint32(p[12:], frameSum(p, id, ref, off))
}

// appendOwner adds what tells a segment from every other: a number of the log may be used again by who never knew of it, such as
// another epoch, or another copy of the machine. The first version had the number alone.
func (r SegmentRef) appendOwner(p []byte, id ID, first bool) []byte {
	p = append(p, id[:]...)
	p = binary.LittleEndian.AppendUint64(p, r.Seq)
	if first {
		return p
	}
	return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint64(p, r.Epoch), r.Random)
}

// frameSum covers which segment the frame is of and where in it, so that another frame is never taken for it.
func frameSum(p []byte, id ID, ref SegmentRef, off int64) uint32 {
	var buf [44]byte
	where := ref.appendOwner(buf[:0], id, string(p[:4]) == frameMagic1)
	where = binary.LittleEndian.AppendUint64(where, uint64(off))
	return wire.Sum(where, p[:12], p[frameHeader:])
}

// openFrame checks a frame and returns its blocks.
func openFrame(p []byte, id ID, ref SegmentRef, off int64) ([]byte, error) {
	if len(p) < frameHeader || string(p[:4]) != frameMagic && string(p[:4]) != frameMagic1 ||
		int(binary.LittleEndian.Uint32(p[4:])) != len(p)-frameHeader ||
		binary.LittleEndian.Uint32(p[8:]) != 0 {
		return nil, fmt.Errorf("frame at %d of segment %d: %w: its header is wrong", off, ref.Seq, ErrCorrupt)
	}
	if frameSum(p, id, ref, off) != binary.LittleEndian.Uint32(p[12:]) {
		return nil, fmt.Errorf("frame at %d of segment %d: %w: its checksum is wrong", off, ref.Seq, ErrCorrupt)
	}
	return p[frameHeader:], nil
}

// frameSize returns the bytes of a frame of so many blocks.
func frameSize(blocks uint32) int64 { return frameHeader + int64(blocks)*Block }

// finish returns the segment's bytes, its name, and its extents.
func (w *segmentWriter) finish() ([]byte, SegmentRef, []extent) {
	ref := SegmentRef{Seq: w.at.seq, Epoch: w.at.epoch, Random: w.random}
	for _, e := range w.extents {
		if !e.hole {
			putFrameHeader(w.p[e.place.off:][:frameSize(e.blocks)], w.at.id, ref, e.place.off)
		}
	}
	table := len(w.p)
	var body []byte
	at := uint64(0)
	for _, e := range w.extents {
		body = binary.AppendUvarint(body, e.lba-at)
		kind := uint64(0)
		if e.hole {
			kind = 1
		}
		body = binary.AppendUvarint(body, uint64(e.blocks)<<2|kind)
		body = binary.AppendUvarint(body, w.at.write-e.seq)
		at = e.end()
	}
	w.p = append(w.p, tableMagic...)
	w.p = binary.LittleEndian.AppendUint32(w.p, uint32(len(w.extents)))
	w.p = binary.LittleEndian.AppendUint32(w.p, uint32(len(body)))
	w.p = binary.LittleEndian.AppendUint64(w.p, w.at.write)
	w.p = binary.LittleEndian.AppendUint32(w.p, tableSum(w.p[table:], body, w.at.id, ref))
	w.p = append(w.p, body...)
	end := len(w.p)
	w.p = append(w.p, footerMagic...)
	w.p = binary.LittleEndian.AppendUint32(w.p, uint32(table))
	w.p = binary.LittleEndian.AppendUint32(w.p, uint32(end+segmentFooter))
	w.p = binary.LittleEndian.AppendUint32(w.p, wire.Sum(w.p[end:]))
	ref.Size, ref.Table = uint32(len(w.p)), uint32(table)
	return w.p, ref, w.extents
}

func tableSum(header, body []byte, id ID, ref SegmentRef) uint32 {
	var buf [36]byte
	return wire.Sum(ref.appendOwner(buf[:0], id, string(header[:4]) == tableMagic1), header[:20], body)
}

// findTable completes a reference of which only the key, and the size of its object, are known.
func findTable(ctx context.Context, st store.Store, id ID, ref SegmentRef) (SegmentRef, error) {
	p, _, err := st.Get(ctx, ref.key(id), max(int64(ref.Size)-segmentFooter, 0), segmentFooter)
	if err != nil {
		return ref, err
	}
	table, size, err := decodeSegmentFooter(p)
	if err == nil && size != ref.Size {
		err = fmt.Errorf("%w: it has %d bytes, not %d", ErrCorrupt, ref.Size, size)
	}
	ref.Table = table
	return ref, err
}

// readTable reads a segment's table from the store.
func readTable(ctx context.Context, st store.Store, id ID, ref SegmentRef, size int64) ([]extent, error) {
	p, _, err := st.Get(ctx, ref.key(id), int64(ref.Table), int64(ref.Size-ref.Table))
	if err != nil {
		return nil, err
	}
	return decodeTable(p, id, ref, size)
}

// decodeTable reads the table of extents of a segment: p begins with it.
func decodeTable(p []byte, id ID, ref SegmentRef, size int64) ([]extent, error) {
	bad := func(why string) error {
		return fmt.Errorf("table of segment %d: %w: %s", ref.Seq, ErrCorrupt, why)
	}
	if len(p) < tableHeader || string(p[:4]) != tableMagic && string(p[:4]) != tableMagic1 {
		return nil, bad("it does not begin as one")
	}
	count, n := binary.LittleEndian.Uint32(p[4:]), binary.LittleEndian.Uint32(p[8:])
	write := binary.LittleEndian.Uint64(p[12:])
	if uint64(n) > uint64(len(p)-tableHeader) || uint64(count)*3 > uint64(n) {
		return nil, bad("it is cut short")
	}
	body := p[tableHeader : tableHeader+int(n)]
	if tableSum(p, body, id, ref) != binary.LittleEndian.Uint32(p[20:]) {
		return nil, bad("its checksum is wrong")
	}
	all := make([]extent, 0, count)
	at, off := uint64(0), int64(segmentHeader)
	r := wire.Read(body)
	for range count {
		e := extent{lba: at + r.Next()}
		kind := r.Next()
		e.blocks = uint32(min(kind>>2, 1<<32-1))
		e.seq = write - r.Next()
		switch kind & 3 {
		case 0:
			if e.blocks > maxFrame {
				return nil, bad("a frame is too large")
			}
			e.place = place{seg: ref.Seq, off: off, whole: e.blocks}
			off += frameSize(e.blocks)
		case 1:
			e.hole = true
		default:
			return nil, fmt.Errorf("table of segment %d: an extent of kind %d: %w", ref.Seq, kind&3, ErrVersion)
		}
		if r.Bad() || e.blocks == 0 || e.lba < at || e.lba > uint64(size/Block) || e.end() > uint64(size/Block) ||
			off > int64(ref.Table) || e.seq > write {
			return nil, bad("an extent is impossible")
		}
		at = e.end()
		all = append(all, e)
	}
	if r.Len() != 0 {
		return nil, bad("something follows")
	}
	return all, nil
}

// decodeSegmentHeader reads a segment's first bytes.
func decodeSegmentHeader(p []byte) (logPosition, uint32, error) {
	var at logPosition
	if len(p) < segmentHeader || string(p[:4]) != segmentMagic ||
		wire.Sum(p[:segmentHeader-4]) != binary.LittleEndian.Uint32(p[segmentHeader-4:]) {
		return at, 0, fmt.Errorf("header of a segment: %w", ErrCorrupt)
	}
	if v := binary.LittleEndian.Uint32(p[4:]); v < 1 || v > segmentVersion {
		return at, 0, fmt.Errorf("segment of format %d: %w", v, ErrVersion)
	}
	copy(at.id[:], p[8:])
	for i, v := range []*uint64{&at.epoch, &at.seq, &at.previous, &at.after, &at.write, &at.committed} {
		*v = binary.LittleEndian.Uint64(p[24+8*i:])
	}
	return at, binary.LittleEndian.Uint32(p[72:]), nil
}

// decodeSegmentFooter reads a segment's last bytes: where its table is, and how long it is as a whole.
func decodeSegmentFooter(p []byte) (table, size uint32, err error) {
	if len(p) < segmentFooter {
		return 0, 0, fmt.Errorf("footer of a segment: %w", ErrCorrupt)
	}
	p = p[len(p)-segmentFooter:]
	table, size = binary.LittleEndian.Uint32(p[4:]), binary.LittleEndian.Uint32(p[8:])
	if string(p[:4]) != footerMagic || wire.Sum(p[:12]) != binary.LittleEndian.Uint32(p[12:]) || table > size {
		return 0, 0, fmt.Errorf("footer of a segment: %w", ErrCorrupt)
	}
	return table, size, nil
}
