package layers

import (
	"cmp"
	"context"
	"io"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/fs/annotation"
	"github.com/remora-storage/remora/internal/fair"
	"github.com/remora-storage/remora/internal/memory"
)

// An Ahead is the beginning of a layer's blob on its way while the layer's index is, too: where a
// manifest says how much of the blob the program needs when it starts, a round trip and the decoding
// of the index need not be waited for. The bytes are held packed; the cache decodes and checks them
// once it knows what they are.
type Ahead struct {
	digest digest.Digest // of the layer
	blob   Blob
	buf    []byte
	share  *memory.Share // of buf
	user   fair.User

	mu    sync.Mutex // guards the fields below
	more  *sync.Cond
	got   []int64 // bytes that came of each piece
	over  []bool  // no more will come of it
	taken int64   // bytes that were read
}

const (
	maxAhead = 32 << 20 // packed bytes of one layer
	// Of all layers together, of those of one registry, and of one repository.
	maxAheadBytes, maxAheadOfOne, maxAheadWithin = 144 << 20, 108 << 20, 96 << 20

	aheadPiece   = 512 << 10
	aheadAtOnce  = 8 // requests of one start
	aheadBesides = 4 // while indexes are on their way, which everything else waits for
)

// Aheads are all of them.
type Aheads struct {
	promises *promises
	places   *Places
	memory   *memory.Budget
	tracer   *Tracer

	mu     sync.Mutex        // guards the fields below; taken before ahead.mu
	all    map[string]*Ahead // by promises.KeyOf
	shares fair.Tiers        // of bytes
}

// Add makes an Ahead of a layer if the manifest says how much of it a start needs; nil otherwise.
func (a *Aheads) Add(s *Source) *Ahead {
	n, err := strconv.ParseInt(s.Descriptor.Annotations[annotation.StartSize], 10, 64)
	if err != nil || n <= 0 || n >= s.Descriptor.Size {
		return nil
	}
	n = min(n, maxAhead)
	d, key := s.Descriptor.Digest, a.promises.KeyOf(s)
	a.mu.Lock()
	defer a.mu.Unlock()
	who := userOf(s.Repo)
	if a.all[key] != nil || !a.shares.Room(who, n) {
		return nil
	}
	share, ok := a.memory.Try(who, n)
	if !ok {
		return nil // it would only save time
	}
	pieces := (n + aheadPiece - 1) / aheadPiece
	one := &Ahead{
		digest: d, blob: a.places.blob(s), buf: make([]byte, n), share: share, user: who, got: make([]int64, pieces), over: make([]bool, pieces),
	}
	one.more = sync.NewCond(&one.mu)
	a.all[key] = one
	a.shares.Add(who, n)
	return one
}

// source returns what a layer's image is filled from.
func (a *Aheads) source(key string, otherwise Blob) placedSource {
	a.mu.Lock()
	defer a.mu.Unlock()
	if one := a.all[key]; one != nil {
		return one
	}
	return otherwise
}

// Drop lets go of a layer's beginning, if there is one, and returns how many bytes of it came that nobody wanted.
func (a *Aheads) Drop(s *Source) (wasted int64, ok bool) {
	key := a.promises.KeyOf(s)
	a.mu.Lock()
	defer a.mu.Unlock()
	one := a.all[key]
	if one == nil {
		return 0, false
	}
	delete(a.all, key)
	a.shares.Add(one.user, -int64(len(one.buf)))
	one.share.Release()
	one.mu.Lock()
	defer one.mu.Unlock()
	for _, n := range one.got {
		wasted += n
	}
	return max(wasted-one.taken, 0), true
}

// Fetch fetches the beginnings of several layers, all of them at the same pace: what a program
// reads first lies first in each. opened is closed when the indexes are here.
func (a *Aheads) Fetch(ctx context.Context, all []*Ahead, opened <-chan struct{}) {
	type piece struct {
		a *Ahead
		i int
	}
	var pieces []piece
	for _, a := range all {
		for i := range a.got {
			pieces = append(pieces, piece{a, i})
		}
	}
	share := func(p piece) float64 { return float64(p.i) / float64(len(p.a.got)) }
	slices.SortStableFunc(pieces, func(x, y piece) int { return cmp.Compare(share(x), share(y)) })
	var group sync.WaitGroup
	defer group.Wait()
	slots := make(chan struct{}, aheadAtOnce)
	for range aheadAtOnce - aheadBesides {
		slots <- struct{}{}
	}
	group.Go(func() {
		select {
		case <-opened:
		case <-ctx.Done():
		}
		for range aheadAtOnce - aheadBesides {
			<-slots
		}
	})
	for _, p := range pieces {
		slots <- struct{}{}
		group.Go(func() {
			defer func() { <-slots }()
			began := time.Now()
			// Who needs the bytes asks for them again, and sees why they do not come.
			n, err := p.a.fetch(ctx, p.i)
			a.tracer.Ended(began, Span{Kind: "ahead", Digest: p.a.digest, Off: int64(p.i) * aheadPiece, Len: n, Err: err})
		})
	}
}

// fetch fetches a piece, as far as it comes.
func (a *Ahead) fetch(ctx context.Context, i int) (n int64, err error) {
	off := int64(i) * aheadPiece
	p := a.buf[off:min(off+aheadPiece, int64(len(a.buf)))]
	defer func() {
		a.mu.Lock()
		a.over[i] = true
		a.mu.Unlock()
		a.more.Broadcast()
	}()
	r, err := a.blob.Open(ctx, off, int64(len(p)), 0)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	for n < int64(len(p)) {
		k, err := r.Read(p[n:])
		n += int64(k)
		a.mu.Lock()
		a.got[i] = n
		a.mu.Unlock()
		a.more.Broadcast()
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// Place implements cache.Placed.
func (a *Ahead) Place() (host, user string) { return a.blob.Place() }

// Link implements cache.Measured.
func (a *Ahead) Link() (time.Duration, int64) { return a.blob.Link() }

// Whole implements Blob's method of that name.
func (a *Ahead) Whole(ctx context.Context) (io.ReadCloser, error) { return a.blob.Whole(ctx) }

// Open implements cache.Source.
func (a *Ahead) Open(ctx context.Context, off, n int64, try int) (io.ReadCloser, error) {
	if try > 0 || off >= int64(len(a.buf)) {
		return a.blob.Open(ctx, off, n, try)
	}
	r := &aheadReader{ctx: ctx, a: a, off: off, end: off + n}
	r.stop = context.AfterFunc(ctx, a.more.Broadcast)
	return r, nil
}

// aheadReader reads what has come, waits for what comes, and asks for the rest.
type aheadReader struct {
	ctx      context.Context // of Open: the reader is one operation
	a        *Ahead
	off, end int64
	rest     io.ReadCloser
	stop     func() bool
}

func (r *aheadReader) Read(p []byte) (int, error) {
	if r.off == r.end {
		return 0, io.EOF
	}
	if r.rest == nil {
		if n, err := r.held(p); n > 0 || err != nil {
			return n, err
		}
		rest, err := r.a.blob.Open(r.ctx, r.off, r.end-r.off, 0)
		if err != nil {
			return 0, err
		}
		r.rest = rest
	}
	n, err := r.rest.Read(p)
	r.off += int64(n)
	return n, err
}

// held reads from memory; 0 says that no more will come there.
func (r *aheadReader) held(p []byte) (int, error) {
	if r.off >= int64(len(r.a.buf)) {
		return 0, nil
	}
	i := r.off / aheadPiece
	at := r.off - i*aheadPiece
	r.a.mu.Lock()
	defer r.a.mu.Unlock()
	for r.a.got[i] <= at && !r.a.over[i] {
		if err := context.Cause(r.ctx); err != nil {
			return 0, err
		}
		r.a.more.Wait()
	}
	if r.a.got[i] <= at {
		return 0, nil
	}
	n := copy(p[:min(int64(len(p)), r.end-r.off)], r.a.buf[r.off:i*aheadPiece+r.a.got[i]])
	r.off += int64(n)
	r.a.taken += int64(n)
	return n, nil
}

func (r *aheadReader) Close() error {
	r.stop()
	if r.rest == nil {
		return nil
	}
	return r.rest.Close()
}
