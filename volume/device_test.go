package volume_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/conformance/suite"
	"github.com/remora-storage/remora/remote/store"
	"github.com/remora-storage/remora/remote/store/filestore"
	"github.com/remora-storage/remora/remote/store/simstore"
	"github.com/remora-storage/remora/volume"
)

// TestDevice: a volume in a directory, with its journal in a file, is a device like any other.
func TestDevice(t *testing.T) {
	t.Parallel()
	for _, class := range []volume.Class{volume.Remote, volume.Local, volume.Writethrough} {
		t.Run(string(class), func(t *testing.T) {
			t.Parallel()
			suite.Device(t, suite.Implementation{
				Has:  suite.Changes | suite.Mapper,
				New:  func(t *testing.T, size int64) blockdev.Device { return newVolume(t, size, class) },
				Held: func(t *testing.T, size int64) suite.Held { return cutOff(t, size, class) },
			})
		})
	}
}

// newVolume attaches a new volume of a directory.
func newVolume(t *testing.T, size int64, class volume.Class) *volume.Volume {
	t.Helper()
	store, err := filestore.Make(t.TempDir(), filestore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return volumeOf(t, store, size, class)
}

// cutOff is a volume whose bytes are in a store that is out of reach: who needs the store waits.
func cutOff(t *testing.T, size int64, class volume.Class) suite.Held {
	t.Helper()
	s := simstore.New(rand.New(rand.NewPCG(1, 1)))
	v := volumeOf(t, s, size, class)
	if err := errors.Join(v.WriteAt(t.Context(), bytes.Repeat([]byte{1}, int(size)), 0), v.Commit(t.Context())); err != nil {
		t.Fatal(err)
	}
	s.SetFaults(simstore.Faults{Outage: errors.New("out of reach")})
	back := func() { s.SetFaults(simstore.Faults{}) }
	t.Cleanup(back) // or it cannot be detached
	waits := []blockdev.Op{blockdev.OpRead}
	switch class {
	case volume.Remote:
		waits = append(waits, blockdev.OpWriteSync, blockdev.OpFlush)
	case volume.Writethrough:
		waits = append(waits, blockdev.OpWrite, blockdev.OpWriteSync, blockdev.OpFlush, blockdev.OpTrim, blockdev.OpZero)
	}
	return suite.Held{Device: v, Ops: waits, Let: back}
}

// volumeOf attaches a new volume. When its test has ended the volume is detached, and Check walks over it.
func volumeOf(t *testing.T, store store.Store, size int64, class volume.Class) *volume.Volume {
	t.Helper()
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
