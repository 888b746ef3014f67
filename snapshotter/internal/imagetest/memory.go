package imagetest

import (
	"testing"
	"time"

	"github.com/remora-storage/remora/internal/memory"
	"github.com/remora-storage/remora/internal/memorytest"
)

// WaitsForMemory wants do to wait while a budget is spent, and to end once there is memory. meanwhile is called while it waits.
func WaitsForMemory(t *testing.T, m *memory.Budget, meanwhile func(), do func() error) {
	t.Helper()
	giveBack, err := memorytest.Spend(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	defer giveBack()
	ended := make(chan error, 1)
	go func() { ended <- do() }()
	for {
		one, free := m.Try("one", 0)
		if one.Release(); !free {
			break
		}
		select {
		case err := <-ended:
			t.Fatalf("it did not wait for memory: %v", err)
		case <-time.After(time.Millisecond):
		}
	}
	meanwhile()
	giveBack()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
