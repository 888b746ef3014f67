package registry

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"
)

// Retry bounds how often and how slowly something is tried again. Zero values take the default.
type Retry struct {
	Attempts int           // at all; default 5
	First    time.Duration // wait before the second attempt, doubled each time; default 100 ms
	Max      time.Duration // of one wait; default 10 s
}

func (r Retry) withDefaults() Retry {
	if r.Attempts == 0 {
		r.Attempts = 5
	}
	if r.First == 0 {
		r.First = 100 * time.Millisecond
	}
	if r.Max == 0 {
		r.Max = 10 * time.Second
	}
	return r
}

// do calls try until it succeeds, fails for good, or has been tried often enough. A wait ends
// with ctx, and is not begun if ctx would end in it.
func (r Retry) do(ctx context.Context, try func(attempt int) error) error {
	wait := r.First
	for attempt := 0; ; attempt++ {
		err := try(attempt)
		if err == nil || !Retryable(err) || attempt+1 >= r.Attempts {
			return err
		}
		pause := min(wait/2+rand.N(wait/2+1), r.Max)
		var status *StatusError
		if errors.As(err, &status) && status.RetryAfter > pause {
			pause = min(status.RetryAfter, 3*r.Max)
		}
		if d, ok := ctx.Deadline(); ok && time.Until(d) < pause {
			return err
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return errors.Join(err, context.Cause(ctx))
		}
		wait = min(wait*2, r.Max)
	}
}
