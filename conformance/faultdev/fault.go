package faultdev

import (
	"context"
	"fmt"

	"github.com/remora-storage/remora/blockdev"
)

// A Fault decides what goes wrong with a request for n bytes from off before it reaches the device: it
// may wait (and should leave when ctx ends), and what it returns is the request's error. It is called
// for many requests at the same time.
type Fault func(ctx context.Context, op blockdev.Op, off, n int64) error

// Faulty returns d with faults.
func Faulty(d blockdev.Device, f Fault) blockdev.Device { return blockdev.Around(d, f) }

// Before implements blockdev.Duty.
func (f Fault) Before(ctx context.Context, op blockdev.Op, off, n int64) (int64, error) {
	if err := f(ctx, op, off, n); err != nil {
		return 0, fmt.Errorf("%s at %d+%d: %w", op, off, n, err)
	}
	return 0, nil
}

// After implements blockdev.Duty.
func (f Fault) After(_ blockdev.Op, _, _ int64, err error) error { return err }
