package volume_test

import (
	"context"
	"testing"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/conformance/suite"
	"github.com/remora-storage/remora/remote/store/filestore"
	"github.com/remora-storage/remora/volume"
)

// TestDevice: a volume in a directory, with its journal in a file, is a device like any other.
func TestDevice(t *testing.T) {
	t.Parallel()
	for _, class := range []volume.Class{volume.Remote, volume.Local, volume.Writethrough} {
		t.Run(string(class), func(t *testing.T) {
			t.Parallel()
			suite.Device(t, func(t *testing.T, size int64) blockdev.Device {
				return newVolume(t, size, class)
			})
		})
	}
}

// newVolume attaches a new volume of a directory. When its test has ended the volume is detached, and Check walks over it.
func newVolume(t *testing.T, size int64, class volume.Class) *volume.Volume {
	t.Helper()
	store, err := filestore.Open(t.TempDir(), filestore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	journals, err := volume.NewJournalDir(t.TempDir(), 16<<20)
	if err != nil {
		t.Fatal(err)
	}
	h, _, err := volume.Create(t.Context(), store, "v", volume.Spec{Size: size, Class: class})
	if err != nil {
		t.Fatal(err)
	}
	node := volume.NewMember(store, volume.MemberOptions{ID: volume.NewID(), Incarnation: volume.NewID()})
	v, err := volume.Attach(t.Context(), h.ID, node, journals,
		volume.AttachOptions{Options: volume.Options{Store: store}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := v.Detach(context.Background()); err != nil {
			t.Error(err)
		}
		r, err := volume.Check(context.Background(), store, "v", true, func(string) {})
		if err != nil || len(r.Problems) > 0 {
			t.Errorf("check: %v, %v", r, err)
		}
	})
	return v
}
