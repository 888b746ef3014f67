package host_test

import (
	"testing"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/conformance/suite"
	"github.com/remora-storage/remora/remote/store/filestore"
	"github.com/remora-storage/remora/volume"
	"github.com/remora-storage/remora/volume/host"
)

// TestDevice: a volume of this node, one that was just attached or one that is being opened again, is a device like any
// other.
func TestDevice(t *testing.T) {
	for name, again := range map[string]bool{"attached": false, "opened again": true} {
		t.Run(name, func(t *testing.T) {
			suite.Device(t, func(t *testing.T, size int64) blockdev.Device {
				s, err := filestore.Open(t.TempDir(), filestore.Options{})
				if err != nil {
					t.Fatal(err)
				}
				head, _, err := volume.Create(t.Context(), s, "data", volume.Spec{Size: size})
				if err != nil {
					t.Fatal(err)
				}
				root := t.TempDir()
				h := openHost(t, root, s)
				d := attach(t, h, head)
				if again {
					if err := h.Close(); err != nil {
						t.Fatal(err)
					}
					h = openHost(t, root, s)
					if d, err = h.Resume(head.ID, true); err != nil {
						t.Fatal(err)
					}
				}
				t.Cleanup(func() { closeHost(t, h) })
				return d
			})
		})
	}
}

func closeHost(t *testing.T, h *host.Host) {
	t.Helper()
	if err := h.Close(); err != nil {
		t.Error(err)
	}
}
