package snapshotter_test

import (
	"log/slog"
	"os"
	"strings"
	"testing"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/snapshotter"
)

// TestProbe: this kernel has every back end, on an ordinary file system.
func TestProbe(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	c, err := snapshotter.Probe(t.TempDir(), "", true, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	for _, way := range blockdev.Backends {
		if r := c.Ways[way]; !r.OK {
			t.Errorf("%s: %s", way, r.Reason)
		}
	}
	t.Logf("%+v", c)
	if c.Lazy != blockdev.Precontent || !c.Direct || !c.IDMap {
		t.Errorf("got %+v", c)
	}
	// In a pod, where one kill takes both processes, an error is the worst.
	if c, err = snapshotter.Probe(t.TempDir(), "", false, slog.New(slog.DiscardHandler)); err != nil || c.Lazy != blockdev.FuseFile ||
		!strings.Contains(c.LazyReason, "pod") {
		t.Errorf("in a pod: %+v, %v", c, err)
	}
}
