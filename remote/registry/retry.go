package registry

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/remora-storage/remora/internal/backoff"
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
// with ctx, and is not begun if ctx would end in it. If the last request was not made, since the host is left alone, the error is that of
// the last one that was: it says what the host does.
func (r Retry) do(ctx context.Context, try func(attempt int) error) (err error) {
	var answered error
	defer func() {
		if Unasked(err) && answered != nil && ctx.Err() == nil {
			err = answered
		}
	}()
	waits := backoff.Backoff{First: r.First, Max: r.Max, Jitter: true}
	for attempt := 0; ; attempt++ {
		err := try(attempt)
		if err != nil && !Unasked(err) {
			answered = err
		}
		var status *StatusError
		attempts := r.Attempts
		if errors.As(err, &status) && status.Status == http.StatusTooManyRequests {
			attempts *= 3 // it serves, only later
		}
		if err == nil || !Retryable(err) || attempt+1 >= attempts {
			return err
		}
		wait := waits.Next()
		if errors.As(err, &status) && status.RetryAfter > maxRest {
			return err
		}
		if errors.As(err, &status) && status.RetryAfter > wait && !Unasked(err) { // who fails anyhow fails soon
			wait = min(status.RetryAfter, 3*r.Max)
		}
		if d, ok := ctx.Deadline(); ok && time.Until(d) < wait {
			return err
		}
		if cause := backoff.Sleep(ctx, wait); cause != nil {
			return errors.Join(err, cause)
		}
	}
}
