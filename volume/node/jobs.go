package node

import (
	"context"
	"errors"
	"fmt"

	"github.com/remora-storage/remora/volume"
)

// A Job is something that is done with what is on an attached volume: making, checking, growing, mounting and unmounting its file
// system. One is done at a time, and a device is not withdrawn meanwhile.
type Job struct {
	// What tells jobs apart and completes "it is being". Whoever wants what is being done already waits for that.
	What string
	// Do does it. It goes on without those who asked for it: its context ends when the Attachments are closed, and when the volume is
	// abandoned, since whoever abandons it waits for no store.
	Do func(ctx context.Context, say func(string)) error
}

// job is one under way.
type job struct {
	what   string
	stop   context.CancelCauseFunc // ends what it waits for, not what it has begun; nil for a withdrawal
	done   chan struct{}           // closed when err is set
	err    error
	said   []string      // so far, guarded by Attachments.mu
	spoken chan struct{} // closed and replaced when more is said, guarded by Attachments.mu
}

// Run does a job, or joins one that does the same, and tells what that has said so far and says then. It waits for a different one to
// end. When ctx ends the job goes on without the caller.
func (a *Attachments) Run(ctx context.Context, id volume.ID, j Job, tell func(string)) error {
	for {
		a.mu.Lock()
		if a.closed {
			a.mu.Unlock()
			return errClosed
		}
		w := a.jobs[id]
		begun := w == nil
		if begun {
			w = a.occupyLocked(id, j.What)
			ctx, stop := context.WithCancelCause(a.ctx)
			w.stop = stop
			// Close does not wait for it: a program that changes a device runs to its end, and the next process finds what it did.
			go a.work(ctx, id, w, j)
		}
		a.mu.Unlock()
		if begun || w.what == j.What {
			return a.follow(ctx, w, tell)
		}
		if err := a.await(ctx, w); err != nil {
			return err
		}
	}
}

// await waits for the end of somebody else's job.
func (a *Attachments) await(ctx context.Context, w *job) error {
	select {
	case <-w.done:
		return nil
	case <-a.ctx.Done():
		return errClosed
	case <-ctx.Done():
		return fmt.Errorf("gave up waiting while it is being %s: %w", w.what, context.Cause(ctx))
	}
}

// occupyLocked notes that something is being done with a volume that nothing is done with.
func (a *Attachments) occupyLocked(id volume.ID, what string) *job {
	w := &job{what: what, done: make(chan struct{}), spoken: make(chan struct{})}
	a.jobs[id] = w
	return w
}

func (a *Attachments) vacate(id volume.ID, w *job) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.jobs, id)
	close(w.done)
}

func (a *Attachments) work(ctx context.Context, id volume.ID, w *job, j Job) {
	defer a.vacate(id, w)
	defer w.stop(nil)
	w.err = j.Do(ctx, func(what string) {
		a.mu.Lock()
		defer a.mu.Unlock()
		w.said = append(w.said, what)
		close(w.spoken)
		w.spoken = make(chan struct{})
	})
}

// errAbandoned says why a job did not wait for the store.
var errAbandoned = errors.New("the volume is given up to its journal")

// hastenLocked has a volume's job wait for nothing more if the volume is abandoned.
func (a *Attachments) hastenLocked(v *attachment) {
	if w := a.jobs[v.id]; w != nil && w.stop != nil && v.want == abandoned {
		w.stop(errAbandoned)
	}
}

// follow waits for a job's end.
func (a *Attachments) follow(ctx context.Context, w *job, tell func(string)) error {
	heard := 0
	for done := false; ; {
		a.mu.Lock()
		news, spoken := w.said[heard:], w.spoken
		a.mu.Unlock()
		for _, what := range news {
			tell(what)
		}
		heard += len(news)
		if done {
			return w.err
		}
		select {
		case <-w.done:
			done = true
		case <-spoken:
		case <-ctx.Done():
			return fmt.Errorf("%w; it goes on without you: it is being %s", context.Cause(ctx), w.what)
		case <-a.ctx.Done():
			return errClosed
		}
	}
}

// alone does something with a volume while no job is under way.
func (a *Attachments) alone(v *attachment, do func() error) error {
	a.mu.Lock()
	for a.jobs[v.id] != nil {
		a.hastenLocked(v) // one that was waiting for the one before
		w := a.jobs[v.id]
		a.mu.Unlock()
		if err := a.await(a.ctx, w); err != nil {
			return err
		}
		a.mu.Lock()
	}
	w := a.occupyLocked(v.id, "withdrawn")
	a.mu.Unlock()
	defer a.vacate(v.id, w)
	return do()
}
