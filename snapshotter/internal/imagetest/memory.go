package imagetest

import (
	"testing"
	"time"

	"github.com/remora-storage/remora/internal/memory"
)

// WaitsForMemory wants do to wait while a budget is spent, and to end once there is memory. meanwhile is called while it waits.
func WaitsForMemory(t *testing.T, m *memory.Budget, meanwhile func(), do func() error) {
	t.Helper()
	hold, err := m.Acquire(t.Context(), "others", m.Limit()-m.Limit()/4) // the rest is for those that grow
	if err != nil {
		t.Fatal(err)
	}
	defer hold.Release()
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
	hold.Release()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
