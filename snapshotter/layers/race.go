package layers

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"time"
)

// A race reads one range of a blob that several repositories have. It asks one of them. When that one is slow, it asks the next
// one beside it, from where the reader is, and hands out what comes first.
//
// So whoever names somebody's layer in a repository of his own holds up nobody: a repository that drips is left behind by the
// others, and one that is only slow loses nothing to them.
type race struct {
	ctx    context.Context // of Open: the race is one operation
	cancel context.CancelFunc
	x      *repositories
	order  []repositorySource // the order in which they are asked
	off, n int64              // the range
	try    int
	least  int64 // bytes that come in besideAfter, or it is slow
	stop   func() bool
	ended  sync.WaitGroup // the runners

	mu      sync.Mutex // guards the fields below, and those of all runners; taken before repositories.mu
	changed *sync.Cond
	pos     int64 // bytes of the range that were handed out
	closed  bool
	runners []*runner
	errs    []error
	// Of this window: how long the reader waited, and the bytes that it got. What it does in between does not count.
	waited time.Duration
	got    int64
}

// A runner is one repository's part in a race.
type runner struct {
	from   repositorySource
	cancel context.CancelFunc
	opened bool
	over   bool   // no more comes
	left   bool   // others are better
	at     int64  // where in the range have begins
	have   []byte // what came last
	gave   int64  // bytes that the reader took since there are several runners
}

const (
	// besideAfter is how long a reader waits for less than it may expect, all its waits together, before another repository is
	// asked.
	besideAfter = time.Second
	// leastRate is what a reader may expect in a second where nothing was measured. Where it was, it is a fraction of that, since many
	// readers share the way, up to mostRate.
	leastRate, mostRate = 64 << 10, 1 << 20
	rateFraction        = 128
	runnerPiece         = 64 << 10        // bytes
	decidedAfter        = 128 << 10       // bytes of several runners, after which the best goes on alone
	homeAgain           = 5 * time.Minute // after which the first repository is asked first again
)

// race begins a race, and returns once a repository has answered.
func (x *repositories) race(ctx context.Context, order []repositorySource, off, n int64, try int) (io.ReadCloser, error) {
	r := &race{x: x, order: order, off: off, n: n, try: try, least: leastRate}
	for _, one := range order {
		_, rate := one.Link()
		r.least = min(max(r.least, rate/rateFraction), mostRate)
	}
	r.ctx, r.cancel = context.WithCancel(ctx)
	r.changed = sync.NewCond(&r.mu)
	r.stop = context.AfterFunc(r.ctx, r.broadcast)
	r.mu.Lock()
	r.nextLocked()
	err := r.waitLocked(func() bool {
		for _, one := range r.runners {
			if one.opened {
				return true
			}
		}
		return false
	})
	r.mu.Unlock()
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// broadcast takes the lock so that nobody misses it between looking and waiting.
func (r *race) broadcast() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.changed.Broadcast()
}

// nextLocked asks the next repository, if there is one, for what the reader has not got.
func (r *race) nextLocked() {
	if len(r.order) == 0 || r.closed {
		return
	}
	ctx, cancel := context.WithCancel(r.ctx)
	one := &runner{from: r.order[0], cancel: cancel, at: r.pos}
	r.order = r.order[1:]
	for _, other := range r.runners {
		other.gave = 0
	}
	r.runners = append(r.runners, one)
	r.ended.Go(func() {
		defer cancel()
		r.end(one, r.run(ctx, one))
	})
}

// run reads one repository's bytes, a piece at a time.
func (r *race) run(ctx context.Context, one *runner) error {
	at := one.at
	body, err := one.from.Open(ctx, r.off+at, r.n-at, r.try)
	if err != nil {
		return err
	}
	defer body.Close() // only read
	r.mu.Lock()
	one.opened = true
	r.changed.Broadcast()
	r.mu.Unlock()
	piece := make([]byte, min(runnerPiece, r.n-at))
	for at < r.n {
		n, err := body.Read(piece[:min(int64(len(piece)), r.n-at)])
		if n > 0 && !r.hand(ctx, one, at, piece[:n]) {
			return nil
		}
		if at += int64(n); at == r.n {
			return nil
		}
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// hand waits until the reader has taken a piece, or has it from elsewhere. It reports whether the runner is to go on.
func (r *race) hand(ctx context.Context, one *runner, at int64, piece []byte) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	one.at, one.have = at, piece
	r.changed.Broadcast()
	for r.pos < at+int64(len(piece)) && ctx.Err() == nil {
		r.changed.Wait()
	}
	one.have = nil
	return ctx.Err() == nil
}

// end notes that no more comes from a repository. If it failed, another one is asked now, and first next time.
func (r *race) end(one *runner, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	one.over = true
	if err != nil && r.ctx.Err() == nil && !r.closed && !one.left {
		r.errs = append(r.errs, err)
		r.runners = slices.DeleteFunc(r.runners, func(x *runner) bool { return x == one })
		r.x.pass(one.from.repo)
		r.nextLocked()
	}
	r.changed.Broadcast()
}

// waitLocked waits until something is so, and asks another repository when that takes too long. It fails when nobody is left that
// could bring it about.
func (r *race) waitLocked(so func() bool) error {
	for !so() {
		if err := context.Cause(r.ctx); err != nil {
			return err
		}
		over := true
		for _, one := range r.runners {
			over = over && one.over
		}
		switch {
		case over && len(r.errs) == 0:
			return io.ErrUnexpectedEOF
		case over:
			return errors.Join(r.errs...)
		case r.waited >= besideAfter:
			if r.got < r.least && len(r.order) > 0 {
				r.nextLocked()
			}
			r.waited, r.got = 0, 0
		}
		began := time.Now()
		timer := time.AfterFunc(besideAfter-r.waited, r.broadcast)
		r.changed.Wait()
		timer.Stop()
		r.waited += time.Since(began)
	}
	return nil
}

// Read implements io.Reader.
func (r *race) Read(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.pos == r.n {
		return 0, io.EOF
	}
	if len(p) == 0 {
		return 0, nil
	}
	if err := r.waitLocked(func() bool { return r.readyLocked() != nil }); err != nil {
		return 0, err
	}
	one := r.readyLocked()
	n := copy(p, one.have[r.pos-one.at:])
	r.pos += int64(n)
	r.got += int64(n)
	one.gave += int64(n)
	r.decideLocked()
	r.changed.Broadcast()
	return n, nil
}

// readyLocked returns a runner that has the next byte, or nil.
func (r *race) readyLocked() *runner {
	for _, one := range r.runners {
		if one.at <= r.pos && r.pos < one.at+int64(len(one.have)) {
			return one
		}
	}
	return nil
}

// decideLocked lets the best of several runners go on alone once it has shown that it is, or all is here. What it left behind is
// not asked first next time.
func (r *race) decideLocked() {
	if len(r.runners) < 2 {
		return
	}
	best, total := r.runners[0], int64(0)
	for _, one := range r.runners {
		if total += one.gave; one.gave > best.gave {
			best = one
		}
	}
	if total < decidedAfter && r.pos < r.n {
		return
	}
	for _, one := range r.runners {
		if one != best {
			one.left = true
			one.cancel()
			r.x.pass(one.from.repo)
		}
	}
	r.runners = []*runner{best}
}

// Close ends what is under way, and waits for it.
func (r *race) Close() error {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.cancel()
	r.ended.Wait()
	r.stop()
	return nil
}
