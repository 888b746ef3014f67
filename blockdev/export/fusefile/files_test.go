package fusefile_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/blockdev/export/fusefile"
)

const node = fusefile.FirstNode

func serve(t *testing.T) *fusefile.Files {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	f, err := fusefile.Mount(t.TempDir(), fusefile.Options{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Unmount(); err != nil {
			t.Error(err)
		}
	})
	return f
}

func randomBytes(n int) []byte {
	r := rand.New(rand.NewPCG(5, 5))
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(r.Uint32())
	}
	return p
}

func TestFuseFileHasTheDevicesBytes(t *testing.T) {
	f := serve(t)
	data := randomBytes(5_000_001)
	path := f.Export(node, blockdev.Memory(data))
	got, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("got %d bytes, %v", len(got), err)
	}
	if st, err := os.Stat(path); err != nil || st.Size() != int64(len(data)) {
		t.Errorf("size %d, %v", st.Size(), err)
	}
	if _, err := os.OpenFile(path, os.O_RDWR, 0); err == nil {
		t.Error("opened for writing")
	}
	in, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	p := make([]byte, 100)
	if n, err := in.ReadAt(p, int64(len(data))-50); n != 50 || err != io.EOF {
		t.Errorf("at the end: %d, %v", n, err)
	}
	f.Withdraw(node)
	if _, err := os.Open(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("withdrawn: %v", err)
	}
}

// failing fails or hangs as a test says.
type failing struct {
	err  error
	hang chan struct{} // takes a value for each read that hangs
}

func (failing) Size() int64    { return 1 << 20 }
func (failing) BlockSize() int { return 1 }

func (d failing) ReadAt(ctx context.Context, _ []byte, _ int64) (int, error) {
	if d.hang != nil {
		d.hang <- struct{}{}
		<-ctx.Done()
		return 0, ctx.Err()
	}
	return 0, d.err
}

func TestErrorsReachTheReader(t *testing.T) {
	f := serve(t)
	next := uint64(node)
	for name, c := range map[string]struct {
		err  error
		want unix.Errno
	}{
		"anything":     {errors.New("registry is gone"), unix.EIO},
		"no space":     {&os.PathError{Op: "write", Err: unix.ENOSPC}, unix.ENOSPC},
		"other errnos": {&os.PathError{Op: "read", Err: unix.ENOENT}, unix.EIO},
	} {
		t.Run(name, func(t *testing.T) {
			next++
			path := f.Export(next, failing{err: c.err})
			if _, err := os.ReadFile(path); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}

// TestReaderIsKilled: a reader that is killed while it waits ends at once, and the device is told.
func TestReaderIsKilled(t *testing.T) {
	f := serve(t)
	d := failing{hang: make(chan struct{}, 100)}
	path := f.Export(node, d)
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	p, err := os.StartProcess("/bin/cat", []string{"cat", path}, &os.ProcAttr{Files: []*os.File{null, null, null}})
	if err != nil {
		t.Fatal(err)
	}
	<-d.hang
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { _, err := p.Wait(); done <- err }()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("a killed reader does not end")
	}
}

func TestManyReaders(t *testing.T) {
	f := serve(t)
	data := randomBytes(8 << 20)
	path := f.Export(node, blockdev.Memory(data))
	var all sync.WaitGroup
	for w := range 16 {
		all.Go(func() {
			in, err := os.Open(path)
			if err != nil {
				t.Error(err)
				return
			}
			defer in.Close()
			r := rand.New(rand.NewPCG(uint64(w), 1))
			p := make([]byte, 70_000)
			for range 100 {
				off := r.IntN(len(data) - len(p))
				if _, err := in.ReadAt(p, int64(off)); err != nil || !bytes.Equal(p, data[off:off+len(p)]) {
					t.Errorf("at %d: %v", off, err)
					return
				}
			}
		})
	}
	all.Wait()
}

func TestLoop(t *testing.T) {
	f := serve(t)
	data := randomBytes(1 << 20)
	path := f.Export(node, blockdev.Memory(data))
	l, err := blockdev.AttachLoop(path)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(l.Path())
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
	if err := l.Release(); err != nil {
		t.Error(err)
	}
}
