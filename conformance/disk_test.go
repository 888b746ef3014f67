package conformance_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/conformance/testbed"
	"github.com/remora-storage/remora/conformance/tools/fsx"
)

// attachedFile makes a sparse file, attaches it, and has it detached when the test ends.
func attachedFile(t *testing.T, s *testbed.Stack, size int64, args ...string) (file, dev string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "disk.img")
	must(t, os.WriteFile(file, nil, 0o600))
	must(t, os.Truncate(file, size))
	dev = attach(t, s, file, args...)
	t.Cleanup(func() {
		if _, err := s.Snapctl(context.Background(), "dev", "detach", file); err != nil {
			t.Error(err)
		}
	})
	return file, dev
}

// attach attaches a file and returns the device.
func attach(t *testing.T, s *testbed.Stack, file string, args ...string) string {
	t.Helper()
	out, err := s.Snapctl(t.Context(), append([]string{"dev", "attach", file}, args...)...)
	must(t, err)
	return strings.TrimSpace(out)
}

// mounted mounts a device until the test ends. umount ends it before.
func mounted(t *testing.T, dev, fstype string) (dir string, umount func()) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "mnt")
	must(t, os.Mkdir(dir, 0o700))
	must(t, unix.Mount(dev, dir, fstype, 0, ""))
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			t.Error(err)
		}
	})
	return dir, func() {
		t.Helper()
		unmount(t, dir)
	}
}

// A diskFS is a file system with those who judge it.
type diskFS struct {
	name  string
	make  []string // before the device
	check []string // changes nothing
}

var diskFileSystems = []diskFS{
	{"ext4", []string{"mkfs.ext4", "-q", "-F"}, []string{"e2fsck", "-f", "-n"}},
	{"xfs", []string{"mkfs.xfs", "-q", "-f"}, []string{"xfs_repair", "-n"}},
	{"btrfs", []string{"mkfs.btrfs", "-q", "-f"}, []string{"btrfs", "check", "--readonly"}},
}

func (fs diskFS) mkfs(t *testing.T, dev string) {
	t.Helper()
	output(t, fs.make[0], append(fs.make[1:len(fs.make):len(fs.make)], dev)...)
}

func (fs diskFS) clean(t *testing.T, dev string) {
	t.Helper()
	output(t, fs.check[0], append(fs.check[1:len(fs.check):len(fs.check)], dev)...)
}

const diskSize = 1 << 30

// TestDiskFileSystems: file systems of three kinds live on a device, past the page cache and through it, with sectors
// of both sizes, and what is trimmed is given back.
func TestDiskFileSystems(t *testing.T) {
	t.Parallel()
	s := newStack(t, testbed.Options{LogLevel: "info"})
	for i, fs := range diskFileSystems {
		for j, sector := range []int{512, 4096} {
			t.Run(fmt.Sprintf("%s/%d", fs.name, sector), func(t *testing.T) {
				file, dev := attachedFile(t, s, diskSize, "--sector", strconv.Itoa(sector))
				if got := strings.TrimSpace(output(t, "blockdev", "--getss", dev)); got != strconv.Itoa(sector) {
					t.Errorf("sectors of %s bytes, want %d", got, sector)
				}
				seed := uint64(2*i + j)
				for _, direct := range []bool{false, true} {
					must(t, fsx.Run(dev, fsx.Options{Size: 8 << 20, Steps: rounds(300, 20000), Seed: seed, Direct: direct, Device: true}))
				}
				fs.mkfs(t, dev)
				dir, umount := mounted(t, dev, fs.name)
				for _, direct := range []bool{false, true} {
					flag := "--direct=" + map[bool]string{false: "0", true: "1"}[direct]
					output(t, "fio", "--name=verify", "--directory="+dir, "--size=32M", "--rw=randwrite", "--bsrange=4k-64k", "--blockalign=4k",
						"--ioengine=libaio", "--iodepth=16", "--fsync=16", "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--numjobs=2", flag)
					must(t, fsx.Run(filepath.Join(dir, "fsx"), fsx.Options{Size: 8 << 20, Steps: rounds(500, 50000), Seed: seed, Direct: direct}))
				}
				unix.Sync()
				before := stored(t, file)
				must(t, errors.Join(os.RemoveAll(filepath.Join(dir, "fsx")), os.RemoveAll(filepath.Join(dir, "verify.0.0")), os.RemoveAll(filepath.Join(dir, "verify.1.0"))))
				waitFor(t, "trimmed files to be given back", func() bool { // XFS frees them some time after they were removed
					unix.Sync()
					output(t, "fstrim", dir)
					return stored(t, file) <= before-(64<<20)
				})
				umount()
				fs.clean(t, dev)
			})
		}
	}
	if st, err := s.Snapctl(t.Context(), "dev", "ls"); err != nil || strings.Count(st, "\n") != 1 {
		t.Errorf("left: %s, %v", st, err)
	}
}

// stored returns the bytes that a file takes.
func stored(t *testing.T, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Stat(path, &st))
	return st.Blocks * 512
}

// TestDiskCommands: attaching again and detaching what is not attached are no errors, what is in use stays, and
// what cannot be is refused with a reason.
func TestDiskCommands(t *testing.T) {
	t.Parallel()
	s := newStack(t, testbed.Options{LogLevel: "info"})
	file, dev := attachedFile(t, s, 64<<20)
	if again := attach(t, s, file); again != dev {
		t.Errorf("attached again as %s, was %s", again, dev)
	}
	refused := func(want string, args ...string) {
		t.Helper()
		if _, err := s.Snapctl(t.Context(), append([]string{"dev"}, args...)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("snapctl dev %s: %v, want %q", strings.Join(args, " "), err, want)
		}
	}
	refused("detach it first", "attach", "--read-only", file)
	odd := filepath.Join(t.TempDir(), "odd")
	must(t, os.WriteFile(odd, make([]byte, 1000), 0o600))
	refused("1000 bytes", "attach", odd)
	refused("no such file", "attach", odd+"x")
	refused("512 or 4096", "attach", "--sector", "1024", odd)
	other := exec.Command(filepath.Join(testbed.Repo(), "bin", "snapctl"), "dev", "serve", "--unix", filepath.Join(t.TempDir(), "s"), file)
	if out, err := other.CombinedOutput(); err == nil || !strings.Contains(string(out), "in use") {
		t.Errorf("a file was served twice: %s", out)
	}
	diskFileSystems[0].mkfs(t, dev)
	dir, umount := mounted(t, dev, "ext4")
	refused("in use: unmount it first, from "+dir, "detach", dev)
	must(t, s.StopRemorad(unix.SIGTERM))
	must(t, s.StartRemorad())
	refused("in use: unmount it first, from "+dir, "detach", file)
	umount()
	late, err := os.OpenFile(dev, os.O_RDONLY|unix.O_EXCL, 0) // as the copy that a starting container has of a mount
	must(t, err)
	time.AfterFunc(500*time.Millisecond, func() { late.Close() })
	for range 2 {
		_, err := s.Snapctl(t.Context(), "dev", "detach", dev)
		must(t, err)
	}
	ro := attach(t, s, file, "--read-only")
	if err := os.WriteFile(ro, make([]byte, 4096), 0); err == nil {
		t.Errorf("%s was written to", ro)
	}
	diskFileSystems[0].clean(t, ro)
	_, err = s.Snapctl(t.Context(), "dev", "detach", ro)
	must(t, err)
	must(t, s.StopRemorad(unix.SIGTERM))
	waitFor(t, "the holder to end", func() bool { return s.HolderPID() == 0 })
	must(t, s.StartRemorad())
}
