package backoff

import (
	"context"
	"math/rand/v2"
	"time"
)

// A Backoff is the waits between the attempts of one operation: First, then twice as long each time, Max at most.
type Backoff struct {
	First, Max time.Duration
	Jitter     bool // a wait is anything from half of it to all of it, so that many callers do not return together

	next time.Duration
}

// Next returns how long to wait before the next attempt.
func (b *Backoff) Next() time.Duration {
	wait := b.upcoming()
	b.next = min(2*wait, b.Max)
	if b.Jitter {
		wait = wait/2 + rand.N(wait/2+1)
	}
	return min(wait, b.Max)
}

// Longest reports whether the waits have reached Max.
func (b *Backoff) Longest() bool { return b.upcoming() >= b.Max }

func (b *Backoff) upcoming() time.Duration {
	if b.next == 0 {
		return b.First
	}
	return b.next
}

// Sleep waits for d, or fails with the cause of ctx if that ends before.
func Sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return context.Cause(ctx)
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
