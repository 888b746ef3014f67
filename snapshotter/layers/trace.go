package layers

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
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

// A Tracer hands spans to who listens. Without a listener nothing is measured for it.
type Tracer struct {
	n   atomic.Int32
	mu  sync.Mutex // guards all
	all []*func(Span)
}

// Listen calls fn with every span from now on until stop is called.
func (t *Tracer) Listen(fn func(Span)) (stop func()) {
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

// Ended tells of a span that has ended now.
func (t *Tracer) Ended(began time.Time, s Span) {
	if t.n.Load() == 0 {
		return
	}
	s.Began, s.Took = began, time.Since(began)
	t.tell(s)
}

func (t *Tracer) tell(s Span) {
	t.mu.Lock()
	all := slices.Clone(t.all)
	t.mu.Unlock()
	for _, fn := range all {
		(*fn)(s)
	}
}
