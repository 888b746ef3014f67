package volume

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

// A Quiet knows when a volume's device is its node's own: while a detach, an unmount or a check of its file system is under way and no
// program uses the device. Nobody is promised anything then. So a flush is answered when the journal has everything, whatever the class,
// and nothing waits for the lease: what the kernel still writes would wait for a store that is away, and the machine with it. Giving the
// volume up still needs everything in the store; whoever abandons it to the journal finds it there.
type Quiet struct {
	mu      sync.Mutex // guards the fields below
	alone   []*func() bool
	changed chan struct{} // closed, and made anew, when alone changes
}

// NewQuiet returns a Quiet of a device that others may use.
func NewQuiet() *Quiet { return &Quiet{changed: make(chan struct{})} }

// quietLooks is how often it is looked whether a device has become its node's own.
const quietLooks = 100 * time.Millisecond

var errQuiet = errors.New("only this node uses the device")

// Begin says that the device is its node's own whenever alone says so, until end is called. It is asked after a request has come and
// before that is answered, so it must say no where a program's request may be under way.
func (q *Quiet) Begin(alone func() bool) (end func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.alone = append(q.alone, &alone)
	q.tellLocked()
	return func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		q.alone = slices.DeleteFunc(q.alone, func(a *func() bool) bool { return a == &alone })
		q.tellLocked()
	}
}

func (q *Quiet) tellLocked() {
	close(q.changed)
	q.changed = make(chan struct{})
}

// now returns whom to ask whether the device is its node's own, and what is closed when that is another.
func (q *Quiet) now() (alone []*func() bool, changed <-chan struct{}) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.Clone(q.alone), q.changed
}

// Or returns what wait does, which is something that a request waits for. Where the device becomes its node's own meanwhile, it ends
// wait's context, and own says that the request needs no more than the journal. wait must return the cause with which its context ended.
func (q *Quiet) Or(ctx context.Context, wait func(context.Context) error) (own bool, err error) {
	inner, stop := context.WithCancelCause(ctx)
	var looking sync.WaitGroup
	looking.Go(func() { q.look(inner, func() { stop(errQuiet) }) })
	err = wait(inner)
	stop(nil)
	looking.Wait()
	if errors.Is(err, errQuiet) {
		return true, nil
	}
	return false, err
}

// look calls found once the device is its node's own, unless ctx ends before.
func (q *Quiet) look(ctx context.Context, found func()) {
	for {
		alone, changed := q.now()
		if slices.ContainsFunc(alone, func(is *func() bool) bool { return (*is)() }) {
			found()
			return
		}
		var again <-chan time.Time
		if len(alone) > 0 {
			t := time.NewTimer(quietLooks)
			defer t.Stop()
			again = t.C
		}
		select {
		case <-again:
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}
