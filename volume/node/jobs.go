package node

import (
	"context"
	"fmt"

	"github.com/remora-storage/remora/volume"
)

// A Job is something that is done with what is on an attached volume: making, checking, growing, mounting and unmounting its file
// system. One is done at a time, and a device is not withdrawn meanwhile.
type Job struct {
	// What tells jobs apart and completes "it is being". Whoever wants what is being done already waits for that.
	What string
	// Do does it. It goes on without those who asked for it: its context ends when the Attachments are closed.
	Do func(ctx context.Context, say func(string)) error
}

// job is one under way.
type job struct {
	what   string
	done   chan struct{} // closed when err is set
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
			// Close does not wait for it: a program that changes a device runs to its end, and the next process finds what it did.
			go a.work(id, w, j)
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

func (a *Attachments) work(id volume.ID, w *job, j Job) {
	defer a.vacate(id, w)
	w.err = j.Do(a.ctx, func(what string) {
		a.mu.Lock()
		defer a.mu.Unlock()
		w.said = append(w.said, what)
		close(w.spoken)
		w.spoken = make(chan struct{})
	})
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
func (a *Attachments) alone(id volume.ID, do func() error) error {
	a.mu.Lock()
	for a.jobs[id] != nil {
		w := a.jobs[id]
		a.mu.Unlock()
		if err := a.await(a.ctx, w); err != nil {
			return err
		}
		a.mu.Lock()
	}
	w := a.occupyLocked(id, "withdrawn")
	a.mu.Unlock()
	defer a.vacate(id, w)
	return do()
}
