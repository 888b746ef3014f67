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
	turn chan struct{} // held by the request that looks, for all that wait

	mu      sync.Mutex // guards the fields below
	alone   []*func() bool
	changed chan struct{} // closed, and made anew, when alone changes
	begun   uint64        // looks
	last    looked
}

// looked is what one look has found.
type looked struct {
	number  uint64 // of the look, from 1 on
	own     bool
	asked   bool            // there was somebody to ask
	changed <-chan struct{} // closed when others are to be asked
}

// NewQuiet returns a Quiet of a device that others may use.
func NewQuiet() *Quiet {
	return &Quiet{turn: make(chan struct{}, 1), changed: make(chan struct{})}
}

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

// look calls found once the device is its node's own, unless ctx ends before. A look scans the machine, so one looks for all that wait.
func (q *Quiet) look(ctx context.Context, found func()) {
	for known := q.looks(); ; {
		l, ok := q.lookAfter(ctx, known)
		if !ok {
			return
		}
		if l.own {
			found()
			return
		}
		known = l.number
		again := time.NewTimer(quietLooks)
		if !l.asked {
			again.Stop()
		}
		select {
		case <-again.C:
		case <-l.changed:
		case <-ctx.Done():
		}
		again.Stop()
	}
}

// looks returns how many have begun.
func (q *Quiet) looks() uint64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.begun
}

// lookAfter returns what was found by a look that began after a number of them, unless ctx ends before there is one.
func (q *Quiet) lookAfter(ctx context.Context, number uint64) (l looked, ok bool) {
	select {
	case q.turn <- struct{}{}:
		defer func() { <-q.turn }()
	case <-ctx.Done():
		return l, false
	}
	q.mu.Lock()
	if q.last.number > number && q.last.changed == q.changed {
		defer q.mu.Unlock()
		return q.last, true
	}
	q.begun++
	l = looked{number: q.begun, asked: len(q.alone) > 0, changed: q.changed}
	alone := slices.Clone(q.alone)
	q.mu.Unlock()
	l.own = slices.ContainsFunc(alone, func(is *func() bool) bool { return (*is)() })
	q.mu.Lock()
	defer q.mu.Unlock()
	q.last = l
	return l, true
}
