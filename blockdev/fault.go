package blockdev

import (
	"context"
	"fmt"
)

// A Fault decides what goes wrong with a request for n bytes from off before it reaches the device: it
// may wait (and should leave when ctx ends), and what it returns is the request's error. It is called
// for many requests at once.
type Fault func(ctx context.Context, op Op, off, n int64) error

// Faulty returns d with faults.
func Faulty(d Device, f Fault) Device { return wrap(d, f) }

func (f Fault) before(ctx context.Context, op Op, off, n int64) (int64, error) {
	if err := f(ctx, op, off, n); err != nil {
		return 0, fmt.Errorf("%s at %d+%d: %w", op, off, n, err)
	}
	return 0, nil
}

func (f Fault) after(_ Op, _, _ int64, err error) error { return err }
