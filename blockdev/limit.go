package blockdev

import (
	"context"
	"fmt"

	"golang.org/x/time/rate"
)

// A Rate bounds what passes through a device in a second. Zero is no bound.
type Rate struct {
	Bytes    int64 // read and written
	Requests int
}

const rateBurst = 10 // of a second's worth, one part may pass at once

type limit struct{ bytes, requests *rate.Limiter }

// Limit returns d with requests held back to a rate. Flushes, and zeros that are not sent, count as requests
// of no bytes.
func Limit(d Device, r Rate) Device {
	l := &limit{}
	if r.Bytes > 0 {
		l.bytes = rate.NewLimiter(rate.Limit(r.Bytes), max(int(r.Bytes/rateBurst), 1))
	}
	if r.Requests > 0 {
		l.requests = rate.NewLimiter(rate.Limit(r.Requests), max(r.Requests/rateBurst, 1))
	}
	return wrap(d, l)
}

func (l *limit) before(ctx context.Context, op Op, off, n int64) (int64, error) {
	if l.requests != nil {
		if err := l.requests.Wait(ctx); err != nil {
			return 0, fmt.Errorf("%s at %d held back by its rate: %w", op, off, err)
		}
	}
	if l.bytes == nil || op != OpRead && op != OpWrite {
		return 0, nil
	}
	for n > 0 { // more than what may pass at once takes its turns
		k := min(int(n), l.bytes.Burst())
		if err := l.bytes.WaitN(ctx, k); err != nil {
			return 0, fmt.Errorf("%s at %d held back by its rate: %w", op, off, err)
		}
		n -= int64(k)
	}
	return 0, nil
}

func (l *limit) after(_ Op, _, _ int64, err error) error { return err }
