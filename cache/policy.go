package cache

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/remora-storage/remora/cache/blob"
	"github.com/remora-storage/remora/internal/backoff"
)

// A Policy says what becomes of reads whose bytes cannot be had because the source does not
// answer.
type Policy struct {
	// Wait lets a read wait for as long as it takes. Otherwise it fails after Deadline.
	Wait bool
	// Deadline is how long a read waits that may not wait for ever: for its source, or for room
	// on disk. 0 is a minute.
	Deadline time.Duration
}

func (p Policy) withDefaults() Policy {
	if p.Deadline == 0 {
		p.Deadline = time.Minute
	}
	return p
}

const (
	firstPause = 200 * time.Millisecond // before a source that did not answer is asked again
	maxPause   = 5 * time.Second
)

// persist makes a fetch for readers again and again while its source does not answer: for ever,
// or until the deadline. A fetch that no reader waits for is made once. It holds no ticket while
// it pauses.
func (f *File) persist(ctx context.Context, policy Policy, j *job, prio priority, fetch func(context.Context) error) error {
	if prio == demand && !policy.Wait {
		timed, stop := context.WithTimeoutCause(ctx, policy.Deadline, fmt.Errorf("nothing came within %s", policy.Deadline))
		defer stop()
		ctx = timed
	}
	waits := backoff.Backoff{First: firstPause, Max: maxPause}
	for {
		err := fetch(ctx)
		f.noteTrouble(err, prio == demand && policy.Wait)
		if err == nil || prio != demand || !f.c.unreachable(err) || !f.wanted(j) {
			return err
		}
		if cause := context.Cause(ctx); cause != nil {
			return fmt.Errorf("%w (%w)", cause, err)
		}
		j.ticket.release()
		if cause := backoff.Sleep(ctx, waits.Next()); cause != nil {
			return fmt.Errorf("%w (%w)", cause, err)
		}
		j.ticket.renew()
	}
}

// wanted reports whether anybody waits for a job.
func (f *File) wanted(j *job) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return j.users > 0
}

// unreachable reports whether an error is one of a source that may answer later.
func (c *Cache) unreachable(err error) bool {
	switch {
	case errors.Is(err, blob.ErrBytes), errors.Is(err, errAbandoned), errors.Is(err, context.Canceled):
		return false
	}
	return c.opts.Unreachable(err)
}

// noteTrouble keeps why the source does not answer, and says so once.
func (f *File) noteTrouble(err error, waits bool) {
	if err != nil && !f.c.unreachable(err) {
		return
	}
	f.mu.Lock()
	was := f.trouble
	f.trouble = err
	f.mu.Unlock()
	switch {
	case err != nil && was == nil:
		f.c.metrics.unreachable.Inc()
		f.c.log.Warn("source does not answer", "digest", f.id, "readers_wait", waits, "err", err)
	case err == nil && was != nil:
		f.c.log.Info("source answers again", "digest", f.id)
	}
}
