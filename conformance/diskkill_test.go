package conformance_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/conformance/testbed"
	"github.com/remora-storage/remora/conformance/tools/fsx"
)

const (
	stampBlock  = 4096 // bytes that are written at once
	stampBlocks = 64   // of one writer
)

// stamp fills a block with what its writer, its place and its sequence say, all of it.
func stamp(p []byte, writer, block int, sequence uint64) {
	rnd := rand.NewPCG(uint64(writer)<<32|uint64(block), sequence)
	binary.LittleEndian.PutUint64(p, uint64(writer))
	binary.LittleEndian.PutUint64(p[8:], uint64(block))
	binary.LittleEndian.PutUint64(p[16:], sequence)
	for i := 24; i < len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], rnd.Uint64())
	}
}

// A stamper rewrites the blocks of its file again and again, and before that insists that they are what it wrote last.
type stamper struct {
	id       int
	path     string
	direct   bool
	sequence [stampBlocks]uint64 // of the last write that was acknowledged
	writes   atomic.Int64
}

func (w *stamper) open(flags int) (*os.File, error) {
	if w.direct {
		flags |= unix.O_DIRECT
	}
	return os.OpenFile(w.path, flags, 0o600)
}

// rewrite ends with what is wrong, or when it is told to.
func (w *stamper) rewrite(stop <-chan struct{}) (err error) {
	f, err := w.open(os.O_RDWR | os.O_CREATE)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	rnd := rand.New(rand.NewPCG(uint64(w.id), 1))
	p := fsx.OnPage(stampBlock)
	for {
		select {
		case <-stop:
			return f.Sync()
		default:
		}
		block := rnd.IntN(stampBlocks)
		if err := w.check(f, block); err != nil {
			return err
		}
		stamp(p, w.id, block, w.sequence[block]+1)
		if _, err := f.WriteAt(p, int64(block)*stampBlock); err != nil {
			return fmt.Errorf("writer %d, block %d: %w", w.id, block, err)
		}
		w.sequence[block]++
		w.writes.Add(1)
		if rnd.IntN(8) == 0 {
			if err := unix.Fdatasync(int(f.Fd())); err != nil {
				return fmt.Errorf("writer %d: fdatasync: %w", w.id, err)
			}
			if !w.direct { // so that the next reads are of the disk
				if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
					return err
				}
			}
		}
	}
}

// check insists that a block is what was acknowledged last.
func (w *stamper) check(f *os.File, block int) error {
	if w.sequence[block] == 0 {
		return nil
	}
	got, want := fsx.OnPage(stampBlock), make([]byte, stampBlock)
	if _, err := f.ReadAt(got, int64(block)*stampBlock); err != nil {
		return fmt.Errorf("writer %d, block %d: %w", w.id, block, err)
	}
	stamp(want, w.id, block, w.sequence[block])
	if !bytes.Equal(got, want) {
		return fmt.Errorf("writer %d, block %d has writer %d, block %d, sequence %d; sequence %d was acknowledged last",
			w.id, block, binary.LittleEndian.Uint64(got), binary.LittleEndian.Uint64(got[8:]), binary.LittleEndian.Uint64(got[16:]), w.sequence[block])
	}
	return nil
}

// churn makes, renames and removes files, so that the file system's journal is busy too.
func churn(dir string, stop <-chan struct{}) error {
	for i := 0; ; i++ {
		select {
		case <-stop:
			return nil
		default:
		}
		name := filepath.Join(dir, strconv.Itoa(i%16))
		f, err := os.Create(name + ".new")
		if err != nil {
			return err
		}
		_, err = f.Write(make([]byte, 100*i%50000))
		if err := errors.Join(err, f.Sync(), f.Close(), os.Rename(name+".new", name)); err != nil {
			return err
		}
	}
}

// killUnderLoad has remorad killed again and again while writers rewrite blocks and flush and somebody makes and removes
// files in dir. It fails the test if anybody sees an error or an older block. It returns the writers, who know what they
// wrote last.
func killUnderLoad(t *testing.T, s *testbed.Stack, dir string, kills int) []*stamper {
	t.Helper()
	return endUnderLoad(t, s, dir, kills, func(*rand.Rand) { must(t, s.StopRemorad(unix.SIGKILL)) })
}

// endUnderLoad is killUnderLoad with a way of ending remorad.
func endUnderLoad(t *testing.T, s *testbed.Stack, dir string, kills int, end func(*rand.Rand)) []*stamper {
	t.Helper()
	l := startLoad(t, dir)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	for range kills {
		before := l.count()
		end(rnd)
		time.Sleep(time.Duration(rnd.IntN(20)) * time.Millisecond)
		must(t, s.StartRemoradOnly())
		l.mustReach(t, before+100)
		time.Sleep(time.Duration(rnd.IntN(30)) * time.Millisecond)
	}
	return l.end(t)
}

// A load is six writers who rewrite blocks and flush, and somebody who makes and removes files.
type load struct {
	writers []*stamper
	halt    func()
	ended   chan error // of each, and only if it went wrong before it was told to end
}

// startLoad puts load on a directory. It ends with the test.
func startLoad(t *testing.T, dir string) *load {
	t.Helper()
	stop := make(chan struct{})
	var running sync.WaitGroup
	l := &load{writers: make([]*stamper, 6), ended: make(chan error, 7)}
	l.halt = sync.OnceFunc(func() {
		close(stop)
		running.Wait()
	})
	t.Cleanup(l.halt)
	running.Go(func() { l.ended <- churn(dir, stop) })
	for i := range l.writers {
		w := &stamper{id: i + 1, path: filepath.Join(dir, fmt.Sprintf("writer-%d", i+1)), direct: i%3 != 0}
		l.writers[i] = w
		running.Go(func() { l.ended <- w.rewrite(stop) })
	}
	return l
}

// count returns how many writes were acknowledged.
func (l *load) count() (n int64) {
	for _, w := range l.writers {
		n += w.writes.Load()
	}
	return n
}

// mustReach waits until so many writes were acknowledged.
func (l *load) mustReach(t *testing.T, n int64) {
	t.Helper()
	waitFor(t, "writers to go on", func() bool {
		l.mustRun(t)
		return l.count() > n
	})
}

// mustRun insists that nobody has seen an error.
func (l *load) mustRun(t *testing.T) {
	t.Helper()
	select {
	case err := <-l.ended:
		t.Fatal(err)
	default:
	}
}

// end ends the load and returns the writers, who know what they wrote last.
func (l *load) end(t *testing.T) []*stamper {
	t.Helper()
	l.halt()
	for range cap(l.ended) {
		must(t, <-l.ended)
	}
	t.Logf("%d writes by %d writers", l.count(), len(l.writers))
	return l.writers
}

// mustHoldWrites insists that the files of writers, in dir, are what they wrote last.
func mustHoldWrites(t *testing.T, writers []*stamper, dir string) {
	t.Helper()
	for _, w := range writers {
		w.path = filepath.Join(dir, filepath.Base(w.path))
		f, err := w.open(os.O_RDONLY)
		must(t, err)
		for block := range stampBlocks {
			if err := w.check(f, block); err != nil {
				t.Error(err)
			}
		}
		must(t, f.Close())
	}
}

// TestDiskKilled: an ext4 under concurrent writers and flushes outlives kill -9 of remorad, again and again. Nobody
// sees an error, what was acknowledged is there, and no older write lands on a newer one.
func TestDiskKilled(t *testing.T) {
	t.Parallel()
	s := newStack(t, testbed.Options{LogLevel: "info"})
	file, dev := attachedFile(t, s, diskSize)
	ext4 := diskFileSystems[0]
	ext4.mkfs(t, dev)
	dir, umount := mounted(t, dev, "ext4")

	writers := killUnderLoad(t, s, dir, rounds(50, 1000))
	must(t, s.AwaitContainerd())
	umount()
	ext4.clean(t, dev)
	_, err := s.Snapctl(t.Context(), "dev", "detach", dev)
	must(t, err)

	// What the file itself says, by the kernel's own loop device.
	dir = filepath.Join(t.TempDir(), "file")
	must(t, os.Mkdir(dir, 0o700))
	output(t, "mount", "-o", "loop,ro", file, dir)
	defer unmount(t, dir)
	mustHoldWrites(t, writers, dir)
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
	s := newStack(t, testbed.Options{LogLevel: "info"})
	file, dev := attachedFile(t, s, diskSize)
	ext4 := diskFileSystems[0]
	ext4.mkfs(t, dev)
	dir, umount := mounted(t, dev, "ext4")
	was := backing(dev)
	flushed := bytes.Repeat([]byte("flushed "), 4096)
	f, err := os.Create(filepath.Join(dir, "flushed"))
	must(t, err)
	_, err = f.Write(flushed)
	must(t, errors.Join(err, f.Sync()))
	must(t, s.KillHolder())
	must(t, s.StopRemorad(unix.SIGKILL))
	waitFor(t, "no holder to be left", func() bool { // remorad may have been starting another
		must(t, s.KillHolder())
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
	must(t, s.StartRemorad())
	if out, err := s.Snapctl(t.Context(), "dev", "ls"); err != nil || strings.Contains(out, file) {
		t.Errorf("dev ls: %s, %v", out, err)
	}
	umount()
	waitFor(t, "the loop device to go", func() bool { return backing(dev) != was })
	dev = attach(t, s, file)
	dir, umount = mounted(t, dev, "ext4") // the journal is replayed
	if got, err := os.ReadFile(filepath.Join(dir, "flushed")); err != nil || !bytes.HasPrefix(got, flushed) {
		t.Errorf("what was flushed: %d bytes, %v", len(got), err)
	}
	umount()
	ext4.clean(t, dev)
}

// TestDiskBytesGone: a disk whose file is gone when remorad starts fails, says why, and can be detached.
func TestDiskBytesGone(t *testing.T) {
	t.Parallel()
	s := newStack(t, testbed.Options{LogLevel: "info"})
	file, dev := attachedFile(t, s, diskSize)
	must(t, s.StopRemorad(unix.SIGKILL))
	must(t, os.Rename(file, file+".away"))
	must(t, s.StartRemorad())
	if out, err := s.Snapctl(t.Context(), "dev", "ls"); err != nil || !strings.Contains(out, "FAILED") || !strings.Contains(out, "no such file") {
		t.Errorf("dev ls: %s, %v", out, err)
	}
	if _, err := os.ReadFile(dev); !errors.Is(err, unix.EIO) {
		t.Errorf("reading it: %v, want EIO", err)
	}
	was := backing(dev)
	_, err := s.Snapctl(t.Context(), "dev", "detach", dev)
	must(t, err)
	if backing(dev) == was {
		t.Errorf("%s is left", dev)
	}
	must(t, os.Rename(file+".away", file))
	if again := attach(t, s, file); again == "" {
		t.Error("not attached again")
	}
}
