package fusefile_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/blockdev/export/fusefile"
	"github.com/remora-storage/remora/conformance/faultdev"
	"github.com/remora-storage/remora/conformance/suite"
)

var writable = fusefile.Options{Writable: true, Log: slog.New(slog.DiscardHandler)}

// openFile opens a file of a directory that this process serves, by a call that the runtime knows to block.
func openFile(t *testing.T, path string, flags int) int {
	t.Helper()
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

// TestWrite: a device's file takes writes, fsync and fallocate, and refuses what would change its size.
func TestWrite(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	f, err := fusefile.Mount(t.TempDir(), writable)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := f.Unmount(); err != nil {
			t.Error(err)
		}
	}()
	dev := suite.RAM(t, 8<<20)
	var flushes atomic.Int32
	path := f.Export(node, faultdev.Faulty(dev, func(_ context.Context, op blockdev.Op, _, _ int64) error {
		if op == blockdev.OpFlush && flushes.Add(1) == 3 {
			return unix.EIO
		}
		return nil
	}))
	fd := openFile(t, path, unix.O_RDWR)
	defer unix.Close(fd)
	data := randomBytes(1 << 20)
	if n, err := unix.Pwrite(fd, data, 12345); n != len(data) || err != nil {
		t.Fatal(n, err)
	}
	got := make([]byte, len(data))
	if n, err := unix.Pread(fd, got, 12345); n != len(got) || err != nil || !bytes.Equal(got, data) {
		t.Fatalf("read %d, %v", n, err)
	}
	if err := errors.Join(unix.Fsync(fd), unix.Fdatasync(fd)); err != nil || flushes.Load() != 2 {
		t.Errorf("fsync: %v, %d flushes", err, flushes.Load())
	}
	if err := unix.Fsync(fd); !errors.Is(err, unix.EIO) {
		t.Errorf("a flush that failed: %v", err)
	}
	for _, mode := range []uint32{unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE} {
		if err := dev.WriteAt(t.Context(), data, 0); err != nil {
			t.Fatal(err)
		}
		if err := unix.Fallocate(fd, mode, 4096, 8192); err != nil {
			t.Errorf("fallocate %#x: %v", mode, err)
		}
		if n, err := unix.Pread(fd, got[:16384], 0); n != 16384 || err != nil || !bytes.Equal(got[4096:12288], make([]byte, 8192)) ||
			!bytes.Equal(got[:4096], data[:4096]) || !bytes.Equal(got[12288:16384], data[12288:16384]) {
			t.Errorf("fallocate %#x: wrong bytes (%d, %v)", mode, n, err)
		}
	}
	if err := unix.Fallocate(fd, 0, 0, 4096); !errors.Is(err, unix.EOPNOTSUPP) {
		t.Errorf("plain fallocate: %v", err)
	}
	if n, err := unix.Pwrite(fd, data[:4096], 8<<20); n > 0 || err == nil {
		t.Errorf("write beyond the end: %d, %v", n, err)
	}
	if err := unix.Ftruncate(fd, 0); err == nil {
		t.Error("truncated")
	}
}

// TestFlushOfNothing: a file that nobody has written to is flushed without its device, whose flush may wait. With one that another
// process served nobody knows.
func TestFlushOfNothing(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	f, err := fusefile.Mount(t.TempDir(), writable)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := f.Unmount(); err != nil {
			t.Error(err)
		}
	}()
	for what, c := range map[string]struct {
		export func(uint64, blockdev.Device) string
		before int32 // flushes of a file that this process did not write to
	}{"made": {f.Make, 0}, "taken over": {f.Export, 1}} {
		var flushes atomic.Int32
		fd := openFile(t, c.export(node, faultdev.Faulty(suite.RAM(t, 1<<20), func(_ context.Context, op blockdev.Op, _, _ int64) error {
			if op == blockdev.OpFlush {
				flushes.Add(1)
			}
			return nil
		})), unix.O_RDWR)
		if err := unix.Fsync(fd); err != nil || flushes.Load() != c.before {
			t.Errorf("%s: %d flushes before a write (%v)", what, flushes.Load(), err)
		}
		if _, err := unix.Pwrite(fd, make([]byte, 4096), 0); err != nil {
			t.Error(err)
		}
		if err := errors.Join(unix.Fsync(fd), unix.Fsync(fd)); err != nil || flushes.Load() != c.before+2 {
			t.Errorf("%s: %d flushes after a write (%v)", what, flushes.Load(), err)
		}
		if err := unix.Close(fd); err != nil {
			t.Error(err)
		}
		f.Withdraw(node)
	}
}

// TestWriteTakenOver: a write that one server had read and not carried out is carried out by the next, before
// anything that comes later.
func TestWriteTakenOver(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	f, err := fusefile.Mount(dir, writable)
	if err != nil {
		t.Fatal(err)
	}
	dev := suite.RAM(t, 1<<20)
	var begun atomic.Int32
	path := f.Export(node, faultdev.Faulty(dev, func(ctx context.Context, op blockdev.Op, _, _ int64) error {
		if op != blockdev.OpWrite {
			return nil
		}
		begun.Add(1)
		<-ctx.Done() // as if killed
		return ctx.Err()
	}))
	fd := openFile(t, path, unix.O_RDWR)
	defer unix.Close(fd)
	ended := make(chan error, 1)
	go func() {
		_, err := unix.Pwrite(fd, []byte("first"), 0)
		ended <- err
	}()
	waitFor(t, "the first write", func() bool { return begun.Load() > 0 })
	kept := dups(t, f.Kept())
	if err := f.Stop(); err != nil {
		t.Fatal(err)
	}
	later, thread := make(chan error, 1), make(chan int, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		thread <- unix.Gettid()
		_, err := unix.Pwrite(fd, []byte("later"), 0)
		later <- err
	}()
	if f, err = fusefile.Adopt(dir, kept, writable); err != nil {
		t.Fatal(err)
	}
	tid := <-thread
	waitFor(t, "the later write to be in the kernel", func() bool { return inPwrite(t, tid) })
	var writes atomic.Int32
	overtaken := make(chan struct{})
	f.Export(node, faultdev.Faulty(dev, func(_ context.Context, op blockdev.Op, _, _ int64) error {
		if op != blockdev.OpWrite {
			return nil
		}
		if writes.Add(1) > 1 {
			close(overtaken)
			return nil
		}
		select { // the other is there, and has time to overtake if it can
		case <-overtaken:
			t.Error("a later write was carried out beside the one that was taken over")
		case <-time.After(50 * time.Millisecond):
		}
		return nil
	}))
	if err := f.Start(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(<-ended, <-later); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 5)
	if _, err := dev.ReadAt(t.Context(), p, 0); err != nil || string(p) != "later" || writes.Load() != 2 {
		t.Errorf("%q, %v, %d writes", p, err, writes.Load())
	}
	if err := f.Unmount(); err != nil {
		t.Error(err)
	}
}

// inPwrite reports whether a thread of this process is in the system call that writes at an offset.
func inPwrite(t *testing.T, thread int) bool {
	t.Helper()
	p, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/syscall", thread))
	if err != nil {
		t.Fatal(err)
	}
	return strings.HasPrefix(string(p), fmt.Sprintf("%d ", unix.SYS_PWRITE64))
}

// waitFor waits for what must come. Its patience says nothing of how fast that should be.
func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}
