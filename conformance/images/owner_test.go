package images_test

import (
	"archive/tar"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/opencontainers/image-spec/identity"

	"github.com/remora-storage/remora/conformance/testbed"
)

// TestOwnerOfRoot: whatever a layer's archive says of its root, a container's root has the owner and the mode that it has with overlayfs:
// of a layer that is read by parts and of one that is imported, by what Prepare answers and by what Mounts does, and however little of
// the layer was here when the snapshot was made, also if remorad was killed then.
func TestOwnerOfRoot(t *testing.T) {
	t.Parallel()
	ctx, h := newHeld(t)
	s, root := h.stack, tar.Header{Name: "./", Typeflag: tar.TypeDir, Uid: 7, Gid: 8, Mode: 0o750}
	rootOf := func(t *testing.T, mounts []mount.Mount) string {
		t.Helper()
		dir := t.TempDir()
		testbed.Must(t, mount.All(mounts, dir))
		defer func() { testbed.Must(t, mount.UnmountAll(dir, 0)) }()
		st, err := os.Stat(dir)
		testbed.Must(t, err)
		sys := st.Sys().(*syscall.Stat_t)
		return fmt.Sprintf("%d:%d %v", sys.Uid, sys.Gid, st.Mode())
	}
	seed := uint64(20)
	for _, c := range testbed.Covering(t, testbed.Combinations(
		[]string{"listed", "unlisted"}, []string{"src", "lazy"}, []string{"prepare", "mounts", "mounts after a kill"},
	)) {
		kind, tag, how := c[0], c[1], c[2]
		t.Run(strings.Join(c, " "), func(t *testing.T) { // by an image of its own, of which nothing is here
			tars := []func(*tar.Writer) error{then(entries(root), randomLayer(seed, 4<<20))}
			if kind == "unlisted" {
				tars = append(tars, randomLayer(seed+1, 4<<20))
			}
			name := fmt.Sprint("owner-", seed)
			seed += 2
			layout := filepath.Join(t.TempDir(), name)
			testbed.Must(t, testbed.WriteTars(layout, "src", tars...))
			testbed.Must(t, s.Push(ctx, layout, "src", name+":src"))
			if tag == "lazy" {
				convert(t, s, "oci:"+layout+":src", s.Ref(name+":lazy"))
			}
			testbed.Must(t, s.PullOrdinary(ctx, s.Ref(name+":src"), "overlayfs"))
			want := rootOf(t, rootMounts(ctx, t, h, "overlayfs", s.Ref(name+":src"), name))
			testbed.Must(t, h.client.SnapshotService("overlayfs").Remove(ctx, name))
			removeAll(t, s, s.Ref(name+":src"))
			t.Logf("with overlayfs: %s", want)

			hold := h.hold()
			release := sync.OnceFunc(func() { close(hold) })
			late := time.AfterFunc(20*time.Second, release) // containerd downloads by itself what is not proven in time
			ref := fmt.Sprintf("%s/%s:%s", h.proxy.Listener.Addr(), name, tag)
			testbed.Must(t, outsideClient(ctx, s, ref, "", true))
			if !late.Stop() {
				t.Log("not all of it was claimed")
			}
			mounts := rootMounts(ctx, t, h, "remora", ref, name)
			if how == "mounts after a kill" {
				testbed.Must(t, s.RestartRemorad(syscall.SIGKILL))
			}
			time.AfterFunc(500*time.Millisecond, release) // the mount below begins before that
			sn := h.client.SnapshotService("remora")
			if how != "prepare" {
				var err error
				mounts, err = sn.Mounts(ctx, name)
				testbed.Must(t, err)
			}
			if got := rootOf(t, mounts); got != want {
				t.Errorf("the root is %s, not %s", got, want)
			}
			select {
			case <-hold:
			default:
				t.Error("the layer was here before, so that nobody waited for it")
			}
			testbed.Must(t, sn.Remove(ctx, name))
			removeAll(t, s, ref)
		})
	}
}

// rootMounts are the mounts of a new snapshot on all of an image.
func rootMounts(ctx context.Context, t *testing.T, h *held, snapshotter, ref, key string) []mount.Mount {
	t.Helper()
	image, err := h.client.GetImage(ctx, ref)
	testbed.Must(t, err)
	diffIDs, err := image.RootFS(ctx)
	testbed.Must(t, err)
	mounts, err := h.client.SnapshotService(snapshotter).Prepare(ctx, key, identity.ChainID(diffIDs).String())
	testbed.Must(t, err)
	return mounts
}
