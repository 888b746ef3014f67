package fusefile_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/blockdev/export/fusefile"
)

// stuck answers nothing until it is told to stop.
type stuck struct {
	size  int64
	reads atomic.Int32
}

func (s *stuck) Size() int64    { return s.size }
func (s *stuck) BlockSize() int { return 1 }

func (s *stuck) ReadAt(ctx context.Context, _ []byte, _ int64) (int, error) {
	s.reads.Add(1)
	<-ctx.Done()
	return 0, ctx.Err()
}

func dups(t *testing.T, files []*os.File) (all []*os.File) {
	t.Helper()
	for _, f := range files {
		raw, err := f.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		var fd int
		if err := raw.Control(func(old uintptr) { fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 3) }); err != nil {
			t.Fatal(err)
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, os.NewFile(uintptr(fd), f.Name()))
	}
	return all
}

// TestTakenOver: a connection goes from server to server. A request that one had read and not
// answered is answered by the next, without the kernel's help, so on every kernel; the reader only
// waits.
func TestTakenOver(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	log := slog.New(slog.DiscardHandler)
	data := randomBytes(4 << 20)
	f, err := fusefile.Mount(dir, fusefile.Options{Log: log})
	if err != nil {
		t.Fatal(err)
	}
	type result struct {
		got []byte
		err error
	}
	read := make(chan result, 1)
	for life := range 20 {
		dev := &stuck{size: int64(len(data))}
		path := f.Export(node+uint64(life), dev)
		go func() {
			got, err := os.ReadFile(path)
			read <- result{got, err}
		}()
		for dev.reads.Load() == 0 {
			select {
			case r := <-read:
				t.Fatalf("life %d: %d bytes, %v", life, len(r.got), r.err)
			default:
			}
		}
		kept := dups(t, f.Kept())
		if err := f.Stop(); err != nil {
			t.Fatal(err)
		}
		if f, err = fusefile.Adopt(dir, kept, fusefile.Options{Log: log}); err != nil {
			t.Fatal(err)
		}
		f.Export(node+uint64(life), blockdev.Memory(data))
		if err := f.Start(); err != nil {
			t.Fatal(err)
		}
		if r := <-read; r.err != nil || !bytes.Equal(r.got, data) {
			t.Fatalf("life %d: %d bytes, %v", life, len(r.got), r.err)
		}
	}
	if err := f.Unmount(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "2")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after the end: %v", err)
	}
}

// TestAdoptRefuses: what is no connection is refused with a reason.
func TestAdoptRefuses(t *testing.T) {
	null := func() *os.File {
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	for name, files := range map[string][]*os.File{"nothing": nil, "one": {null()}, "no memory": {null(), null()}} {
		if _, err := fusefile.Adopt(t.TempDir(), files, fusefile.Options{Log: slog.New(slog.DiscardHandler)}); err == nil {
			t.Errorf("%s was adopted", name)
		}
	}
}

// TestKilledOverATakeover: a reader that is killed while nobody serves it ends with the next server,
// which was not told of the signal.
func TestKilledOverATakeover(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	log := slog.New(slog.DiscardHandler)
	f, err := fusefile.Mount(dir, fusefile.Options{Log: log})
	if err != nil {
		t.Fatal(err)
	}
	dev := &stuck{size: 4096}
	c := exec.Command("dd", "if="+f.Export(node, dev), "of=/dev/null", "iflag=direct", "bs=4096") // nothing between it and FUSE
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the read", func() bool { return dev.reads.Load() > 0 })
	kept := dups(t, f.Kept())
	if err := errors.Join(f.Stop(), c.Process.Kill()); err != nil {
		t.Fatal(err)
	}
	if f, err = fusefile.Adopt(dir, kept, fusefile.Options{Log: log}); err != nil {
		t.Fatal(err)
	}
	f.Export(node, &stuck{size: 4096})
	if err := f.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Error("a killed reader does not end")
	}
	if err := f.Unmount(); err != nil {
		t.Error(err)
	}
}
