package snapshotter

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
)

// TestOrdinarySnapshots: without images that are supplied here, snapshots are those of containerd's overlay
// snapshotter.
func TestOrdinarySnapshots(t *testing.T) {
	b := newBed(t, newOrigin(t), nil)
	mounts, err := b.Prepare(b.ctx, "one", "")
	if err != nil {
		t.Fatal(err)
	}
	if len(mounts) != 1 || mounts[0].Type != "bind" || !slices.Contains(mounts[0].Options, "rw") {
		t.Errorf("without a parent: %v", mounts)
	}
	if info, err := b.Stat(b.ctx, "one"); err != nil || info.Kind != snapshots.KindActive {
		t.Errorf("got %+v, %v", info, err)
	}
	b.unpack("one", "first", mounts, file("a", noise(1, 100_000)))
	if u, err := b.Usage(b.ctx, "first"); err != nil || u.Size < 100_000 || u.Inodes < 2 {
		t.Errorf("usage: %+v, %v", u, err)
	}
	mounts = b.run("two", "first")
	b.sees(mounts, "a", noise(1, 100_000))
	b.unpack("two", "second", mounts, file("a", []byte("other")))
	b.sees(b.run("three", "second"), "a", []byte("other"))
	if u, err := b.Usage(b.ctx, "three"); err != nil || u.Size > 100_000 {
		t.Errorf("usage of a snapshot that nobody wrote to: %+v, %v", u, err)
	}
	var names []string
	if err := b.Walk(b.ctx, func(_ context.Context, info snapshots.Info) error {
		names = append(names, info.Name)
		return nil
	}); err != nil || !slices.Equal(names, []string{"first", "second", "three"}) {
		t.Errorf("walk: %v, %v", names, err)
	}
	updated, err := b.Update(b.ctx, snapshots.Info{Name: "first", Labels: map[string]string{"k": "v"}}, "labels.k")
	if err != nil || updated.Labels["k"] != "v" {
		t.Errorf("update: %+v, %v", updated, err)
	}
	if err := b.Remove(b.ctx, "first"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a snapshot below another one was removed: %v", err)
	}
}

// TestUnknownAndKnownSnapshots: errors are those that containerd knows.
func TestUnknownAndKnownSnapshots(t *testing.T) {
	b := newBed(t, newOrigin(t), nil)
	if _, err := b.Prepare(b.ctx, "one", ""); err != nil {
		t.Fatal(err)
	}
	for what, do := range map[string]func() error{
		"prepare": func() error { _, err := b.Prepare(b.ctx, "k", "none"); return err },
		"view":    func() error { _, err := b.View(b.ctx, "k", "none"); return err },
		"mounts":  func() error { _, err := b.Mounts(b.ctx, "none"); return err },
		"stat":    func() error { _, err := b.Stat(b.ctx, "none"); return err },
		"usage":   func() error { _, err := b.Usage(b.ctx, "none"); return err },
		"commit":  func() error { return b.Commit(b.ctx, "n", "none") },
		"remove":  func() error { return b.Remove(b.ctx, "none") },
		"update":  func() error { _, err := b.Update(b.ctx, snapshots.Info{Name: "none"}); return err },
	} {
		if err := do(); !errdefs.IsNotFound(err) {
			t.Errorf("%s of what is not there: %v", what, err)
		}
	}
	if _, err := b.Prepare(b.ctx, "one", ""); !errdefs.IsAlreadyExists(err) {
		t.Errorf("a key was used twice: %v", err)
	}
}

// TestUserNamespace: a snapshot for a container in a user namespace belongs to that one's root, and the layers
// below it are mapped rather than copied.
func TestUserNamespace(t *testing.T) {
	b := newBed(t, newOrigin(t), nil)
	mapped := func(uid, gid string) snapshots.Opt {
		return snapshots.WithLabels(map[string]string{
			snapshots.LabelSnapshotUIDMapping: uid, snapshots.LabelSnapshotGIDMapping: gid,
		})
	}
	uid := fmt.Sprintf("5:7:1,0:%d:1", os.Geteuid()) // a test may give its own files to nobody else
	gid := fmt.Sprintf("0:%d:1", os.Getegid())
	mounts, err := b.Prepare(b.ctx, "one", "", mapped(uid, gid))
	if err != nil || !slices.Contains(mounts[0].Options, "uidmap="+uid) || !slices.Contains(mounts[0].Options, "gidmap="+gid) {
		t.Errorf("got %v, %v", mounts, err)
	}
	for _, bad := range []string{"", "x", "1:2", "1:1000:10", "0:1:0"} {
		if _, err := b.Prepare(b.ctx, "bad", "", mapped(bad, gid)); err == nil || !strings.Contains(err.Error(), "id mapping") {
			t.Errorf("mapping %q: %v", bad, err)
		}
	}
}

// TestPrepareFails: what cannot be made leaves nothing behind.
func TestPrepareFails(t *testing.T) {
	b := newBed(t, newOrigin(t), nil)
	b.unpack("k", "lost", b.run("k", ""))
	id := b.id("lost")
	if err := os.Rename(b.upperPath(id), b.upperPath(id)+".away"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Prepare(b.ctx, "on top", "lost"); err == nil {
		t.Error("a snapshot was made on a directory that is not there")
	}
	if _, err := b.Stat(b.ctx, "on top"); !errdefs.IsNotFound(err) {
		t.Errorf("stat: %v", err)
	}
	if err := os.Rename(b.upperPath(id)+".away", b.upperPath(id)); err != nil {
		t.Fatal(err)
	}
	b.run("on top", "lost")
}
