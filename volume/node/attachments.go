package node

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/remora-storage/remora/volume"
)

// Hands do with one volume what was decided. One of them works at a time, each with a context that ends when the Attachments are
// closed, not when a caller leaves.
type Hands interface {
	// Open takes the volume for this node, and tells what it waits for. When stop is closed it may come back with any error,
	// unless the volume was taken. volume.ErrHalfTaken has Leave find out whose the volume is.
	Open(ctx context.Context, how How, stop <-chan struct{}, tell func(string)) error
	// Export gives the kernel the volume's block device. It fails if the volume has failed.
	Export(ctx context.Context) error
	// Withdraw takes the device away. It fails if somebody uses it.
	Withdraw(ctx context.Context) error
	// Leave gives the volume up when its store has everything. When stop is closed it may come back with ErrKept if the volume
	// still works and is this node's.
	Leave(ctx context.Context, stop <-chan struct{}) error
	// Abandon gives the volume up with what the store lacks in this node's journal.
	Abandon(ctx context.Context) error
}

// Attachments are the volumes that this node has to do with. Methods are safe for concurrent use.
type Attachments struct {
	ctx   context.Context
	stop  context.CancelFunc
	begun sync.WaitGroup // what Close waits for

	mu      sync.Mutex // guards the fields below, and all of volumes
	closed  bool
	volumes map[volume.ID]*attachment
	jobs    map[volume.ID]*job
	callers int // so far
}

// attachment is one volume. There is one as long as it is not wholly absent.
type attachment struct {
	machine
	id      volume.ID
	hands   Hands
	told    chan struct{} // closed when doing is not wanted
	waiting map[int]waiter
}

// waiter is what a caller is told by.
type waiter struct {
	says   chan string // what the volume waits for; what finds no room is left out
	answer chan error  // room for one
}

// mostClosing is how long a shutdown waits for what is under way. The next process goes on with the rest.
const mostClosing = 10 * time.Second

// errClosed says that remorad is ending: what was begun goes on with the next one.
var errClosed = errors.New("remorad is ending")

// New returns Attachments without any. Close must be called.
func New() *Attachments {
	a := &Attachments{volumes: map[volume.ID]*attachment{}, jobs: map[volume.ID]*job{}}
	a.ctx, a.stop = context.WithCancel(context.Background())
	return a
}

// Adopt takes over a volume that an earlier process had taken. Where its device is not there any more nobody uses it, and it is
// given up.
func (a *Attachments) Adopt(id volume.ID, hands Hands, device bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	v := a.ofLocked(id, hands)
	v.owned, v.device = true, device
	if device {
		v.want = attached
	}
	a.doLocked(v, v.settle(nil))
}

// Attach returns when a volume is this node's and has its device. It joins what is under way: nothing is done twice. When ctx ends
// the volume is let go again if nobody else waits for it.
func (a *Attachments) Attach(ctx context.Context, id volume.ID, hands Hands, how How, tell func(string)) error {
	return a.call(ctx, id, hands, caller{want: attached, how: how}, tell)
}

// Detach returns when a volume has no device here and is not this node's. When ctx ends it goes on without the caller. A volume
// that this node has nothing to do with is no error; was says that it had.
func (a *Attachments) Detach(ctx context.Context, id volume.ID) (was bool, err error) {
	return a.away(ctx, id, detached)
}

// Abandon is Detach without waiting for the volume's store: what that lacks stays in this node's journal.
func (a *Attachments) Abandon(ctx context.Context, id volume.ID) (was bool, err error) {
	return a.away(ctx, id, abandoned)
}

func (a *Attachments) away(ctx context.Context, id volume.ID, w want) (was bool, err error) {
	a.mu.Lock()
	v := a.volumes[id]
	a.mu.Unlock()
	if v == nil {
		return false, nil
	}
	return true, a.call(ctx, id, v.hands, caller{want: w}, nil)
}

func (a *Attachments) call(ctx context.Context, id volume.ID, hands Hands, c caller, tell func(string)) error {
	w := waiter{make(chan string, 16), make(chan error, 1)}
	a.mu.Lock()
	if a.closed {
		a.mu.Unlock()
		return errClosed
	}
	v := a.ofLocked(id, hands)
	v.hands = hands // what is under way keeps its own
	a.callers++
	c.n = a.callers
	v.waiting[c.n] = w
	a.doLocked(v, v.call(c))
	a.hastenLocked(v)
	a.mu.Unlock()
	for waits := true; waits; {
		select {
		case err := <-w.answer:
			return err
		case what := <-w.says:
			if tell != nil {
				tell(what)
			}
		case <-ctx.Done():
			waits = false
		case <-a.ctx.Done():
			waits = false
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	select {
	case err := <-w.answer:
		return err
	default:
	}
	delete(v.waiting, c.n)
	if a.ctx.Err() != nil {
		return errClosed
	}
	doing := v.doing
	a.doLocked(v, v.left(c.n))
	return fmt.Errorf("gave up waiting while %s: %w", doing, context.Cause(ctx))
}

// ofLocked returns what is known of a volume, which may be nothing yet.
func (a *Attachments) ofLocked(id volume.ID, hands Hands) *attachment {
	v := a.volumes[id]
	if v == nil {
		v = &attachment{id: id, hands: hands, waiting: map[int]waiter{}}
		a.volumes[id] = v
	}
	return v
}

// doLocked does what a step wants.
func (a *Attachments) doLocked(v *attachment, effects []effect) {
	for _, e := range effects {
		switch {
		case e.begin != nothing:
			a.beginLocked(v, e)
		case e.stop:
			close(v.told)
		default:
			v.waiting[e.answer].answer <- e.err
			delete(v.waiting, e.answer)
		}
	}
	if v.doing == nothing && !v.owned && !v.device && len(v.waiting) == 0 {
		delete(a.volumes, v.id)
	}
}

func (a *Attachments) beginLocked(v *attachment, e effect) {
	v.told = make(chan struct{})
	told, hands := v.told, v.hands
	a.begun.Go(func() {
		err := a.do(v, hands, e, told)
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.closed {
			return // the next process goes on from what is on disk
		}
		a.doLocked(v, v.ended(err))
	})
}

func (a *Attachments) do(v *attachment, hands Hands, e effect, told <-chan struct{}) error {
	switch e.begin {
	case open:
		return hands.Open(a.ctx, e.how, told, func(what string) { a.tell(v, what) })
	case export:
		return hands.Export(a.ctx)
	case withdraw:
		return a.alone(v, func() error { return hands.Withdraw(a.ctx) })
	case leave:
		return hands.Leave(a.ctx, told)
	}
	return hands.Abandon(a.ctx)
}

// tell tells all who wait for a volume what that waits for, without waiting for them.
func (a *Attachments) tell(v *attachment, what string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, w := range v.waiting {
		select {
		case w.says <- what:
		default:
		}
	}
}

// State says what this node does with a volume.
type State struct {
	Name  string // absent, opening, exporting, attached, withdrawing, leaving, abandoning, or stuck
	Stuck error  // why it could not be given up
}

// StateOf returns a volume's state.
func (a *Attachments) StateOf(id volume.ID) State {
	a.mu.Lock()
	defer a.mu.Unlock()
	v := a.volumes[id]
	switch {
	case v == nil:
		return State{Name: "absent"}
	case v.doing != nothing:
		return State{Name: v.doing.String()}
	case v.stuck != nil:
		return State{Name: "stuck", Stuck: v.stuck}
	}
	return State{Name: "attached"}
}

// String says what is being done.
func (a action) String() string {
	return map[action]string{open: "opening", export: "exporting", withdraw: "withdrawing", leave: "leaving", abandon: "abandoning"}[a]
}

// Close stops what is under way, and waits for its end, but not longer than mostClosing: whoever serves devices goes on until then,
// since the kernel may need them to come to it. A device that waits for its store has no end, and a shutdown must. What was taken stays
// so.
func (a *Attachments) Close() {
	a.mu.Lock()
	a.closed = true
	a.mu.Unlock()
	a.stop()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		a.begun.Wait()
	}()
	select {
	case <-ended:
	case <-time.After(mostClosing):
	}
}
