package image

import (
	"fmt"
	"io"
	"math"

	"github.com/remora-storage/remora/cache/blob"
	"github.com/remora-storage/remora/cache/inflate"
)

// A Spec describes an image that is to be kept.
type Spec struct {
	ImageSize int64       // bytes
	MetaSize  int64       // bytes that Meta writes
	Meta      io.WriterTo // the image's first bytes, present from the start
	Codec     blob.Codec
	Units     []blob.Unit // in blob order, from 0 to the blob's end without gaps
	Extents   []Extent    // in any order
	// Points say for blob.Spans where each unit begins; PlainSize is the bytes of all units, decoded.
	Points    []inflate.Point
	PlainSize int64
	// Tail is what the caller has read of the blob's last unit anyway, packed; or nil.
	Tail []byte

	imported bool // by an Import
}

func (s *Spec) blobSize() int64 {
	if len(s.Units) == 0 {
		return 0
	}
	u := s.Units[len(s.Units)-1]
	return u.Off + u.Len
}

// check insists on what the rest of the package relies on. Extents are sorted by offset.
func (s *Spec) check() error {
	next := int64(0)
	for i, u := range s.Units {
		if u.Off != next || u.Len <= 0 || u.Len > math.MaxInt64-next {
			return fmt.Errorf("unit %d at %d+%d does not follow %d", i, u.Off, u.Len, next)
		}
		next += u.Len
	}
	if len(s.Units) > math.MaxUint32 || len(s.Extents) > math.MaxUint32 {
		return fmt.Errorf("%d units, %d extents", len(s.Units), len(s.Extents))
	}
	if err := s.checkPoints(); err != nil {
		return err
	}
	end := s.MetaSize
	for i := range s.Extents {
		e := &s.Extents[i]
		if e.Off < end || e.Len == 0 || e.End() > s.ImageSize || int(e.Unit) >= len(s.Units) {
			return fmt.Errorf("extent at %d+%d of unit %d does not fit behind %d", e.Off, e.Len, e.Unit, end)
		}
		end = e.End()
	}
	return nil
}

func (s *Spec) checkPoints() error {
	if s.Codec != blob.Spans {
		if len(s.Points) > 0 && s.Codec != blob.Whole {
			return fmt.Errorf("points in a blob of codec %d", s.Codec)
		}
		return nil
	}
	if len(s.Points) != len(s.Units) {
		return fmt.Errorf("%d points for %d units", len(s.Points), len(s.Units))
	}
	for i, p := range s.Points {
		next := s.PlainSize
		if i+1 < len(s.Points) {
			next = s.Points[i+1].Plain
		}
		if p.Off != s.Units[i].Off || i == 0 && p.Plain != 0 || next < p.Plain || next-p.Plain > blob.MaxUnit || p.Bits > 7 {
			return fmt.Errorf("point %d at %d, plain %d, with %d bits and a window of %d", i, p.Off, p.Plain, p.Bits, len(p.Window))
		}
	}
	return nil
}
