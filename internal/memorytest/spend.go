package memorytest

import (
	"context"

	"github.com/remora-storage/remora/internal/memory"
)

// Spend waits for all of a budget that new shares may have, which no one user may, and returns a function that gives it back.
func Spend(ctx context.Context, m *memory.Budget) (giveBack func(), err error) {
	most, err := m.Acquire(ctx, "most.test", m.Limit()/2)
	if err != nil {
		return func() {}, err
	}
	rest, err := m.Acquire(ctx, "rest.test", m.Limit()/4)
	return func() {
		most.Release()
		rest.Release()
	}, err
}
