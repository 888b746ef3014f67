package disks_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/conformance/testbed"
)

// TestDiskKilled: an ext4 under concurrent writers and flushes outlives kill -9 of remorad, again and again. Nobody
// sees an error, what was acknowledged is there, and no older write lands on a newer one.
func TestDiskKilled(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{Bare: true, LogLevel: "info"})
	file, dev := attachedFile(t, s, diskSize)
	ext4 := testbed.FileSystems[0]
	ext4.Mkfs(t, dev)
	dir, umount := testbed.Mounted(t, dev, "ext4")

	writers := testbed.KillUnderLoad(t, s, dir, testbed.Rounds(25, 1000))
	testbed.Must(t, s.AwaitContainerd())
	umount()
	ext4.Clean(t, dev)
	_, err := s.Snapctl(t.Context(), "dev", "detach", dev)
	testbed.Must(t, err)

	// What the file itself says, by the kernel's own loop device.
	dir = filepath.Join(t.TempDir(), "file")
	testbed.Must(t, os.Mkdir(dir, 0o700))
	testbed.Tool(t, "mount", "-o", "loop,ro", file, dir)
	defer testbed.Unmount(t, dir)
	testbed.MustHoldWrites(t, writers, dir)
}

// backing returns the file that a loop device is on, "" if it is on none.
func backing(dev string) string {
	file, err := os.ReadFile("/sys/block/" + filepath.Base(dev) + "/loop/backing_file")
	if err != nil {
		return ""
	}
	return string(file)
}

// TestDiskLost: when remorad and its holder are killed together, what uses a disk gets errors, like that of a disk which
// was pulled out. What was flushed is in the file, which can be attached again, and no device is left.
func TestDiskLost(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{Bare: true, LogLevel: "info"})
	file, dev := attachedFile(t, s, diskSize)
	ext4 := testbed.FileSystems[0]
	ext4.Mkfs(t, dev)
	dir, umount := testbed.Mounted(t, dev, "ext4")
	was := backing(dev)
	flushed := bytes.Repeat([]byte("flushed "), 4096)
	f, err := os.Create(filepath.Join(dir, "flushed"))
	testbed.Must(t, err)
	_, err = f.Write(flushed)
	testbed.Must(t, errors.Join(err, f.Sync()))
	testbed.Must(t, s.KillHolder())
	testbed.Must(t, s.StopRemorad(unix.SIGKILL))
	testbed.WaitFor(t, "no holder to be left", func() bool { // remorad may have been starting another
		testbed.Must(t, s.KillHolder())
		time.Sleep(100 * time.Millisecond)
		return s.HolderPID() == 0
	})
	if _, err = f.Write(flushed); err == nil {
		err = f.Sync()
	}
	if err == nil {
		t.Error("a flush succeeded with nobody there")
	}
	f.Close() // what it has to say was said above
	testbed.Must(t, s.StartRemorad())
	if out, err := s.Snapctl(t.Context(), "dev", "ls"); err != nil || !strings.Contains(out, "FAILED") {
		t.Errorf("dev ls: %s, %v", out, err)
	}
	umount()
	testbed.WaitFor(t, "the loop device to go", func() bool { return backing(dev) != was })
	dev = attach(t, s, file)
	dir, umount = testbed.Mounted(t, dev, "ext4") // the journal is replayed
	if got, err := os.ReadFile(filepath.Join(dir, "flushed")); err != nil || !bytes.HasPrefix(got, flushed) {
		t.Errorf("what was flushed: %d bytes, %v", len(got), err)
	}
	umount()
	ext4.Clean(t, dev)
}

// TestDiskBytesGone: a disk whose file is gone when remorad starts fails, says why, and can be detached.
func TestDiskBytesGone(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{Bare: true, LogLevel: "info"})
	file, dev := attachedFile(t, s, diskSize)
	testbed.Must(t, s.StopRemorad(unix.SIGKILL))
	testbed.Must(t, os.Rename(file, file+".away"))
	testbed.Must(t, s.StartRemorad())
	if out, err := s.Snapctl(t.Context(), "dev", "ls"); err != nil || !strings.Contains(out, "FAILED") ||
		!strings.Contains(out, "no such file") {
		t.Errorf("dev ls: %s, %v", out, err)
	}
	if _, err := os.ReadFile(dev); !errors.Is(err, unix.EIO) {
		t.Errorf("reading it: %v, want EIO", err)
	}
	was := backing(dev)
	_, err := s.Snapctl(t.Context(), "dev", "detach", dev)
	testbed.Must(t, err)
	if backing(dev) == was {
		t.Errorf("%s is left", dev)
	}
	testbed.Must(t, os.Rename(file+".away", file))
	if again := attach(t, s, file); again == "" {
		t.Error("not attached again")
	}
}
