package fetch

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// An EventKind says what an Event tells of.
type EventKind string

// The kinds.
const (
	Fetched EventKind = "fetched" // a request to a source has ended
	Waited  EventKind = "waited"  // a reader has waited for missing bytes
)

// An Event is something that has taken time.
type Event struct {
	Kind     EventKind
	ID       string // of the image
	Off, Len int64  // of the blob if it was fetched, of the image if a reader waited
	For      string // Fetched: demand, prefetch or background
	PID      int    // Waited: of the process, 0 if it is not known
	Began    time.Time
	Took     time.Duration
	Err      error
}

// observers are told of events. Without any, nothing is measured for them.
type observers struct {
	n   atomic.Int32
	mu  sync.Mutex // guards all
	all []*observer
}

type observer struct{ fn func(Event) }

// Observe calls fn with each event from now on until stop is called. fn must return soon, and may
// be called by several goroutines together.
func (p *Pool) Observe(fn func(Event)) (stop func()) {
	o := &observer{fn}
	p.observers.mu.Lock()
	defer p.observers.mu.Unlock()
	p.observers.all = append(p.observers.all, o)
	p.observers.n.Add(1)
	return func() {
		p.observers.mu.Lock()
		defer p.observers.mu.Unlock()
		p.observers.all = slices.DeleteFunc(p.observers.all, func(x *observer) bool { return x == o })
		p.observers.n.Add(-1)
	}
}

func (o *observers) watched() bool { return o.n.Load() > 0 }

func (o *observers) tell(e Event) {
	o.mu.Lock()
	all := slices.Clone(o.all)
	o.mu.Unlock()
	for _, one := range all {
		one.fn(e)
	}
}
