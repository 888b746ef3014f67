package fetch

import (
	"context"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/remora-storage/remora/cache/image"
)

// A Source supplies the bytes of a blob. It must be safe for concurrent use and return soon
// after ctx ends.
type Source interface {
	// Open returns exactly the n bytes of the blob from off, or the reader fails. try counts
	// from 0 the attempts to get these bytes right: a source that has several places to read
	// from takes another one each time.
	Open(ctx context.Context, off, n int64, try int) (io.ReadCloser, error)
}

// A Doubted source is told of bytes that stay wrong, wherever they come from: what says their digests may lie. Doubt returns soon.
type Doubted interface {
	Doubt()
}

// A Placed source says where its bytes come from, and for whom. Requests to one host are counted together, and its users share
// them, so that neither a host that does not answer nor one user of it holds up others.
type Placed interface {
	Place() (host, user string)
}

// A Shared source is several places that have a blob. Each of those that share an image asks its own one first.
type Shared interface {
	// For returns a source that asks what who has first.
	For(who any) Source
}

type asker struct{}

// AskedBy returns a context of fetches that are made for one of those that share an image.
func AskedBy(ctx context.Context, who any) context.Context {
	return context.WithValue(ctx, asker{}, who)
}

// A Fetcher brings what one image lacks.
type Fetcher struct {
	pool *Pool
	img  *image.Image
	t    *image.Table // of img

	fetched atomic.Int64 // bytes taken from the source since the daemon started

	mu       sync.Mutex // guards the fields below; taken before the image's
	src      Source
	policy   Policy
	trouble  error // why the source does not answer; nil while it does
	inflight map[uint32]*fill
	pass     *pass // over all of the blob; nil for none
	closing  bool  // no fetch begins from now on
	ahead    readahead
	waits    int64 // reads that waited for the network
	waited   time.Duration
}

// Fetcher returns one for an image, whose blob src supplies. Close must be called before Wait.
func (p *Pool) Fetcher(img *image.Image, src Source, policy Policy) *Fetcher {
	return &Fetcher{pool: p, img: img, t: img.Table(), src: src, policy: policy, inflight: map[uint32]*fill{}}
}

// Close ends all fetches, and waits for them. None begins later.
func (f *Fetcher) Close(cause error) {
	f.mu.Lock()
	f.closing = true
	p := f.pass
	f.mu.Unlock()
	jobs := f.jobs()
	for j := range jobs {
		j.cancel(cause)
	}
	for j := range jobs {
		<-j.ended
	}
	if p != nil {
		p.cancel(cause)
		<-p.done
	}
}

// Await waits for all fetches that are under way.
func (f *Fetcher) Await() {
	for j := range f.jobs() {
		<-j.ended
	}
	f.mu.Lock()
	p := f.pass
	f.mu.Unlock()
	if p != nil {
		<-p.done
	}
}

// jobs returns the fetches that are under way.
func (f *Fetcher) jobs() map[*job]bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	jobs := map[*job]bool{}
	for _, one := range f.inflight {
		jobs[one.job] = true
	}
	return jobs
}

// SetSource replaces where missing extents come from.
func (f *Fetcher) SetSource(src Source) {
	f.mu.Lock()
	f.src = src
	f.mu.Unlock()
}

// source returns where missing extents come from for who asks.
func (f *Fetcher) source(ctx context.Context) Source {
	f.mu.Lock()
	defer f.mu.Unlock()
	return forAsker(ctx, f.src)
}

// forAsker returns a source as the one asks it for whom a context is.
func forAsker(ctx context.Context, src Source) Source {
	who := ctx.Value(asker{})
	if shared, ok := src.(Shared); ok && who != nil {
		return shared.For(who)
	}
	return src
}

// SetPolicy says what becomes of reads while the source does not answer.
func (f *Fetcher) SetPolicy(p Policy) {
	f.mu.Lock()
	f.policy = p.WithDefaults()
	f.mu.Unlock()
}

// AddFetched counts bytes that the caller took from the source for this image.
func (f *Fetcher) AddFetched(n int64) { f.fetched.Add(n) }

// Counts are a Fetcher's numbers since the daemon started.
type Counts struct {
	Fetched int64         // bytes taken from the source
	Waits   int64         // reads that waited for the network
	Waited  time.Duration // how long, all together
}

// Counts returns the numbers.
func (f *Fetcher) Counts() Counts {
	f.mu.Lock()
	defer f.mu.Unlock()
	return Counts{Fetched: f.fetched.Load(), Waits: f.waits, Waited: f.waited}
}

// Wants reports whether fetching a unit would bring anything that is neither here nor on its way.
func (f *Fetcher) Wants(u uint32) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return int(u) < f.t.NUnits && !f.img.Removed() && f.wantedLocked(u)
}
