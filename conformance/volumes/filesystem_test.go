package volumes_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/conformance/testbed"
	"github.com/remora-storage/remora/volume/mount"
)

// disk returns a block device of a new sparse file.
func disk(t *testing.T, size int64) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "disk")
	testbed.Must(t, os.WriteFile(file, nil, 0o600))
	testbed.Must(t, os.Truncate(file, size))
	l, err := blockdev.AttachLoopOn(file, blockdev.LoopOptions{Writable: true, Sector: 512})
	testbed.Must(t, err)
	t.Cleanup(func() { testbed.Must(t, l.Release()) })
	return l.Path()
}

// TestFileSystemsAsBlkid: what a device holds is what blkid says, for whatever makes something that blkid knows.
func TestFileSystemsAsBlkid(t *testing.T) {
	testbed.NeedRoot(t)
	t.Parallel()
	for _, c := range [][]string{
		{"true"}, {"mkfs.ext4", "-q", "-F"}, {"mkfs.ext3", "-q", "-F"}, {"mkfs.ext2", "-q", "-F"},
		{"mkfs.ext4", "-q", "-F", "-b", "1024", "-O", "^has_journal,^metadata_csum"},
		{"mkfs.xfs", "-q"}, {"mkfs.xfs", "-q", "-b", "size=1024"}, {"mkfs.btrfs", "-q"}, {"mkswap", "-q"}, {"mkswap", "-q", "-p", "65536"},
		{"sh", "-c", `echo 'label: dos' | sfdisk -q "$1"`, "sh"}, {"sh", "-c", `echo 'label: gpt' | sfdisk -q "$1"`, "sh"},
		{"sh", "-c", `echo secret | cryptsetup luksFormat -q --iter-time 1 "$1"`, "sh"},
	} {
		program := c[0]
		if program == "sh" {
			program = strings.Fields(c[2][strings.Index(c[2], "| ")+2:])[0]
		}
		if _, err := exec.LookPath(program); err != nil {
			t.Logf("%v: %v", c, err)
			continue
		}
		dev := disk(t, 320<<20)
		testbed.Tool(t, c[0], append(slices.Clone(c[1:]), dev)...)
		want, err := testbed.Output(t.Context(), nil, "blkid", "-p", "-o", "value", "-s", "TYPE", "-s", "PTTYPE", dev)
		if err != nil && c[0] != "true" { // it fails where nothing is known
			t.Fatalf("%v: blkid: %v", c, err)
		}
		got, size, err := mount.ProbeDevice(dev)
		if err != nil || got.Kind != strings.TrimSpace(want) || size != 320<<20 {
			t.Errorf("%v: %+v of %d bytes, %v; blkid says %q", c, got, size, err, want)
		}
		if mount.Known(got.Kind) && got.Size != size {
			t.Errorf("%v has %d bytes by its superblock, on a device of %d", c, got.Size, size)
		}
	}
}

// lastChecked returns when an ext4 was checked last, by its own account.
func lastChecked(t *testing.T, dev string) string {
	t.Helper()
	for line := range strings.Lines(testbed.Tool(t, "dumpe2fs", "-h", dev)) {
		if when, ok := strings.CutPrefix(line, "Last checked:"); ok {
			return strings.TrimSpace(when)
		}
	}
	t.Fatal("dumpe2fs does not say when it was checked")
	return ""
}

// TestVolumeCheckedWhenNeeded: an ext4 is checked if it has errors or is to grow, and at no other mount.
func TestVolumeCheckedWhenNeeded(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{Bare: true, LogLevel: "info", Config: volumeConfig})
	mnt := filepath.Join(t.TempDir(), "mnt")
	store := newVolume(t, s, "data")
	snapctl(t, s, "volume", "mount", "data", mnt)
	remount := func() string {
		t.Helper()
		snapctl(t, s, "volume", "mount", "data", mnt)
		snapctl(t, s, "volume", "umount", "--keep-attached", "data")
		return lastChecked(t, strings.TrimSpace(snapctl(t, s, "volume", "attach", "data")))
	}
	snapctl(t, s, "volume", "umount", "--keep-attached", "data")
	dev := strings.TrimSpace(snapctl(t, s, "volume", "attach", "data"))
	long := func() string { testbed.Tool(t, "tune2fs", "-T", "20200102", dev); return lastChecked(t, dev) }
	old := long()
	if got := remount(); got != old {
		t.Errorf("checked at %s, though nothing was wrong: it was %s", got, old)
	}
	testbed.Tool(t, "debugfs", "-w", "-R", "set_super_value state 3", dev)
	if got := remount(); got == old {
		t.Error("an ext4 with errors was not checked")
	}
	if out := testbed.Tool(t, "dumpe2fs", "-h", dev); strings.Contains(out, "clean with errors") {
		t.Error("the errors stay")
	}
	old = long()
	snapctl(t, s, "volume", "resize", "data", "1100M")
	if got := remount(); got == old {
		t.Error("an ext4 that grew was not checked before")
	}
	c, size, err := mount.ProbeDevice(dev)
	if err != nil || size != 1100<<20 || size-c.Size > 32<<20 {
		t.Errorf("the file system has %d bytes of %d: %v", c.Size, size, err)
	}
	old = long()
	if got := remount(); got != old {
		t.Errorf("checked at %s, though it has grown already", got)
	}
	snapctl(t, s, "volume", "umount", "data")
	mustBeRight(t, s, "data", store)
}

// TestVolumeMountRefused: an error names the option that it was for, and what is read-only is mounted without one.
func TestVolumeMountRefused(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{Bare: true, LogLevel: "info", Config: volumeConfig})
	for _, fs := range testbed.FileSystems {
		mnt := filepath.Join(t.TempDir(), "mnt")
		store := newVolume(t, s, fs.Name)
		mustRefuse(t, s, `mount option "nonesuch"`, "volume", "mount", fs.Name, mnt, "--fs", fs.Name, "-o", "noatime,nonesuch,exec")
		mustRefuse(t, s, `mount option "remount"`, "volume", "mount", fs.Name, mnt, "-o", "remount")
		snapctl(t, s, "volume", "mount", fs.Name, mnt, "-o", "noatime,ro")
		var st unix.Statfs_t
		testbed.Must(t, unix.Statfs(mnt, &st))
		if st.Flags&unix.ST_RDONLY == 0 || st.Flags&unix.ST_NOATIME == 0 {
			t.Errorf("%s is mounted with flags %#x", fs.Name, st.Flags)
		}
		snapctl(t, s, "volume", "umount", fs.Name)
		mustBeRight(t, s, fs.Name, store)
	}
}

// TestVolumeUmountEverywhere: umount takes away each mount of a volume, those of its parts and those whose device fails too, and says
// that something is mounted over one instead of taking that.
func TestVolumeUmountEverywhere(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{Bare: true, LogLevel: "info", Config: volumeConfig})
	dir := t.TempDir()
	mnt, second, part := filepath.Join(dir, "mnt"), filepath.Join(dir, "second"), filepath.Join(dir, "part")
	store := newVolume(t, s, "data")
	snapctl(t, s, "volume", "mount", "data", mnt)
	for _, d := range []string{second, part, mnt + "/sub"} {
		testbed.Must(t, os.Mkdir(d, 0o700))
	}
	testbed.Must(t, unix.Mount(mnt, second, "", unix.MS_BIND, ""))
	testbed.Must(t, unix.Mount(mnt+"/sub", part, "", unix.MS_BIND, ""))
	testbed.Must(t, unix.Mount("none", second, "tmpfs", 0, ""))
	mustRefuse(t, s, "unmount "+second+" first", "volume", "umount", "data")
	testbed.Must(t, unix.Unmount(second, 0))
	snapctl(t, s, "volume", "umount", "data")
	if left, err := testbed.MountsUnder(dir); err != nil || len(left) > 0 {
		t.Errorf("mounts left: %v, %v", left, err)
	}
	mustBeRight(t, s, "data", store)
}

// TestVolumeDeadMount: when remorad and its holder were killed, what is mounted of a volume gives errors, and is not forgotten by the lives
// of remorad after that: ls shows it, no new device comes beside it, detach refuses, and umount takes it away.
func TestVolumeDeadMount(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{Bare: true, LogLevel: "info", Config: volumeConfig})
	dir := t.TempDir()
	mnt := filepath.Join(dir, "mnt")
	store := newVolume(t, s, "data")
	snapctl(t, s, "volume", "mount", "data", mnt)
	f, err := os.Create(filepath.Join(mnt, "file"))
	testbed.Must(t, err)
	_, err = f.WriteString("content")
	testbed.Must(t, errors.Join(err, f.Sync(), f.Close()))
	testbed.Must(t, s.StopRemorad(unix.SIGKILL))
	testbed.Must(t, s.KillHolder())
	testbed.Must(t, s.StartRemorad())
	for range 2 {
		testbed.WaitFor(t, "the volume to be given up", func() bool { return stateOf(t, s) == "absent" })
		if out := snapctl(t, s, "volume", "ls"); !strings.Contains(out, "FAILED: it has ended") {
			t.Errorf("ls:\n%s", out)
		}
		mustRefuse(t, s, "unmount it first, from "+mnt, "volume", "detach", "data")
		mustRefuse(t, s, "which fails (it has ended", "volume", "mount", "data", mnt+"2")
		testbed.Must(t, s.RestartRemorad(unix.SIGKILL))
	}
	if out := snapctl(t, s, "volume", "umount", "--json", "data"); !strings.Contains(out, mnt) {
		t.Errorf("umount: %s", out)
	}
	if left, err := testbed.MountsUnder(dir); err != nil || len(left) > 0 {
		t.Errorf("mounts left: %v, %v", left, err)
	}
	snapctl(t, s, "volume", "mount", "data", mnt)
	if p, err := os.ReadFile(filepath.Join(mnt, "file")); err != nil || string(p) != "content" {
		t.Errorf("the file has %q, %v", p, err)
	}
	snapctl(t, s, "volume", "umount", "data")
	mustBeRight(t, s, "data", store)
}

// TestVolumeMountBesideMkfs: a device that somebody makes a file system on is not one without a file system.
func TestVolumeMountBesideMkfs(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{Bare: true, LogLevel: "info", Config: volumeConfig})
	store := newVolume(t, s, "data")
	dev := strings.TrimSpace(snapctl(t, s, "volume", "attach", "data"))
	f, err := os.OpenFile(dev, os.O_RDWR|unix.O_EXCL, 0)
	testbed.Must(t, err)
	mustRefuse(t, s, fmt.Sprintf("%s is in use by process %d (", dev, os.Getpid()), "volume", "mount", "data", t.TempDir())
	testbed.Must(t, f.Close())
	snapctl(t, s, "volume", "detach", "data")
	mustBeRight(t, s, "data", store)
}

// TestMeasuredVolumeMountAgain says what the second mount of an ext4 with 60,000 files costs beside mount(8) of the same device. Of ours
// most is the starts of two programs.
func TestMeasuredVolumeMountAgain(t *testing.T) {
	s := testbed.New(t, testbed.Options{Bare: true, LogLevel: "info", Config: volumeConfig})
	mnt := filepath.Join(t.TempDir(), "mnt")
	store := newVolume(t, s, "data", "--class", "local")
	snapctl(t, s, "volume", "mount", "data", mnt)
	testbed.Tool(t, "sh", "-c", `cd "$1" && for d in $(seq 60); do mkdir $d && (cd $d && seq 1000 | xargs touch); done`, "sh", mnt)
	snapctl(t, s, "volume", "umount", "--keep-attached", "data")
	dev := strings.TrimSpace(snapctl(t, s, "volume", "attach", "data"))
	timed := func(do func()) time.Duration {
		begin := time.Now()
		do()
		return time.Since(begin)
	}
	var ours, theirs []time.Duration
	for range 9 {
		ours = append(ours, timed(func() { snapctl(t, s, "volume", "mount", "data", mnt) }))
		testbed.Unmount(t, mnt)
		theirs = append(theirs, timed(func() { testbed.Tool(t, "mount", dev, mnt) }))
		testbed.Unmount(t, mnt)
	}
	slices.Sort(ours)
	slices.Sort(theirs)
	ratio := float64(ours[4]) / float64(theirs[4])
	t.Logf("second mount, medians of 9: snapctl %v, mount(8) %v: %.2f", ours[4], theirs[4], ratio)
	snapctl(t, s, "volume", "umount", "data")
	mustBeRight(t, s, "data", store)
}
