package image

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"github.com/remora-storage/remora/cache/blob"
	"github.com/remora-storage/remora/cache/inflate"
)

// A Part is a unit of a blob with the digests of what is in it, by which bytes of anybody's can be compared with it.
type Part struct {
	Unit    blob.Unit
	Extents []Extent // of which the places in the unit and the digests count
	// At is where decoding begins and Plain how many bytes come out of it, where the codec is blob.Spans.
	At    inflate.Point
	Plain int

	cut bool // only its first bytes
}

// Of a large unit the first packed bytes are compared, if they hold enough that can be: in bytes.
const (
	partPacked = 192 << 10 // more than a block of any codec
	partPlain  = 64 << 10
	partLeast  = 16 << 10
)

// leastShown is how many bytes of a part must differ from the one before them, if it is to show that somebody has it. Anybody can guess
// files of zeros, and the few bytes of a converter's landmarks.
const leastShown = 32

// MayShow reports whether extents of n bytes together may be a secret.
func MayShow(n int64) bool { return n > leastShown }

// PartOf returns a unit of an image's blob, or its beginning.
func PartOf(m *Image, unit uint32) (p Part, err error) {
	p.Unit = m.table.Unit(unit)
	n, at := m.table.UnitExtents(unit)
	for k := range n {
		p.Extents = append(p.Extents, m.table.Extent(at(k)))
	}
	if m.cut.points != nil {
		p.At, p.Plain, err = m.cut.points.at(unit, p.Unit.Off)
	}
	p.Shorten(func(e Extent, n uint32) (sum [sha256.Size]byte, ok bool) {
		b := make([]byte, n)
		if _, err := m.Peek(b, e.Off); err != nil {
			return sum, false
		}
		return sha256.Sum256(b), true
	})
	return p, err
}

// Shorten cuts a part down to its beginning, if that is worth it and holds enough to compare. beginning returns the digest of an extent's
// first n bytes, where that is known; nil where none is.
func (p *Part) Shorten(beginning func(e Extent, n uint32) ([sha256.Size]byte, bool)) {
	if p.Unit.Len <= partPacked {
		return
	}
	var few []Extent
	total := uint32(0)
	for _, e := range p.Extents {
		if e.Inner >= partPlain {
			continue
		}
		if n := partPlain - e.Inner; n < e.Len {
			if beginning == nil {
				continue
			}
			sum, ok := beginning(e, n)
			if !ok {
				continue
			}
			e.Len, e.Digest = n, sum
		}
		few = append(few, e)
		total += e.Len
	}
	if total >= partLeast {
		p.Extents, p.Unit.Len, p.cut = few, partPacked, true
	}
}

// end returns where in the decoded unit its last extent ends.
func (p *Part) end() (end int64) {
	for i := range p.Extents {
		end = max(end, int64(p.Extents[i].Inner)+int64(p.Extents[i].Len))
	}
	return end
}

// PlainBytes returns how many decoded bytes Compare has in memory.
func (p *Part) PlainBytes() int64 {
	n := p.end()
	if !p.cut {
		n = max(n, int64(p.Plain))
	}
	return n + inflate.Window + 2*blob.FreeRest
}

// Compare decodes packed bytes of a unit, in a window as blob.Room has it, and compares what is in it. An error wraps blob.ErrBytes, but
// for those of packed and blob.ErrWindow. Without one it reports whether those bytes show anything: whether nobody could guess them.
func (p *Part) Compare(codec blob.Codec, packed io.Reader, window int64) (shows bool, err error) {
	plain, err := p.unpack(codec, packed, window)
	var source *blob.SourceError
	switch {
	case errors.As(err, &source):
		return false, source.Err
	case errors.Is(err, blob.ErrWindow):
		return false, err
	case err != nil:
		return false, fmt.Errorf("%w: decode: %w", blob.ErrBytes, err)
	}
	differ := 0
	for i := range p.Extents {
		e := &p.Extents[i]
		b := plain[e.Inner : e.Inner+e.Len]
		if sha256.Sum256(b) != e.Digest {
			return false, fmt.Errorf("%w: extent at %d of the unit has another digest", blob.ErrBytes, e.Inner)
		}
		for k := 1; k < len(b) && differ < leastShown; k++ {
			if b[k] != b[k-1] {
				differ++
			}
		}
	}
	return differ >= leastShown, nil
}

// unpack returns the plain bytes up to the last extent's end.
func (p *Part) unpack(codec blob.Codec, packed io.Reader, window int64) ([]byte, error) {
	switch {
	case codec == blob.Spans && p.cut:
		b := make([]byte, p.Unit.Len)
		if _, err := io.ReadFull(packed, b); err != nil {
			return nil, &blob.SourceError{Err: err}
		}
		return p.At.InflateSome(b, int(p.end()))
	case codec == blob.Spans:
		got, err := blob.UnpackSpan(p.At, p.Plain, packed, p.Unit.Len, p.end(), nil)
		return got.Plain, err
	}
	plain := make([]byte, p.end())
	err := blob.Decode(codec, packed, window, func(r io.Reader) error {
		_, err := io.ReadFull(r, plain)
		return err
	})
	return plain, err
}
