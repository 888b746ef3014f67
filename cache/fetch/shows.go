package fetch

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sort"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/remora-storage/remora/cache/blob"
	"github.com/remora-storage/remora/cache/image"
	"github.com/remora-storage/remora/internal/fair"
)

// A blob's digest is known to many that do not have the blob. A source shows that it has one by a few units of it that nobody could
// foresee. Half of them are drawn by number and half by where they lie: those that have all of a layer's small files and not its
// large one, or the other way around, have not the layer. The same ones are asked for each time, whoever the source is, as long as
// this process lives, so that to try again gains nobody anything. Units that anybody can guess count for nothing, and others take their
// places: which ones those are is seen when they are here.

const (
	shownUnits = 4  // of a blob show that a source has it
	drawnUnits = 16 // at most are looked at for that
)

// ErrNotByParts says that no part of a blob shows that a source has it, but all of it would.
var ErrNotByParts = errors.New("no part of it can be compared")

// A Content says what is in the units of a blob.
type Content struct {
	Codec blob.Codec
	Units int
	Unit  func(u int) blob.Unit
	Bytes func(u int) int64 // of all its extents
	Part  func(u int) (image.Part, error)
}

// A Sample is a few units of a blob.
type Sample struct {
	codec blob.Codec
	parts []image.Part // in the order in which they are asked for
}

// Sample draws a few units of a blob, for a name of it and of what says what is in it. An error that wraps ErrNotByParts says that this
// blob must be read whole to know whether a source has it.
func (p *Pool) Sample(name string, c *Content) (*Sample, error) {
	s := &Sample{codec: c.Codec}
	for _, u := range p.choose(name, c) {
		part, err := c.Part(u)
		if err != nil {
			return nil, err
		}
		s.parts = append(s.parts, part)
	}
	if len(s.parts) == 0 {
		return nil, ErrNotByParts
	}
	return s, nil
}

// ContentOf says what is in the units of an image's blob.
func ContentOf(m *image.Image) *Content {
	t := m.Table()
	return &Content{
		Codec: t.Codec, Units: t.NUnits,
		Unit:  func(u int) blob.Unit { return t.Unit(uint32(u)) },
		Bytes: func(u int) int64 { return t.UnitBytes(uint32(u)) },
		Part:  func(u int) (image.Part, error) { return image.PartOf(m, uint32(u)) },
	}
}

// Shows returns nil if a source serves some units of a blob as they are. It is asked for them side by side. An error that wraps
// blob.ErrBytes says that it serves others, one that wraps ErrNotByParts that anybody could have served these.
func (p *Pool) Shows(ctx context.Context, src Source, s *Sample) error {
	shown := 0
	for rest := s.parts; shown < shownUnits && len(rest) > 0; {
		n := min(shownUnits-shown, len(rest))
		some, err := p.showAll(ctx, src, s.codec, rest[:n])
		if err != nil {
			return err
		}
		shown, rest = shown+some, rest[n:]
	}
	if shown == 0 || shown < shownUnits && len(s.parts) == drawnUnits {
		return ErrNotByParts
	}
	return nil
}

// showAll compares some units side by side, and returns how many of them show something.
func (p *Pool) showAll(ctx context.Context, src Source, codec blob.Codec, parts []image.Part) (int, error) {
	var shown atomic.Int64
	showing, ctx := errgroup.WithContext(ctx)
	for i := range parts {
		part := &parts[i]
		showing.Go(func() error {
			shows, err := p.show(ctx, src, codec, part)
			if err != nil {
				return fmt.Errorf("compare what lies at %d+%d: %w", part.Unit.Off, part.Unit.Len, err)
			}
			if shows {
				shown.Add(1)
			}
			return nil
		})
	}
	err := showing.Wait()
	return int(shown.Load()), err
}

// choose returns some units of a blob, different ones, that may show something; all that do if they are few.
func (p *Pool) choose(name string, c *Content) (units []int) {
	if c.Codec == blob.Whole || c.Units == 0 {
		return nil
	}
	last := c.Unit(c.Units - 1)
	for i := range drawnUnits {
		u, at := 0, p.draw(name, i)
		if i%2 == 0 {
			u = int(at % uint64(c.Units))
		} else {
			off := int64(at % uint64(last.Off+last.Len))
			u = sort.Search(c.Units-1, func(u int) bool { return c.Unit(u+1).Off > off })
		}
		for range c.Units { // the next one that is of use
			if image.MayShow(c.Bytes(u)) && !slices.Contains(units, u) {
				units = append(units, u)
				break
			}
			u = (u + 1) % c.Units
		}
	}
	return units
}

// draw returns the i-th number for a name. Nobody outside can tell it before it is used.
func (p *Pool) draw(name string, i int) uint64 {
	mac := hmac.New(sha256.New, p.key[:])
	fmt.Fprintf(mac, "%d %s", i, name)
	return binary.LittleEndian.Uint64(mac.Sum(nil))
}

// show compares one unit, and reports whether that shows something.
func (p *Pool) show(ctx context.Context, src Source, codec blob.Codec, part *image.Part) (shows bool, err error) {
	host, user := placeOf(src)
	who := fair.User(host + "/" + user)
	r, err := src.Open(ctx, part.Unit.Off, part.Unit.Len, 0)
	if err != nil {
		return false, err
	}
	defer r.Close() // only read
	head := make([]byte, min(int64(codec.HeadSize()), part.Unit.Len))
	if _, err := io.ReadFull(r, head); err != nil {
		return false, err
	}
	window := codec.Window(head)
	share, err := p.memory.Acquire(ctx, who, part.Unit.Len+part.PlainBytes()+window)
	if err != nil {
		return false, err
	}
	defer share.Release()
	packed := make([]byte, part.Unit.Len)
	if _, err := io.ReadFull(r, packed[copy(packed, head):]); err != nil {
		return false, err
	}
	p.metrics.fetchBytes.Add(float64(len(packed)))
	compare := func() (bool, error) {
		done, err := p.decoding.Acquire(ctx, who)
		if err != nil {
			return false, err
		}
		defer done()
		return part.Compare(codec, bytes.NewReader(packed), window)
	}
	if shows, err = compare(); !errors.Is(err, blob.ErrWindow) {
		return shows, err
	}
	if err := share.Grow(ctx, codec.MaxWindow()-window); err != nil {
		return false, err
	}
	window = codec.MaxWindow()
	return compare()
}
