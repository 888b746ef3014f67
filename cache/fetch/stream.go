package fetch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/remora-storage/remora/cache/blob"
	"github.com/remora-storage/remora/internal/fair"
	"github.com/remora-storage/remora/internal/memory"
)

// A room is the memory in which a unit is decoded.
type room struct {
	share  *memory.Share
	window int64 // of it, for the decoder
}

// memoryFor waits for the memory that a unit takes on its way: its decoder's, what of it is decoded, and what is held of its packed bytes.
// head is its first bytes, or nil if it is decoded as it comes however small it is. Memory is waited for before the other packed bytes
// are, so that nobody that has memory waits for more.
func (f *Fetcher) memoryFor(ctx context.Context, unit uint32, head []byte) (room, error) {
	plain, packedToo := f.img.PlainBytes(unit)
	size := f.t.Unit(unit).Len
	packed, window := size, f.t.Codec.Window(head)
	if head == nil || size > maxHeld {
		packed, window = min(size, stepBytes), f.t.Codec.MaxWindow() // it is decoded by steps, and once: whatever its frames need
	}
	if packedToo {
		packed += size // its decoder has a copy
	}
	share, err := f.Memory(ctx, plain+packed+window)
	if err != nil {
		return room{}, fmt.Errorf("decode unit %d of %d packed bytes: %w", unit, size, err)
	}
	return room{share, window}, nil
}

// readHead reads the first bytes of a unit, by which its decoder is chosen.
func readHead(codec blob.Codec, size int64, packed io.Reader) ([]byte, error) {
	head := make([]byte, min(int64(codec.HeadSize()), size))
	_, err := io.ReadFull(packed, head)
	return head, err
}

// Memory waits for bytes of memory, as others do that read from the image's source. Who has them waits for no fetch: that waits
// for memory, too.
func (f *Fetcher) Memory(ctx context.Context, n int64) (*memory.Share, error) {
	return f.pool.memory.Acquire(ctx, f.user(ctx), n)
}

// user returns who shares with others what the image's units take.
func (f *Fetcher) user(ctx context.Context) fair.User {
	host, user := placeOf(f.source(ctx))
	return fair.User(host + "/" + user)
}

// decode decodes a unit and reads packed to its end. All of the plain bytes go to also, if that is not nil.
func (f *Fetcher) decode(unit uint32, packed io.Reader, also io.Writer, in *room) (plain []byte, err error) {
	room := blob.Room{Window: in.window, More: in.share.More}
	if plain, err = f.img.Decode(unit, packed, also, room); err != nil {
		return nil, fmt.Errorf("unit %d at %d: %w", unit, f.t.Unit(unit).Off, err)
	}
	_, err = io.Copy(io.Discard, packed)
	return plain, err
}

// decodeHeld decodes a unit whose packed bytes are here. If a later frame of it needs a larger window than the first, that is
// asked for, without the place: those that have the memory may wait for it.
func (f *Fetcher) decodeHeld(ctx context.Context, unit uint32, packed []byte, in *room, place *place) (plain []byte, err error) {
	plain, err = f.decode(unit, bytes.NewReader(packed), nil, in)
	most := f.t.Codec.MaxWindow()
	if !errors.Is(err, blob.ErrWindow) {
		return plain, err
	}
	place.give()
	if err := in.share.Grow(ctx, most-in.window); err != nil {
		return nil, fmt.Errorf("decode unit %d: %w", unit, err)
	}
	if err := place.take(); err != nil {
		return nil, err
	}
	in.window = most
	return f.decode(unit, bytes.NewReader(packed), nil, in)
}

// fillLocally fills a unit from extents with the same digests, in this image or another, and
// reports whether that gave all of it.
func (f *Fetcher) fillLocally(ctx context.Context, one *fill) (bool, error) {
	if !f.img.IsElsewhere(one.unit) {
		return false, nil
	}
	share, err := f.Memory(ctx, f.img.Table().UnitBytes(one.unit))
	if err != nil {
		return false, fmt.Errorf("copy unit %d from another layer: %w", one.unit, err)
	}
	defer func() { share.Release() }()
	if one.parts = f.img.Elsewhere(one.unit); one.parts == nil {
		return false, nil
	}
	f.store(one)
	share.Release()
	f.img.Guess(one.unit, func(n int64) bool {
		share, err = f.Memory(ctx, n)
		return err == nil // what is not supposed is fetched
	})
	f.pool.metrics.localUnits.Inc()
	return true, nil
}

// store writes a filled unit's extents to the image, as far as there is room.
func (f *Fetcher) store(one *fill) {
	n, at := f.t.UnitExtents(one.unit)
	for k := range n {
		i := at(k)
		if f.img.Has(i) {
			continue
		}
		e := f.t.Extent(i)
		if b := one.extentBytes(i, &e); b != nil {
			f.img.Put(i, b)
		}
	}
}

// A Stretches makes several Streams of one image, each behind the last. Where no range is to be had, one request serves all. It must be
// closed, and is for one goroutine.
type Stretches struct {
	f     *Fetcher
	whole io.ReadCloser // of the blob; nil as long as no range was refused
	in    countingReader
}

// Stretches returns one that has asked for nothing yet.
func (f *Fetcher) Stretches() *Stretches { return &Stretches{f: f} }

// Close ends the request that serves all.
func (s *Stretches) Close() error {
	if s.whole == nil {
		return nil
	}
	return s.whole.Close()
}

// open opens a range of a source, or where none is to be had all of it, behind what comes before.
func (s *Stretches) open(ctx context.Context, src Source, off, n int64) (io.ReadCloser, error) {
	if s.whole == nil {
		r, err := src.Open(ctx, off, n, 0)
		whole := onlyWhole(src, err)
		if whole == nil {
			return r, err
		}
		if s.whole, err = whole.Whole(ctx, 0); err != nil {
			return nil, err
		}
		s.in.r = s.whole
	}
	if _, err := io.CopyN(io.Discard, &s.in, off-s.in.n); err != nil {
		return nil, err
	}
	return io.NopCloser(&s.in), nil
}

// Stream reads units [from, to) by one request, stores their extents, and writes the packed
// and the plain bytes to where they are wanted. progress, if not nil, is told how many bytes were read so far.
func (s *Stretches) Stream(ctx context.Context, from, to uint32, packed, plain io.Writer, progress func(int64)) error {
	f := s.f
	src := f.source(ctx)
	if src == nil {
		return errors.New("no source for this image")
	}
	t := f.pool.scheds.enter(src, prefetch)
	defer t.release()
	if err := t.wait(ctx); err != nil {
		return err
	}
	first, last := f.t.Unit(from), f.t.Unit(to-1)
	r, err := s.open(ctx, src, first.Off, last.Off+last.Len-first.Off)
	if err != nil {
		return err
	}
	defer r.Close()
	in := &countingReader{r: r}
	defer func() {
		f.fetched.Add(in.n)
		f.pool.metrics.fetchBytes.Add(float64(in.n))
	}()
	for u := from; u < to; u++ {
		one := io.Reader(&io.LimitedReader{R: in, N: f.t.Unit(u).Len})
		if packed != nil {
			one = io.TeeReader(one, packed)
		}
		if _, err := f.streamUnit(ctx, u, one, plain); err != nil {
			return err
		}
		if progress != nil {
			progress(f.t.Unit(u).Off + f.t.Unit(u).Len - first.Off)
		}
	}
	return nil
}

// streamUnit decodes, stores and returns one unit of a stream. It has a place while it decodes, and none while it waits for packed.
func (f *Fetcher) streamUnit(ctx context.Context, u uint32, packed io.Reader, also io.Writer) ([]byte, error) {
	in, err := f.memoryFor(ctx, u, nil)
	if err != nil {
		return nil, err
	}
	defer in.share.Release()
	place := f.pool.placeFor(ctx, f.user(ctx), prefetch)
	defer place.give()
	plain, err := f.decode(u, place.steps(packed, f.t.Unit(u).Len), also, &in)
	if err != nil {
		return nil, err
	}
	f.store(&fill{unit: u, plain: plain})
	return plain, nil
}
