package fetch

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

// WithDefaults returns p, with what it does not say.
func (p Policy) WithDefaults() Policy {
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
func (j *job) persist(ctx context.Context, policy Policy, fetch func(context.Context) error) error {
	if j.prio == demand && !policy.Wait {
		timed, stop := context.WithTimeoutCause(ctx, policy.Deadline, fmt.Errorf("nothing came within %s", policy.Deadline))
		defer stop()
		ctx = timed
	}
	waits := backoff.Backoff{First: firstPause, Max: maxPause}
	for {
		err := fetch(ctx)
		j.f.noteTrouble(err, j.prio == demand && policy.Wait)
		if err == nil || j.prio != demand || !j.f.pool.isUnreachable(err) || !j.wanted() {
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

// wanted reports whether anybody waits for the job.
func (j *job) wanted() bool {
	j.f.mu.Lock()
	defer j.f.mu.Unlock()
	return j.users > 0
}

// isUnreachable reports whether an error is one of a source that may answer later.
func (p *Pool) isUnreachable(err error) bool {
	switch {
	case errors.Is(err, blob.ErrBytes), errors.Is(err, errAbandoned), errors.Is(err, context.Canceled):
		return false
	}
	return p.unreachable(err)
}

// noteTrouble keeps why the source does not answer, and says so once.
func (f *Fetcher) noteTrouble(err error, waits bool) {
	if err != nil && !f.pool.isUnreachable(err) {
		return
	}
	f.mu.Lock()
	was := f.trouble
	f.trouble = err
	f.mu.Unlock()
	switch {
	case err != nil && was == nil:
		f.pool.metrics.unreachable.Inc()
		f.pool.log.Warn("source does not answer", "digest", f.img.ID(), "readers_wait", waits, "err", err)
	case err == nil && was != nil:
		f.pool.log.Info("source answers again", "digest", f.img.ID())
	}
}
