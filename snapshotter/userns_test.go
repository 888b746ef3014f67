package snapshotter

import (
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
)

// TestUserNamespaceOfOldContainerd: where containerd would show remote layers as empty, a container in a user namespace gets no mounts,
// neither by View nor by Mounts, and nothing is left of one that was refused. Others get theirs.
func TestUserNamespaceOfOldContainerd(t *testing.T) {
	l := estargzLayer(t, dir("etc", 0o755), file("etc/small", []byte("hello\n")))
	im := newImage(t, "app", nil, l)
	old := false
	b := newBed(t, newOrigin(t, im), func(b *bed) {
		b.opts.MapsMounts = func(context.Context) error {
			if old {
				return errdefs.ErrFailedPrecondition
			}
			return nil
		}
	})
	mapped := snapshots.WithLabels(map[string]string{
		snapshots.LabelSnapshotUIDMapping: fmt.Sprintf("0:%d:1", os.Geteuid()),
		snapshots.LabelSnapshotGIDMapping: fmt.Sprintf("0:%d:1", os.Getegid()),
	})
	top := b.pull(im)
	if _, err := b.Prepare(b.ctx, "before", top, mapped); err != nil {
		t.Error(err)
	}
	old = true
	if _, err := b.Mounts(b.ctx, "before"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("mounts: %v", err)
	}
	if _, err := b.Prepare(b.ctx, "after", top, mapped); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("prepare: %v", err)
	}
	if _, err := b.View(b.ctx, "after", top, mapped); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("view: %v", err)
	}
	if _, err := b.Stat(b.ctx, "after"); !errdefs.IsNotFound(err) {
		t.Errorf("of a refused container: %v", err)
	}
	if _, err := b.Prepare(b.ctx, "without layers", "", mapped); err != nil {
		t.Error(err)
	}
	b.sees(b.run("outside", top), "etc/small", []byte("hello\n"))
}
