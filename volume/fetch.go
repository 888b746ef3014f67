package volume

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/remora-storage/remora/internal/wire"
	"github.com/remora-storage/remora/remote/store"
)

const (
	fetchMost = 4 << 20  // bytes of one request
	fetchGap  = 64 << 10 // bytes that nobody asked for and that are fetched rather than making two requests

	partBlocks = 8 // blocks of a frame that are worth leaving out
)

// fetch reads extents that lie in segments, each into its part of the caller's memory.
func (v *Volume) fetch(ctx context.Context, stored []extent, part func(extent) []byte) error {
	if len(stored) == 0 {
		return nil
	}
	ahead := int64(0)
	if _, none := v.opts.Cache.(noCache); !none {
		ahead = v.streams.ahead(stored[0].lba, stored[len(stored)-1].end())
	}
	slices.SortFunc(stored, func(a, b extent) int {
		return cmp.Or(cmp.Compare(a.place.seg, b.place.seg), cmp.Compare(a.place.off, b.place.off))
	})
	for len(stored) > 0 {
		n := 1
		for n < len(stored) && stored[n].place.seg == stored[0].place.seg {
			n++
		}
		if err := v.fetchSegment(ctx, stored[:n], ahead, part); err != nil {
			return err
		}
		stored = stored[n:]
	}
	return nil
}

// fetchSegment is fetch for extents of one segment, in the order of their places.
func (v *Volume) fetchSegment(ctx context.Context, stored []extent, ahead int64, part func(extent) []byte) error {
	ref, err := v.segment(ctx, stored[0].place.seg)
	if err != nil {
		return err
	}
	key := ref.key(v.id)
	var missing []extent
	for _, e := range stored {
		if e.isPart() && v.fetchPart(ctx, key, ref, e, part(e)) {
			continue
		}
		buf := frames.get(int(frameSize(e.place.whole)))
		if !v.opts.Cache.ReadAt(key, *buf, e.place.off) || v.copyFrame(ref, e, *buf, part) != nil {
			missing = append(missing, e)
		}
		frames.put(buf)
	}
	for len(missing) > 0 {
		from, to := missing[0].place.off, missing[0].place.off+frameSize(missing[0].place.whole)
		n := 1
		for ; n < len(missing); n++ {
			p := missing[n].place
			end := p.off + frameSize(p.whole)
			if p.off > to+fetchGap || end-from > fetchMost {
				break
			}
			to = max(to, end)
		}
		if err := v.fetchRange(ctx, ref, missing[:n], from, to, ahead, part); err != nil {
			return err
		}
		missing = missing[n:]
	}
	return nil
}

// fetchRange makes one request.
func (v *Volume) fetchRange(ctx context.Context, ref SegmentRef, missing []extent, from, to, ahead int64, part func(extent) []byte) error {
	if to > int64(ref.Table) {
		return fmt.Errorf("segment %d: %w: a frame at %d to %d of %d bytes", ref.Seq, ErrCorrupt, from, to, ref.Table)
	}
	from &^= Block - 1 // whole pages are kept
	to = min((to+ahead+Block-1)&^(Block-1), int64(ref.Size))
	key := ref.key(v.id)
	var bad error
	for range 2 { // bytes may have been changed on their way
		var p []byte
		if err := v.wait.until(ctx, "read", func() (err error) {
			p, _, err = v.opts.Store.Get(ctx, key, from, to-from)
			return err
		}); err != nil {
			return err
		}
		bad = nil
		for _, e := range missing {
			off := e.place.off - from
			end := off + frameSize(e.place.whole)
			if end > int64(len(p)) {
				bad = fmt.Errorf("frame at %d of segment %d: %w: it is cut short", e.place.off, ref.Seq, ErrCorrupt)
				break
			}
			if bad = v.copyFrame(ref, e, p[off:end], part); bad != nil {
				break
			}
		}
		if bad == nil {
			v.opts.Cache.WriteAt(key, p, from)
			return nil
		}
	}
	return fmt.Errorf("%s: %w", key, bad)
}

// copyFrame checks the frame that an extent is of, and copies what the extent has of it.
func (v *Volume) copyFrame(ref SegmentRef, e extent, frame []byte, part func(extent) []byte) error {
	blocks, err := openFrame(frame, v.id, ref, e.place.off)
	if err != nil {
		return err
	}
	copy(part(e), blocks[int(e.place.skip)*Block:])
	if e.isPart() {
		v.sums.put(placeOf(ref, e), blocks)
	}
	return nil
}

// isPart reports whether an extent leaves so much of its frame out that it is worth reading without the rest.
func (e extent) isPart() bool { return e.place.whole-e.blocks >= partBlocks }

// fetchPart reads a part of a frame that was read as a whole before, from where that is cheap, and reports whether it could and
// the blocks are right. If not, p has nothing that is of use.
func (v *Volume) fetchPart(ctx context.Context, key string, ref SegmentRef, e extent, p []byte) bool {
	sums := v.sums.get(placeOf(ref, e))
	if sums == nil {
		return false
	}
	var ok bool
	off := e.place.off + frameHeader + int64(e.place.skip)*Block
	if v.opts.Near {
		got, _, err := v.opts.Store.Get(ctx, key, off, int64(len(p)))
		if err != nil { // asking for the frame will say so again
			return false
		}
		ok = copy(p, got) == len(p)
	} else {
		ok = v.opts.Cache.ReadAt(key, p, off)
	}
	for i := 0; ok && i < int(e.blocks); i++ {
		ok = wire.Sum(p[i*Block:][:Block]) == sums[int(e.place.skip)+i]
	}
	return ok
}

// segment returns a segment by its number.
func (v *Volume) segment(ctx context.Context, seq uint64) (SegmentRef, error) {
	v.mu.RLock()
	ref, ok := v.tailSegs[seq]
	root := v.root.Segments
	v.mu.RUnlock()
	if ok {
		return ref, nil
	}
	use, err := v.nodes.segment(ctx, root, seq)
	if errors.Is(err, ErrCorrupt) {
		// The map has moved on since the extent was looked up, or it is wrong. Looking again tells which.
		err = fmt.Errorf("%w: %w", err, store.ErrNoObject)
	}
	return use.SegmentRef, err
}

// framePool holds buffers of frames.
type framePool struct{ sync.Pool }

var frames = framePool{sync.Pool{New: func() any {
	p := make([]byte, frameSize(maxFrame))
	return &p
}}}

func (f *framePool) get(n int) *[]byte {
	p := f.Get().(*[]byte)
	*p = (*p)[:n]
	return p
}

func (f *framePool) put(p *[]byte) { f.Put(p) }

// streams notices who reads in order.
type streams struct {
	mu   sync.Mutex // guards the fields below
	ends [16]stream
	next int
}

type stream struct {
	end   uint64 // block behind the last read
	ahead int64  // bytes
}

const mostAhead = 4 << 20

// ahead returns how many bytes more than asked for are worth fetching for a read of [lo, hi).
func (s *streams) ahead(lo, hi uint64) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.ends {
		st := &s.ends[i]
		if st.end != 0 && lo >= st.end && lo <= st.end+maxFrame {
			st.end = hi
			st.ahead = min(max(2*st.ahead, int64(hi-lo)*Block), mostAhead)
			return st.ahead
		}
	}
	s.ends[s.next] = stream{end: hi}
	s.next = (s.next + 1) % len(s.ends)
	return 0
}
