package export_test

import (
	"errors"
	"os"
	"testing"

	"github.com/remora-storage/remora/blockdev/export"
	"github.com/remora-storage/remora/blockdev/mounts"
)

// conn counts what becomes of a connection.
type conn struct{ started, stopped int }

func (c *conn) Start() error     { c.started++; return nil }
func (c *conn) Kept() []*os.File { return nil }
func (c *conn) Stop() error      { c.stopped++; return nil }
func (c *conn) Unmount() error   { return nil }

// held is a Held that finds its connection where every machine has a mount.
func held(dir string, adopt func([]*os.File) (*conn, error)) *export.Held[*conn] {
	return export.NewHeld(export.HeldOptions[*conn]{
		Dir: dir, Type: "proc", Item: "mine",
		Mount: func() (*conn, error) { return nil, errors.New("a second connection") },
		Adopt: adopt,
	})
}

// TestHeldShared: ways that share a connection take it over, start and stop it once.
func TestHeldShared(t *testing.T) {
	c := &conn{}
	h := held("/proc", func([]*os.File) (*conn, error) { return c, nil })
	kept := map[string][]*os.File{"mine": {}, "another's": {}}
	for range 2 {
		if taken, err := h.Take(kept); !taken || err != nil {
			t.Fatalf("taken %v, %v", taken, err)
		}
	}
	if len(kept) != 1 || h.Made(mounts.Mount{Dir: "/proc", Type: "proc"}) != export.Connection ||
		h.Made(mounts.Mount{Dir: "/sys", Type: "sysfs"}) != export.NotMade {
		t.Errorf("kept %v", kept)
	}
	if got, err := h.Get(); got != c || err != nil {
		t.Errorf("got %v, %v", got, err)
	}
	for range 2 {
		if err := errors.Join(h.Start(), h.Start()); err != nil || c.started != 1 {
			t.Errorf("started %d times, %v", c.started, err)
		}
	}
	for range 2 {
		if err := h.Stop(); err != nil || c.stopped != 1 {
			t.Errorf("stopped %d times, %v", c.stopped, err)
		}
	}
	if _, ok := h.Has(); ok {
		t.Error("what is stopped is here")
	}
	if _, err := h.Get(); err == nil {
		t.Error("a connection beside the one that waits for the next process")
	}
}

// TestHeldUnmounted: what somebody has unmounted is left to be dropped, and what cannot be adopted is gone.
func TestHeldUnmounted(t *testing.T) {
	kept := map[string][]*os.File{"mine": {}}
	adopt := func([]*os.File) (*conn, error) { return nil, errors.New("bad memory") }
	if taken, err := held("/proc/nothing", adopt).Take(kept); taken || err != nil || len(kept) != 1 {
		t.Errorf("taken %v, %v, left %v", taken, err, kept)
	}
	h := held("/proc", adopt)
	if taken, err := h.Take(kept); taken || err == nil || len(kept) != 0 {
		t.Errorf("taken %v, %v, left %v", taken, err, kept)
	}
	if err := errors.Join(h.Start(), h.Stop()); err != nil {
		t.Error(err)
	}
}
