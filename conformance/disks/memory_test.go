package disks_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/conformance/testbed"
)

// memoryGroup makes a control group that may use so many bytes, until the test ends. It returns the file that processes
// enter it by.
func memoryGroup(t *testing.T, name string, limit int64) (procs string) {
	t.Helper()
	name = fmt.Sprintf("remora-test-%d-%s", os.Getpid(), name)
	dir, file := filepath.Join("/sys/fs/cgroup/memory", name), "memory.limit_in_bytes"
	if _, err := os.Stat(filepath.Dir(dir)); err != nil { // control groups of version 2
		dir, file = filepath.Join("/sys/fs/cgroup", name), "memory.max"
	}
	testbed.Must(t, os.Mkdir(dir, 0o755))
	t.Cleanup(func() {
		testbed.WaitFor(t, "the control group to be empty", func() bool { return !errors.Is(os.Remove(dir), unix.EBUSY) })
	})
	testbed.Must(t, os.WriteFile(filepath.Join(dir, file), []byte(strconv.FormatInt(limit, 10)), 0))
	return filepath.Join(dir, "cgroup.procs")
}

// TestMeasuredDiskMemory: a writer in a control group, which dirties four times the memory that it may use, gets to the
// end, and everything is right, also while remorad may use no more than that itself.
func TestMeasuredDiskMemory(t *testing.T) {
	const limit = 128 << 20
	writer, own := memoryGroup(t, "writer", limit), memoryGroup(t, "remorad", limit)
	s := testbed.New(t, testbed.Options{Bare: true, LogLevel: "info"})
	testbed.Must(t, os.WriteFile(own, []byte(strconv.Itoa(s.RemoradPID())), 0))
	_, dev := attachedFile(t, s, diskSize)
	ext4 := testbed.FileSystems[0]
	ext4.Mkfs(t, dev)
	dir, umount := testbed.Mounted(t, dev, "ext4")
	testbed.Tool(t, "sh", "-c",
		fmt.Sprintf("echo $$ > %s && exec fio --name=dirty --directory=%s --size=%d --rw=write --bs=1M --ioengine=psync "+
			"--direct=0 --end_fsync=1 --verify=crc32c --verify_fatal=1 --verify_state_save=0", writer, dir, 4*limit))
	unix.Sync()
	umount()
	ext4.Clean(t, dev)
}
