package disks_test

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
	testbed.Must(t, os.WriteFile(file, nil, 0o600))
	testbed.Must(t, os.Truncate(file, size))
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
	testbed.Must(t, err)
	return strings.TrimSpace(out)
}

const diskSize = 1 << 30

// TestDiskFileSystems: file systems of three kinds live on a device, past the page cache and through it, with sectors
// of both sizes, and what is trimmed is given back.
func TestDiskFileSystems(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{Bare: true, LogLevel: "info"})
	for i, fs := range testbed.FileSystems {
		for j, sector := range []int{512, 4096} {
			t.Run(fmt.Sprintf("%s/%d", fs.Name, sector), func(t *testing.T) {
				file, dev := attachedFile(t, s, diskSize, "--sector", strconv.Itoa(sector))
				if got := strings.TrimSpace(testbed.Tool(t, "blockdev", "--getss", dev)); got != strconv.Itoa(sector) {
					t.Errorf("sectors of %s bytes, want %d", got, sector)
				}
				seed := uint64(2*i + j)
				for _, direct := range []bool{false, true} {
					testbed.Must(t, fsx.Run(dev, fsx.Options{Size: 8 << 20, Steps: testbed.Rounds(300, 20000), Seed: seed, Direct: direct, Device: true}))
				}
				fs.Mkfs(t, dev)
				dir, umount := testbed.Mounted(t, dev, fs.Name)
				for _, direct := range []bool{false, true} {
					flag := "--direct=" + map[bool]string{false: "0", true: "1"}[direct]
					testbed.Tool(t, "fio", "--name=verify", "--directory="+dir, "--size=32M", "--rw=randwrite", "--bsrange=4k-64k", "--blockalign=4k",
						"--ioengine=libaio", "--iodepth=16", "--fsync=16", "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0",
						"--numjobs=2", flag)
					testbed.Must(t, fsx.Run(filepath.Join(dir, "fsx"), fsx.Options{Size: 8 << 20, Steps: testbed.Rounds(500, 50000),
						Seed: seed, Direct: direct}))
				}
				unix.Sync()
				before := stored(t, file)
				testbed.Must(t, errors.Join(os.RemoveAll(filepath.Join(dir, "fsx")), os.RemoveAll(filepath.Join(dir, "verify.0.0")),
					os.RemoveAll(filepath.Join(dir, "verify.1.0"))))
				testbed.WaitFor(t, "trimmed files to be given back", func() bool { // XFS frees them some time after they were removed
					unix.Sync()
					testbed.Tool(t, "fstrim", dir)
					return stored(t, file) <= before-(64<<20)
				})
				umount()
				fs.Clean(t, dev)
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
	testbed.Must(t, unix.Stat(path, &st))
	return st.Blocks * 512
}

// TestDiskCommands: attaching again and detaching what is not attached are no errors, what is in use stays, and
// what cannot be is refused with a reason.
func TestDiskCommands(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{Bare: true, LogLevel: "info"})
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
	testbed.Must(t, os.WriteFile(odd, make([]byte, 1000), 0o600))
	refused("1000 bytes", "attach", odd)
	refused("no such file", "attach", odd+"x")
	refused("512 or 4096", "attach", "--sector", "1024", odd)
	other := exec.Command(filepath.Join(testbed.Repo(), "bin", "snapctl"), "dev", "serve", "--unix", filepath.Join(t.TempDir(), "s"), file)
	if out, err := other.CombinedOutput(); err == nil || !strings.Contains(string(out), "in use") {
		t.Errorf("a file was served twice: %s", out)
	}
	testbed.FileSystems[0].Mkfs(t, dev)
	dir, umount := testbed.Mounted(t, dev, "ext4")
	refused("in use: unmount it first, from "+dir, "detach", dev)
	testbed.Must(t, s.StopRemorad(unix.SIGTERM))
	testbed.Must(t, s.StartRemorad())
	refused("in use: unmount it first, from "+dir, "detach", file)
	umount()
	late, err := os.OpenFile(dev, os.O_RDONLY|unix.O_EXCL, 0) // as the copy that a starting container has of a mount
	testbed.Must(t, err)
	time.AfterFunc(500*time.Millisecond, func() { late.Close() })
	for range 2 {
		_, err := s.Snapctl(t.Context(), "dev", "detach", dev)
		testbed.Must(t, err)
	}
	ro := attach(t, s, file, "--read-only")
	if err := os.WriteFile(ro, make([]byte, 4096), 0); err == nil {
		t.Errorf("%s was written to", ro)
	}
	testbed.FileSystems[0].Clean(t, ro)
	_, err = s.Snapctl(t.Context(), "dev", "detach", ro)
	testbed.Must(t, err)
	testbed.Must(t, s.StopRemorad(unix.SIGTERM))
	testbed.WaitFor(t, "the holder to end", func() bool { return s.HolderPID() == 0 })
	testbed.Must(t, s.StartRemorad())
}
