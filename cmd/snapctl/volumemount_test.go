package main

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	controlv1 "github.com/remora-storage/remora/cmd/control/v1"
)

// TestVolumeMount: all that mount does is ask remorad, by absolute names, and say what that does.
func TestVolumeMount(t *testing.T) {
	u := newUser(t)
	f := newRemorad(u)
	f.set(func() {
		f.steps = []string{"making a file system: ext4"}
		f.volumes = []*controlv1.Volume{{Name: "data", Store: "file:/s", Device: u.path("none"), Fs: "ext4"}}
	})
	dir := u.path("mnt")
	t.Chdir(u.home)
	r := u.run("volume", "mount", "--store", "file:s", "--fs", "xfs", "-o", "noatime", "--accept-loss", "data", "mnt")
	contains(t, r.ok(), "data ("+u.path("none")+", ext4) mounted on "+dir)
	contains(t, r.stderr, "making a file system: ext4", "this process's mount namespace is not remorad's")
	if r := last[*controlv1.MountVolumeRequest](t, f); r.Name != "data" || r.Store != "file:"+u.path("s") || r.Dir != dir || r.Fs != "xfs" ||
		r.Options != "noatime" || !r.AcceptLoss {
		t.Errorf("asked for %v", r)
	}
	if exists(dir) {
		t.Error("snapctl has made the directory itself")
	}
	u.run("volume", "mount", "none", dir).fails(1, "volume none: not found")
	f.set(func() {
		f.refuse["MountVolumeRequest"] = status.Error(codes.InvalidArgument, `file system "ntfs": want ext4, xfs or btrfs`)
	})
	u.run("volume", "mount", "--fs", "ntfs", "data", dir).fails(1, "want ext4, xfs or btrfs")
}

// TestVolumeUmount says what was unmounted, also if the end fails, and detaches unless the volume is to stay.
func TestVolumeUmount(t *testing.T) {
	u := newUser(t)
	f := newRemorad(u)
	f.set(func() {
		f.steps = []string{"the store does not answer"}
		f.volumes = []*controlv1.Volume{{Name: "data", Store: "file:/s", Here: true, MountPoints: []string{"/mnt", "/srv"}}}
	})
	r := u.run("volume", "umount", "--keep-attached", "data")
	if out := r.ok(); out != "" || !last[*controlv1.UnmountVolumeRequest](t, f).KeepAttached {
		t.Errorf("kept: %q", out)
	}
	contains(t, r.stderr, "/mnt unmounted", "/srv unmounted")
	f.set(func() { f.volumes[0].MountPoints = []string{"/mnt", "/srv"} })
	r = u.run("volume", "umount", "--store", "file:/s", "--json", "data")
	contains(t, r.ok(), `"name": "data"`, `"was_attached": true`, `"detached": true`, `"/srv"`)
	contains(t, r.stderr, "1MiB are not in the store yet: the store does not answer")
	contains(t, u.run("volume", "umount", "data").ok(), "data is not attached here")
	if all := requests[*controlv1.DetachVolumeRequest](f); len(all) > 0 {
		t.Errorf("detached by another call: %v", all)
	}
}

// TestResize: sizes may have fractions; what is no whole number of blocks is rounded up.
func TestResize(t *testing.T) {
	u := newUser(t)
	f := newRemorad(u)
	f.set(func() { f.volumes = []*controlv1.Volume{{Name: "data", Fs: "ext4"}} })
	for asked, want := range map[string]int64{"2G": 2 << 30, "1.1G": 1181118464, "1.5GiB": 3 << 29, "1048577": 1<<20 + 4096} {
		out := u.run("volume", "resize", "data", asked).ok()
		if got := last[*controlv1.ResizeVolumeRequest](t, f).SizeBytes; got != want || !strings.HasPrefix(out, "data has ") {
			t.Errorf("%s: %d bytes, want %d: %s", asked, got, want, out)
		}
	}
	u.run("volume", "resize", "data", "8E").fails(2, "size")
}
