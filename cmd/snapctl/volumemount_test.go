package main

import (
	"os"
	"strings"
	"testing"

	controlv1 "github.com/remora-storage/remora/cmd/control/v1"
)

// A toolbox has the programs that mount starts, which note how they were called. mkfs writes what holds returns.
type toolbox struct{ u *user }

func newToolbox(u *user) toolbox {
	u.t.Helper()
	bin := u.path("bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		u.t.Fatal(err)
	}
	note := "#!/bin/sh\necho \"$(basename \"$0\") $*\" >> " + u.path("calls") + "\n"
	fail := "test ! -e " + u.path("fail-") + "\"$(basename \"$0\")\" || { echo cannot >&2; exit 1; }\n"
	for name, makes := range map[string]string{
		"resize2fs": "", "e2fsck": "", "mkfs.ext4": "ext4", "mkfs.xfs": "xfs", "mkfs.btrfs": "btrfs",
	} {
		does := ""
		if makes != "" {
			does = "for dev; do :; done\ncp " + u.file("made-"+makes, holds(makes)) + " \"$dev\"\n"
		}
		if err := os.WriteFile(bin+"/"+name, []byte(note+fail+does), 0o755); err != nil {
			u.t.Fatal(err)
		}
	}
	u.t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	return toolbox{u}
}

// holds returns the bytes of a device with a signature, and no more of what it says it is.
func holds(kind string) string {
	p := make([]byte, 128<<10)
	switch kind {
	case "ext4":
		copy(p[1024+0x38:], "\x53\xef\x01")
		p[1024+0x60] = 0x40 // it has extents
	case "xfs":
		copy(p, "XFSB")
	case "btrfs":
		copy(p[64<<10+0x40:], "_BHRfS_M")
	case "swap":
		copy(p[4096-10:], "SWAPSPACE2")
	case "dos":
		copy(p[510:], "\x55\xaa")
	}
	return string(p)
}

// calls returns the calls since the last time.
func (b toolbox) calls() (all []string) {
	p, err := os.ReadFile(b.u.path("calls"))
	if err != nil && !os.IsNotExist(err) {
		b.u.t.Fatal(err)
	}
	for line := range strings.Lines(string(p)) {
		all = append(all, strings.TrimSpace(line))
	}
	if err := os.RemoveAll(b.u.path("calls")); err != nil {
		b.u.t.Fatal(err)
	}
	return all
}

func (b toolbox) want(calls ...string) {
	b.u.t.Helper()
	if got := b.calls(); strings.Join(got, "; ") != strings.Join(calls, "; ") {
		b.u.t.Errorf("called %q, want %q", got, calls)
	}
}

// TestVolumeMount makes a file system on a volume that nobody has written to, and on no other. The kernel mounts none of these
// files: conformance/volumes has that.
func TestVolumeMount(t *testing.T) {
	u := newUser(t)
	f, tools := newRemorad(u), newToolbox(u)
	dev, dir := u.file("device", holds("")), u.path("mnt")
	f.set(func() {
		f.fresh = true
		f.volumes = []*controlv1.Volume{{Name: "data", Store: "file:/s", Device: dev}, {Name: "ro", Device: dev, ReadOnly: true}}
	})
	mounts := "mount " + dev + " on " + dir + ": "
	u.run("volume", "mount", "--fs", "ntfs", "data", dir).fails(2, "--fs ntfs: want ext4, xfs or btrfs")
	u.run("volume", "mount", "none", dir).fails(1, "volume none: not found")
	r := u.run("volume", "mount", "data", dir)
	r.fails(1, mounts)
	contains(t, r.stderr, "making a file system: ext4")
	tools.want("mkfs.ext4 -q -F -E nodiscard " + dev)
	if r := last[*controlv1.SetVolumeFileSystemRequest](t, f); r.Fs != "ext4" || r.Name != "data" || r.Store != "file:/s" {
		t.Errorf("noted %v", r)
	}
	if !exists(dir) {
		t.Error("the directory was not made")
	}
	// Now it has a file system.
	f.set(func() { f.fresh = false })
	u.run("volume", "mount", "data", dir).fails(1, mounts)
	u.run("volume", "mount", "-o", "remount", "data", dir).fails(1, mounts, `mount option "remount"`)
	u.run("volume", "mount", "-o", "rw", "ro", dir).fails(1, mounts, "the volume is read-only")
	u.run("volume", "mount", "--fs", "xfs", "data", dir).fails(1, "data holds ext4, not xfs")

	u.file("device", holds("swap"))
	u.run("volume", "mount", "data", dir).fails(1, "data holds swap, not a file system that can be mounted")
	u.file("device", holds("dos"))
	u.run("volume", "mount", "data", dir).fails(1, "data holds a partition table (dos)")
	u.file("device", holds(""))
	u.run("volume", "mount", "data", dir).fails(1, "data has been written to, and no file system is known on it")
	tools.want()
	f.set(func() { f.fresh = true })
	u.file("device", "") // a device that has gone has no bytes
	u.run("volume", "mount", "data", dir).fails(1, "what "+dev+" holds cannot be told")
	tools.want()
	u.file("device", holds(""))
	u.run("volume", "mount", "--fs", "xfs", "data", dir).fails(1, mounts)
	tools.want("mkfs.xfs -q -K " + dev)
	u.file("device", holds("btrfs"))
	for _, name := range []string{"ro", "data"} {
		u.run("volume", "mount", name, dir).fails(1, mounts)
	}
	tools.want()
	u.file("device", holds(""))
	u.file("fail-mkfs.ext4", "")
	u.run("volume", "mount", "data", dir).fails(1, "mkfs.ext4: exit status 1: cannot")
	f.set(func() { f.volumes[0].Device = u.path("none") })
	u.run("volume", "mount", "data", dir).fails(1, u.path("none"))
}

// TestVolumeUmount detaches a volume, unless it is to stay.
func TestVolumeUmount(t *testing.T) {
	u := newUser(t)
	f := newRemorad(u)
	f.set(func() {
		f.volumes = []*controlv1.Volume{{Name: "data", Store: "file:/s", Device: u.file("device", ""), Here: true}}
	})
	u.run("volume", "umount", "--keep-attached", "data").ok()
	if all := requests[*controlv1.DetachVolumeRequest](f); len(all) > 0 {
		t.Errorf("detached: %v", all)
	}
	contains(t, u.run("volume", "umount", "--store", "file:/s", "data").ok(), "data detached")
	contains(t, u.run("volume", "umount", "data").ok(), "data is not attached here")
	f.set(func() { f.volumes[0].Here, f.volumes[0].Device = true, u.path("none") })
	u.run("volume", "umount", "data").fails(1, u.path("none"))
}

// TestResize says that a volume is larger, but not its file system.
func TestResize(t *testing.T) {
	u := newUser(t)
	f := newRemorad(u)
	f.set(func() { f.volumes = []*controlv1.Volume{{Name: "data", Fs: "ext4", Device: u.path("none")}} })
	u.run("volume", "resize", "data", "2G").fails(1, "the volume has 2GiB now, its file system has not grown")
}
