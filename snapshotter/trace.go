package snapshotter

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/cache"
)

// A Span is something that was done for an image and has taken time. Off and Len are bytes: of the
// blob for fetches, of the image for waits.
type Span struct {
	Kind     string // resolve, profile, index, import, image, mount, fetch, wait
	Digest   digest.Digest
	For      string // of a fetch: demand, prefetch or background
	Off, Len int64
	PID      int
	What     string
	Began    time.Time
	Took     time.Duration
	Err      error
}

// tracer hands spans to who listens. Without a listener nothing is measured for it.
type tracer struct {
	n   atomic.Int32
	mu  sync.Mutex // guards all
	all []*func(Span)
}

func (t *tracer) listen(fn func(Span)) (stop func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := &fn
	t.all = append(t.all, p)
	t.n.Add(1)
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.all = slices.DeleteFunc(t.all, func(x *func(Span)) bool { return x == p })
		t.n.Add(-1)
	}
}

// end tells of a span that has ended now.
func (t *tracer) end(began time.Time, s Span) {
	if t.n.Load() == 0 {
		return
	}
	s.Began, s.Took = began, time.Since(began)
	t.tell(s)
}

func (t *tracer) tell(s Span) {
	t.mu.Lock()
	all := slices.Clone(t.all)
	t.mu.Unlock()
	for _, fn := range all {
		(*fn)(s)
	}
}

// Trace calls fn with everything that is done from now on until stop is called. fn must return soon
// and may be called by several goroutines at once.
func (s *Snapshotter) Trace(fn func(Span)) (stop func()) {
	end := s.layers.tracer.listen(fn)
	unobserve := s.layers.cache.Observe(func(e cache.Event) {
		span := Span{
			Kind: "fetch", Digest: layerOf(e.ID), For: e.For, Off: e.Off, Len: e.Len, PID: e.PID, Began: e.Began, Took: e.Took, Err: e.Err,
		}
		if e.Kind == cache.Waited {
			span.Kind = "wait"
			span.What, _ = processOf(e.PID)
		}
		fn(span)
	})
	return func() { unobserve(); end() }
}

// layerOf returns the digest of a cached image's layer.
func layerOf(id string) digest.Digest {
	return digest.NewDigestFromEncoded(digest.SHA256, cache.ParseName(id).Blob)
}
