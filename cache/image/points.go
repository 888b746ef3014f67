package image

import (
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/remora-storage/remora/cache/blob"
	"github.com/remora-storage/remora/cache/inflate"
	"github.com/remora-storage/remora/internal/wire"
)

// Where a blob is one gzip stream, its units are decoded from points in the middle of it. They lie in a
// file beside the extent table, written once. All numbers are little-endian.
//
//	offset  size  field
//	0       8     "REMORAPT"
//	8       4     version, 1
//	12      4     points, as many as units
//	16      8     plain bytes of the blob
//	24      4     the checksum in the extent table's header: the table these points belong to
//	28      4     CRC32C of the 28 bytes before and the points
//	32      32 a point: {plain offset u64, window's offset here u64, window's bytes u32, CRC32C of
//	              those u32, bits u8, value u8, zero 6}
//	...           windows, as inflate.Sparse has them
const (
	pointsFile    = "points"
	pointsMagic   = "REMORAPT"
	pointsVersion = 1
	pointsHeader  = 32
	pointSize     = 32
)

// points reads the file.
type points struct {
	f    *os.File
	head []byte
	size int64
}

func encodePoints(s *Spec, table uint32) []byte {
	p := make([]byte, pointsHeader+len(s.Points)*pointSize)
	copy(p, pointsMagic)
	le.PutUint32(p[8:], pointsVersion)
	le.PutUint32(p[12:], uint32(len(s.Points)))
	le.PutUint64(p[16:], uint64(s.PlainSize))
	le.PutUint32(p[24:], table)
	for i, at := range s.Points {
		e := p[pointsHeader+i*pointSize:]
		le.PutUint64(e, uint64(at.Plain))
		le.PutUint64(e[8:], uint64(len(p)))
		le.PutUint32(e[16:], uint32(len(at.Window)))
		le.PutUint32(e[20:], wire.Sum(at.Window))
		e[24], e[25] = at.Bits, at.Value
		p = append(p, at.Window...)
	}
	end := pointsHeader + len(s.Points)*pointSize
	le.PutUint32(p[28:], wire.Sum(p[:28], p[pointsHeader:end]))
	return p
}

// openPoints opens the file in dir, for a table.
func openPoints(dir string, t *Table) (*points, error) {
	f, err := os.Open(filepath.Join(dir, pointsFile))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	p := &points{f: f, head: make([]byte, pointsHeader+t.NUnits*pointSize)}
	if err := p.load(t); err != nil {
		f.Close()
		return nil, err
	}
	return p, nil
}

func (p *points) load(t *Table) error {
	st, err := p.f.Stat()
	if err != nil {
		return err
	}
	p.size = st.Size()
	if _, err := io.ReadFull(p.f, p.head); err != nil {
		return fmt.Errorf("%w: points: %w", ErrCorrupt, err)
	}
	h := p.head
	if string(h[:8]) != pointsMagic || le.Uint32(h[8:]) != pointsVersion || int(le.Uint32(h[12:])) != t.NUnits || le.Uint32(h[24:]) != t.sum ||
		wire.Sum(h[:28], h[pointsHeader:]) != le.Uint32(h[28:]) {
		return fmt.Errorf("%w: points of another table, or with a wrong checksum", ErrCorrupt)
	}
	return nil
}

// plain returns how many plain bytes a unit has.
func (p *points) plain(unit uint32) int64 {
	e := p.head[pointsHeader+int(unit)*pointSize:]
	next := int64(le.Uint64(p.head[16:]))
	if len(e) > pointSize {
		next = int64(le.Uint64(e[pointSize:]))
	}
	return min(max(next-int64(le.Uint64(e)), 0), blob.MaxUnit)
}

// at returns where a unit begins, with its window, and how many plain bytes it has.
func (p *points) at(unit uint32, off int64) (pt inflate.Point, plain int, err error) {
	e := p.head[pointsHeader+int(unit)*pointSize:]
	pt = inflate.Point{Plain: int64(le.Uint64(e)), Off: off, Bits: e[24], Value: e[25]}
	next := int64(le.Uint64(p.head[16:]))
	if len(e) > pointSize {
		next = int64(le.Uint64(e[pointSize:]))
	}
	if n := next - pt.Plain; n < 0 || n > blob.MaxUnit {
		return pt, 0, fmt.Errorf("%w: unit %d of %d plain bytes", ErrCorrupt, unit, n)
	}
	if n := int64(le.Uint32(e[16:])); n > 0 && n <= p.size {
		pt.Window = make(inflate.Sparse, n)
		if _, err := p.f.ReadAt(pt.Window, int64(le.Uint64(e[8:]))); err != nil {
			return pt, 0, fmt.Errorf("%w: window of unit %d: %w", ErrCorrupt, unit, err)
		}
		if wire.Sum(pt.Window) != le.Uint32(e[20:]) {
			return pt, 0, fmt.Errorf("%w: window of unit %d has another checksum", ErrCorrupt, unit)
		}
	}
	return pt, int(next - pt.Plain), nil
}
