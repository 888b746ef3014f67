package images_test

import (
	"archive/tar"
	"fmt"
	"os"
	"path/filepath"
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
	for name, tars := range map[string][]func(*tar.Writer) error{
		"listed":   {then(entries(root), randomLayer(20, 4<<20))},
		"unlisted": {then(entries(root), randomLayer(21, 4<<20)), randomLayer(22, 4<<20)},
	} {
		layout := filepath.Join(t.TempDir(), name)
		testbed.Must(t, testbed.WriteTars(layout, "src", tars...))
		testbed.Must(t, s.Push(ctx, layout, "src", name+":src"))
		convert(t, s, "oci:"+layout+":src", s.Ref(name+":lazy"))
		testbed.Must(t, s.PullOrdinary(ctx, s.Ref(name+":src"), "overlayfs"))
		image, err := h.client.GetImage(ctx, s.Ref(name+":src"))
		testbed.Must(t, err)
		diffIDs, err := image.RootFS(ctx)
		testbed.Must(t, err)
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
		mounts, err := h.client.SnapshotService("overlayfs").Prepare(ctx, "ordinary-"+name, identity.ChainID(diffIDs).String())
		testbed.Must(t, err)
		want := rootOf(t, mounts)
		t.Logf("%s with overlayfs: %s", name, want)
		sn := h.client.SnapshotService("remora")
		for _, tag := range []string{"src", "lazy"} {
			for _, how := range []string{"prepare", "mounts", "mounts after a kill"} {
				t.Run(fmt.Sprint(name, " ", tag, " ", how), func(t *testing.T) {
					hold := h.hold()
					ref, key := fmt.Sprintf("%s/%s:%s", h.proxy.Listener.Addr(), name, tag), fmt.Sprint(name, tag, how)
					testbed.Must(t, outsideClient(ctx, s, ref, "", true))
					image, err := h.client.GetImage(ctx, ref)
					testbed.Must(t, err)
					diffIDs, err := image.RootFS(ctx)
					testbed.Must(t, err)
					mounts, err := sn.Prepare(ctx, key, identity.ChainID(diffIDs).String())
					testbed.Must(t, err)
					if how == "mounts after a kill" {
						testbed.Must(t, s.RestartRemorad(syscall.SIGKILL))
					}
					time.AfterFunc(500*time.Millisecond, func() { close(hold) }) // the mount below begins before that
					if how != "prepare" {
						mounts, err = sn.Mounts(ctx, key)
						testbed.Must(t, err)
					}
					if got := rootOf(t, mounts); got != want {
						t.Errorf("the root is %s, not %s", got, want)
					}
					testbed.Must(t, sn.Remove(ctx, key))
					removeAll(t, s, ref)
				})
			}
		}
	}
}
