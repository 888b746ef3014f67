package host_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/conformance/faultdev"
	"github.com/remora-storage/remora/conformance/suite"
	"github.com/remora-storage/remora/remote/store"
	"github.com/remora-storage/remora/remote/store/filestore"
	"github.com/remora-storage/remora/remote/store/simstore"
	"github.com/remora-storage/remora/volume"
	"github.com/remora-storage/remora/volume/host"
)

// TestDevice: a volume of this node, one that was just attached or one that is being opened again, is a device like any
// other.
func TestDevice(t *testing.T) {
	for name, again := range map[string]bool{"attached": false, "opened again": true} {
		t.Run(name, func(t *testing.T) {
			suite.Device(t, suite.Implementation{
				Has: suite.Changes | suite.Mapper,
				New: func(t *testing.T, size int64) blockdev.Device {
					s, err := filestore.Make(t.TempDir(), filestore.Options{})
					if err != nil {
						t.Fatal(err)
					}
					root := t.TempDir()
					d, h, id := attached(t, root, s, size)
					if again {
						d, h = openedAgain(t, root, s, h, id)
					}
					t.Cleanup(func() { closeHost(t, h) })
					return d
				},
				Held: func(t *testing.T, size int64) suite.Held {
					s := simstore.New(rand.New(rand.NewPCG(1, 1)))
					root := t.TempDir()
					d, h, id := attached(t, root, s, size)
					waits := []blockdev.Op{blockdev.OpWriteSync, blockdev.OpFlush}
					s.SetFaults(simstore.Faults{Outage: errors.New("out of reach")})
					if again { // all wait until it is open
						d, h = openedAgain(t, root, s, h, id)
						waits = faultdev.Ops()
					}
					back := func() { s.SetFaults(simstore.Faults{}) }
					t.Cleanup(func() { back(); closeHost(t, h) })
					return suite.Held{Device: d, Ops: waits, Let: back}
				},
			})
		})
	}
}

// attached returns a new volume of a new host.
func attached(t *testing.T, root string, s store.Store, size int64) (*host.Device, *host.Host, volume.ID) {
	t.Helper()
	if _, err := volume.Init(t.Context(), s, func(context.Context) error { return nil }); err != nil {
		t.Fatal(err)
	}
	head, _, err := volume.Create(t.Context(), s, "data", volume.Spec{Size: size})
	if err != nil {
		t.Fatal(err)
	}
	h := openHost(t, root, s)
	return attach(t, h, head), h, head.ID
}

// openedAgain returns a volume in the next life of its host.
func openedAgain(t *testing.T, root string, s store.Store, h *host.Host, id volume.ID) (*host.Device, *host.Host) {
	t.Helper()
	closeHost(t, h)
	h = openHost(t, root, s)
	d, err := h.Resume(id, true)
	if err != nil {
		t.Fatal(err)
	}
	return d, h
}

func closeHost(t *testing.T, h *host.Host) {
	t.Helper()
	if err := h.Close(); err != nil {
		t.Error(err)
	}
}
