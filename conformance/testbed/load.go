package testbed

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

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

// A Writer rewrites the blocks of its file again and again, and before that insists that they are what it wrote last.
type Writer struct {
	id       int
	path     string
	direct   bool
	sequence [stampBlocks]uint64 // of the last write that was acknowledged
	writes   atomic.Int64
}

func (w *Writer) open(flags int) (*os.File, error) {
	if w.direct {
		flags |= unix.O_DIRECT
	}
	return os.OpenFile(w.path, flags, 0o600)
}

// rewrite ends with what is wrong, or when it is told to.
func (w *Writer) rewrite(stop <-chan struct{}) (err error) {
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
func (w *Writer) check(f *os.File, block int) error {
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
			w.id, block, binary.LittleEndian.Uint64(got), binary.LittleEndian.Uint64(got[8:]),
			binary.LittleEndian.Uint64(got[16:]), w.sequence[block])
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

// KillUnderLoad has remorad killed again and again while writers rewrite blocks and flush and somebody makes and removes
// files in dir. It fails the test if anybody sees an error or an older block. It returns the writers, who know what they
// wrote last.
func KillUnderLoad(t *testing.T, s *Stack, dir string, kills int) []*Writer {
	t.Helper()
	return EndUnderLoad(t, s, dir, kills, func(*rand.Rand) { Must(t, s.StopRemorad(unix.SIGKILL)) })
}

// EndUnderLoad is KillUnderLoad with a way of ending remorad.
func EndUnderLoad(t *testing.T, s *Stack, dir string, kills int, end func(*rand.Rand)) []*Writer {
	t.Helper()
	l := StartLoad(t, dir)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	for range kills {
		before := l.Count()
		end(rnd)
		time.Sleep(time.Duration(rnd.IntN(20)) * time.Millisecond)
		Must(t, s.StartRemoradOnly())
		l.MustReach(t, before+100)
		time.Sleep(time.Duration(rnd.IntN(30)) * time.Millisecond)
	}
	return l.End(t)
}

// A Load is six writers who rewrite blocks and flush, and somebody who makes and removes files.
type Load struct {
	writers []*Writer
	halt    func()
	ended   chan error // of each, and only if it went wrong before it was told to end
}

// StartLoad puts load on a directory. It ends with the test.
func StartLoad(t *testing.T, dir string) *Load {
	t.Helper()
	stop := make(chan struct{})
	var running sync.WaitGroup
	l := &Load{writers: make([]*Writer, 6), ended: make(chan error, 7)}
	l.halt = sync.OnceFunc(func() {
		close(stop)
		running.Wait()
	})
	t.Cleanup(l.halt)
	running.Go(func() { l.ended <- churn(dir, stop) })
	for i := range l.writers {
		w := &Writer{id: i + 1, path: filepath.Join(dir, fmt.Sprintf("writer-%d", i+1)), direct: i%3 != 0}
		l.writers[i] = w
		running.Go(func() { l.ended <- w.rewrite(stop) })
	}
	return l
}

// Count returns how many writes were acknowledged.
func (l *Load) Count() (n int64) {
	for _, w := range l.writers {
		n += w.writes.Load()
	}
	return n
}

// MustReach waits until so many writes were acknowledged.
func (l *Load) MustReach(t *testing.T, n int64) {
	t.Helper()
	WaitFor(t, "writers to go on", func() bool {
		l.MustRun(t)
		return l.Count() > n
	})
}

// MustRun insists that nobody has seen an error.
func (l *Load) MustRun(t *testing.T) {
	t.Helper()
	select {
	case err := <-l.ended:
		t.Fatal(err)
	default:
	}
}

// End ends the load and returns the writers, who know what they wrote last.
func (l *Load) End(t *testing.T) []*Writer {
	t.Helper()
	l.halt()
	for range cap(l.ended) {
		Must(t, <-l.ended)
	}
	t.Logf("%d writes by %d writers", l.Count(), len(l.writers))
	return l.writers
}

// MustHoldWrites insists that the files of writers, in dir, are what they wrote last.
func MustHoldWrites(t *testing.T, writers []*Writer, dir string) {
	t.Helper()
	for _, w := range writers {
		w.path = filepath.Join(dir, filepath.Base(w.path))
		f, err := w.open(os.O_RDONLY)
		Must(t, err)
		for block := range stampBlocks {
			if err := w.check(f, block); err != nil {
				t.Error(err)
			}
		}
		Must(t, f.Close())
	}
}
