package main

import (
	"os"
	"strings"
	"testing"

	controlv1 "github.com/remora-storage/remora/cmd/control/v1"
)

// A toolbox has the programs that mount starts, which note how they were called. blkid finds what the file "signature"
// has, and mkfs writes it.
type toolbox struct{ u *user }

func newToolbox(u *user) toolbox {
	u.t.Helper()
	bin := u.path("bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		u.t.Fatal(err)
	}
	note := "#!/bin/sh\necho \"$(basename \"$0\") $*\" >> " + u.path("calls") + "\n"
	fail := "test ! -e " + u.path("fail-") + "\"$(basename \"$0\")\" || { echo cannot >&2; exit 1; }\n"
	for name, does := range map[string]string{
		"blkid": "test -s " + u.path("signature") + " || exit 2\ncat " + u.path("signature"), "mount": "", "resize2fs": "", "e2fsck": "",
		"xfs_growfs": "", "btrfs": "",
		"mkfs.ext4": "echo ext4 > " + u.path("signature"), "mkfs.xfs": "echo xfs > " + u.path("signature"), "mkfs.btrfs": "echo btrfs > " +
			u.path("signature"),
	} {
		if err := os.WriteFile(bin+"/"+name, []byte(note+fail+does+"\n"), 0o755); err != nil {
			u.t.Fatal(err)
		}
	}
	u.t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	return toolbox{u}
}

// calls returns the calls since the last time, without those of blkid.
func (b toolbox) calls() (all []string) {
	p, err := os.ReadFile(b.u.path("calls"))
	if err != nil && !os.IsNotExist(err) {
		b.u.t.Fatal(err)
	}
	for line := range strings.Lines(string(p)) {
		if !strings.HasPrefix(line, "blkid ") {
			all = append(all, strings.TrimSpace(line))
		}
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

// TestVolumeMount makes a file system on a volume that nobody has written to, and on no other.
func TestVolumeMount(t *testing.T) {
	u := newUser(t)
	f, tools := newRemorad(u), newToolbox(u)
	dev, dir := u.file("device", ""), u.path("mnt")
	f.set(func() {
		f.fresh = true
		f.volumes = []*controlv1.Volume{{Name: "data", Store: "file:/s", Device: dev}, {Name: "ro", Device: dev, ReadOnly: true}}
	})
	u.run("volume", "mount", "--fs", "ntfs", "data", dir).fails(2, "--fs ntfs: want ext4, xfs or btrfs")
	u.run("volume", "mount", "none", dir).fails(1, "volume none: not found")
	contains(t, u.run("volume", "mount", "data", dir).ok(), "data ("+dev+", ext4) mounted on "+dir)
	tools.want("mkfs.ext4 -q -E nodiscard "+dev, "resize2fs "+dev, "mount -t ext4 -o nodev,nosuid "+dev+" "+dir)
	if r := last[*controlv1.SetVolumeFileSystemRequest](t, f); r.Fs != "ext4" || r.Name != "data" || r.Store != "file:/s" {
		t.Errorf("noted %v", r)
	}
	if !exists(dir) {
		t.Error("the directory was not made")
	}
	// Now it has a file system.
	f.set(func() { f.fresh = false })
	if got := decode[mounted](u.run("--json", "volume", "mount", "-o", "noatime", "data", dir)); got.Dir != dir || got.FS != "ext4" {
		t.Errorf("as JSON: %+v", got)
	}
	tools.want("resize2fs "+dev, "mount -t ext4 -o nodev,nosuid,noatime "+dev+" "+dir)
	u.run("volume", "mount", "-o", "dev,suid", "data", dir).ok()
	tools.want("resize2fs "+dev, "mount -t ext4 -o nodev,nosuid,dev,suid "+dev+" "+dir)
	u.run("volume", "mount", "--fs", "xfs", "data", dir).fails(1, "data holds ext4, not xfs")
	u.run("volume", "mount", "-o", "sync", "ro", dir).ok()
	tools.want("mount -t ext4 -o nodev,nosuid,ro,sync,noload " + dev + " " + dir)

	u.file("signature", "swap\n")
	u.run("volume", "mount", "data", dir).fails(1, "data holds swap, not a file system that can be mounted")
	u.file("signature", "\n")
	u.run("volume", "mount", "data", dir).fails(1, "data holds a partition table")
	u.file("signature", "")
	u.run("volume", "mount", "data", dir).fails(1, "data has been written to, and no file system is known on it")
	tools.want()
	f.set(func() { f.fresh = true })
	u.run("volume", "mount", "--fs", "xfs", "data", dir).ok()
	tools.want("mkfs.xfs -q -K "+dev, "mount -t xfs -o nodev,nosuid "+dev+" "+dir, "xfs_growfs -d "+dir)
	u.file("signature", "btrfs\n")
	u.run("volume", "mount", "ro", dir).ok()
	tools.want("mount -t btrfs -o nodev,nosuid,ro,rescue=nologreplay " + dev + " " + dir)
	u.run("volume", "mount", "data", dir).ok()
	tools.want("mount -t btrfs -o nodev,nosuid "+dev+" "+dir, "btrfs filesystem resize max "+dir)
}

// TestVolumeMountFails says which program failed, and with what.
func TestVolumeMountFails(t *testing.T) {
	u := newUser(t)
	f, tools := newRemorad(u), newToolbox(u)
	dev, dir := u.file("device", ""), u.path("mnt")
	f.set(func() { f.fresh, f.volumes = true, []*controlv1.Volume{{Name: "data", Device: dev}} })
	for _, program := range []string{"blkid", "mkfs.ext4", "mount"} {
		u.file("fail-"+program, "")
		u.run("volume", "mount", "data", dir).fails(1, program+": exit status 1")
		if err := os.Remove(u.path("fail-" + program)); err != nil {
			t.Fatal(err)
		}
	}
	tools.calls()
	// A file system that must be checked before it can grow.
	u.file("fail-resize2fs", "")
	u.run("volume", "mount", "data", dir).fails(1, "resize2fs: exit status 1: cannot")
	tools.want("resize2fs "+dev, "e2fsck -fp "+dev, "resize2fs "+dev)
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
	if err := unmount(t.Context(), u.home); err == nil || !strings.Contains(err.Error(), "unmount "+u.home) {
		t.Errorf("what is not mounted: %v", err)
	}
}

// TestGrow says what cannot grow.
func TestGrow(t *testing.T) {
	u := newUser(t)
	f, tools := newRemorad(u), newToolbox(u)
	for fs, call := range map[string]string{"ext4": "resize2fs dev", "xfs": "xfs_growfs -d dir", "btrfs": "btrfs filesystem resize max dir"} {
		if err := growFS(t.Context(), fs, "dev", "dir"); err != nil {
			t.Error(err)
		}
		tools.want(call)
	}
	if err := growFS(t.Context(), "ntfs", "dev", "dir"); err == nil {
		t.Error("ntfs has grown")
	}
	f.set(func() { f.volumes = []*controlv1.Volume{{Name: "data", Fs: "ext4", Device: u.path("none")}} })
	u.run("volume", "resize", "data", "2G").fails(1, "the volume has 2GiB now, its file system has not grown")
}
