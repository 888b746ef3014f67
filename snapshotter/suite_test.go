package snapshotter_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/remote/registry"
	"github.com/remora-storage/remora/snapshotter"
	"github.com/remora-storage/remora/snapshotter/layers"
)

// noImages is a content store without images.
type noImages struct{}

func (noImages) Find(context.Context, snapshotter.Query) (layers.Image, int, error) {
	return layers.Image{}, 0, layers.ErrNotLazy
}

func (noImages) Manifest(context.Context, digest.Digest, string) (layers.Image, error) {
	return layers.Image{}, layers.ErrNotLazy
}

func (noImages) Known(context.Context) ([]layers.Image, error) { return nil, nil }

func (noImages) Claims(context.Context, map[digest.Digest]bool) (map[digest.Digest][]layers.Source, error) {
	return nil, nil
}

func open(t testing.TB, root string, images snapshotter.Images) (*snapshotter.Snapshotter, func() error) {
	t.Helper()
	lock, err := snapshotter.Lock(root)
	if err != nil {
		t.Fatal(err)
	}
	c, err := cache.Open(filepath.Join(root, "cache"), cache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	s, err := snapshotter.New(root, c, layers.Remote{Registry: registry.New(registry.Options{})}, images, snapshotter.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return s, func() error {
		defer lock.Close()
		if err := s.Close(); err != nil {
			return err
		}
		return c.Close()
	}
}

// TestContainerdSuite is containerd's own suite, in process.
func TestContainerdSuite(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	// By this name the suite knows that directories of lower layers cannot be renamed on overlayfs.
	testsuite.SnapshotterSuite(t, "overlayfs", func(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		s, done := open(t, root, noImages{})
		return s, done, nil
	})
}

func TestTwoDaemonsOnOneRoot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		root := t.TempDir()
		lock, err := snapshotter.Lock(root)
		if err != nil {
			t.Fatal(err)
		}
		defer lock.Close()
		if _, err := snapshotter.Lock(root); err == nil {
			t.Fatal("a second daemon was let in")
		}
	})
}
