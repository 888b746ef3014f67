package image

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sort"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/cache/blob"
	"github.com/remora-storage/remora/internal/wire"
)

// An Extent is a range of the image with one source and one digest.
type Extent struct {
	Off    int64  // bytes from the start of the image, a multiple of nothing in particular
	Len    uint32 // bytes, more than zero
	Unit   uint32
	Inner  uint32 // where the extent starts in the decoded unit
	Digest [sha256.Size]byte
}

// End returns where the extent ends in the image.
func (e *Extent) End() int64 { return e.Off + int64(e.Len) }

// Same reports whether two extents are the same bytes of the same unit.
func (e *Extent) Same(o Extent) bool {
	return e.Unit == o.Unit && e.Inner == o.Inner && e.Len == o.Len && e.Digest == o.Digest
}

// ErrCorrupt marks a file of the cache that is not what we wrote.
var ErrCorrupt = errors.New("corrupt cache file")

// The table is written once and mapped, so that it costs no memory that the kernel cannot take
// back. All numbers are little-endian.
//
//	offset  size        field
//	0       8           "REMORAXT"
//	8       4           version, 1
//	12      4           codec
//	16      4           units
//	20      4           extents
//	24      8           bytes of the image
//	32      8           bytes of metadata at its start
//	40      8           bytes of the blob
//	48      4           CRC32C of everything behind the header
//	52      4           CRC32C of the 52 bytes before
//	56      4           1 if the image's data came by an Import
//	60      4           zero
//	64      24 a unit   {offset u64, length u64, first u32, count u32}: the last two a range of by-unit
//	...     56 an extent{offset u64, inner u32, length u32, unit u32, digest 32, zero u32}, by offset
//	...     4 an extent by-unit: extents by unit and inner offset
//	...     4 an extent by-digest: extents by digest
const (
	tableMagic   = "REMORAXT"
	tableVersion = 1
	headerSize   = 64
	unitSize     = 24
	extentSize   = 56
)

var le = binary.LittleEndian

// A Table reads a mapped table. Its fields are not to be changed.
type Table struct {
	data      []byte
	NUnits    int
	NExtents  int
	Codec     blob.Codec
	ImageSize int64
	MetaSize  int64
	BlobSize  int64
	dataPages int64  // bytes of all extents on disk
	sum       uint32 // of the body: identifies the table
	imported  bool
}

// encodeTable returns the bytes of a table. It sorts extents.
func encodeTable(s *Spec) ([]byte, error) {
	slices.SortFunc(s.Extents, func(a, b Extent) int { return cmp.Compare(a.Off, b.Off) })
	if err := s.check(); err != nil {
		return nil, err
	}
	n := len(s.Extents)
	byUnit := make([]uint32, n)
	for i := range byUnit {
		byUnit[i] = uint32(i)
	}
	byDigest := slices.Clone(byUnit)
	slices.SortStableFunc(byUnit, func(a, b uint32) int {
		x, y := &s.Extents[a], &s.Extents[b]
		return cmp.Or(cmp.Compare(x.Unit, y.Unit), cmp.Compare(x.Inner, y.Inner))
	})
	slices.SortStableFunc(byDigest, func(a, b uint32) int {
		return slices.Compare(s.Extents[a].Digest[:], s.Extents[b].Digest[:])
	})
	p := make([]byte, headerSize, headerSize+len(s.Units)*unitSize+n*(extentSize+8))
	k := 0
	for i, u := range s.Units {
		first := k
		for k < n && s.Extents[byUnit[k]].Unit == uint32(i) {
			k++
		}
		p = le.AppendUint64(p, uint64(u.Off))
		p = le.AppendUint64(p, uint64(u.Len))
		p = le.AppendUint32(p, uint32(first))
		p = le.AppendUint32(p, uint32(k-first))
	}
	for i := range s.Extents {
		e := &s.Extents[i]
		p = le.AppendUint64(p, uint64(e.Off))
		p = le.AppendUint32(p, e.Inner)
		p = le.AppendUint32(p, e.Len)
		p = le.AppendUint32(p, e.Unit)
		p = append(p, e.Digest[:]...)
		p = le.AppendUint32(p, 0)
	}
	for _, perm := range [][]uint32{byUnit, byDigest} {
		for _, i := range perm {
			p = le.AppendUint32(p, i)
		}
	}
	copy(p, tableMagic)
	le.PutUint32(p[8:], tableVersion)
	le.PutUint32(p[12:], uint32(s.Codec))
	le.PutUint32(p[16:], uint32(len(s.Units)))
	le.PutUint32(p[20:], uint32(n))
	le.PutUint64(p[24:], uint64(s.ImageSize))
	le.PutUint64(p[32:], uint64(s.MetaSize))
	le.PutUint64(p[40:], uint64(s.blobSize()))
	le.PutUint32(p[48:], wire.Sum(p[headerSize:]))
	le.PutUint32(p[52:], wire.Sum(p[:52]))
	if s.imported {
		le.PutUint32(p[56:], 1)
	}
	return p, nil
}

// decodeTable checks p, which it keeps, and returns its table.
func decodeTable(p []byte) (*Table, error) {
	if len(p) < headerSize || string(p[:8]) != tableMagic {
		return nil, fmt.Errorf("%w: extent table without its mark", ErrCorrupt)
	}
	if v := le.Uint32(p[8:]); v != tableVersion {
		return nil, fmt.Errorf("%w: extent table of version %d", ErrCorrupt, v)
	}
	t := &Table{
		data: p, Codec: blob.Codec(le.Uint32(p[12:])), NUnits: int(le.Uint32(p[16:])), NExtents: int(le.Uint32(p[20:])),
		ImageSize: int64(le.Uint64(p[24:])), MetaSize: int64(le.Uint64(p[32:])), BlobSize: int64(le.Uint64(p[40:])),
		sum: le.Uint32(p[48:]), imported: le.Uint32(p[56:]) == 1,
	}
	want := headerSize + int64(t.NUnits)*unitSize + int64(t.NExtents)*(extentSize+8)
	if wire.Sum(p[:52]) != le.Uint32(p[52:]) || int64(len(p)) != want ||
		wire.Sum(p[headerSize:]) != t.sum {
		return nil, fmt.Errorf("%w: extent table with a wrong length or checksum", ErrCorrupt)
	}
	for i := range uint32(t.NExtents) {
		t.dataPages += pages(int64(t.Extent(i).Len))
	}
	return t, nil
}

// openTable maps the table at path.
func openTable(path string) (*Table, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st.Size() < headerSize {
		return nil, fmt.Errorf("%w: extent table of %d bytes", ErrCorrupt, st.Size())
	}
	p, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", path, err)
	}
	t, err := decodeTable(p)
	if err != nil {
		_ = unix.Munmap(p) // the error that matters is err
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	// Readers may still hold the table when its file is closed: the mapping goes with the last
	// of them. It cannot fail to go.
	runtime.AddCleanup(t, func(p []byte) { _ = unix.Munmap(p) }, p)
	return t, nil
}

// Unit returns where unit i lies in the blob.
func (t *Table) Unit(i uint32) blob.Unit {
	p := t.data[headerSize+int(i)*unitSize:]
	return blob.Unit{Off: int64(le.Uint64(p)), Len: int64(le.Uint64(p[8:]))}
}

// UnitExtents returns the extents of a unit by inner offset: at(k) for k < n.
func (t *Table) UnitExtents(i uint32) (n int, at func(k int) uint32) {
	p := t.data[headerSize+int(i)*unitSize:]
	first := int(le.Uint32(p[16:]))
	perm := t.data[headerSize+t.NUnits*unitSize+t.NExtents*extentSize:]
	return int(le.Uint32(p[20:])), func(k int) uint32 { return le.Uint32(perm[(first+k)*4:]) }
}

// Extent returns extent i.
func (t *Table) Extent(i uint32) Extent {
	p := t.data[headerSize+t.NUnits*unitSize+int(i)*extentSize:]
	e := Extent{Off: int64(le.Uint64(p)), Inner: le.Uint32(p[8:]), Len: le.Uint32(p[12:]), Unit: le.Uint32(p[16:])}
	copy(e.Digest[:], p[20:])
	return e
}

// Imported reports whether the image's data came whole, by an Import.
func (t *Table) Imported() bool {
	// Tables of earlier versions tell it by where the data is alone.
	return t.imported || t.NExtents > 0 && t.extentOff(0) >= DataStart
}

func (t *Table) extentOff(i int) int64 {
	return int64(le.Uint64(t.data[headerSize+t.NUnits*unitSize+i*extentSize:]))
}

// Overlapping returns the extents [lo, hi) that share a byte with [off, off+n) of the image.
func (t *Table) Overlapping(off, n int64) (lo, hi int) {
	lo = sort.Search(t.NExtents, func(i int) bool { e := t.Extent(uint32(i)); return e.End() > off })
	hi = lo + sort.Search(t.NExtents-lo, func(i int) bool { return t.extentOff(lo+i) >= off+n })
	return lo, hi
}

// Has reports whether there are extents with digest d.
func (t *Table) Has(d *[sha256.Size]byte) (has bool) {
	t.Find(d, func(uint32) bool { has = true; return false })
	return has
}

// mostEqual is how many extents with one digest are looked at. Real layers have a file fewer times over, and a miss costs a fetch; but
// a layer of equal files alone would have each of them looked at for each of them.
const mostEqual = 1024

// Find calls yield with extents that have digest d, the first mostEqual by offset, until it returns false.
func (t *Table) Find(d *[sha256.Size]byte, yield func(uint32) bool) {
	perm := t.data[headerSize+t.NUnits*unitSize+t.NExtents*(extentSize+4):]
	digestOf := func(k int) (uint32, []byte) {
		i := le.Uint32(perm[k*4:])
		p := t.data[headerSize+t.NUnits*unitSize+int(i)*extentSize:]
		return i, p[20 : 20+sha256.Size]
	}
	k := sort.Search(t.NExtents, func(k int) bool { _, x := digestOf(k); return slices.Compare(x, d[:]) >= 0 })
	for end := min(k+mostEqual, t.NExtents); k < end; k++ {
		i, x := digestOf(k)
		if !slices.Equal(x, d[:]) || !yield(i) {
			return
		}
	}
}
