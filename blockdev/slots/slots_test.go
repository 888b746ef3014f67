package slots_test

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev/slots"
)

func again(t *testing.T, s *slots.Slots) *slots.Slots {
	t.Helper()
	fd, err := unix.FcntlInt(s.File().Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		t.Fatal(err)
	}
	o, err := slots.Open(os.NewFile(uintptr(fd), "again"))
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// TestTwoMappings: what one process writes into a slot the other finds there, and the slots that
// are free are each process's own business.
func TestTwoMappings(t *testing.T) {
	s, err := slots.New("test", 8, 64)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	o := again(t, s)
	defer o.Close()
	if o.Len() != 8 || o.Size() != 64 {
		t.Fatalf("%d of %d", o.Len(), o.Size())
	}
	if _, ok := s.TryTake(); ok {
		t.Error("a new one has free slots before it was said which are")
	}
	s.Release(3)
	slot, ok := s.TryTake()
	if !ok || slot != 3 {
		t.Fatalf("slot %d, %v", slot, ok)
	}
	copy(s.Slot(slot), "hello")
	copy(s.Own(), "own")
	if string(o.Slot(slot)[:5]) != "hello" || string(o.Own()[:3]) != "own" {
		t.Error("the other mapping has something else")
	}
	if _, ok := o.TryTake(); ok {
		t.Error("an opened one has free slots before it was said which are")
	}
}

// TestTakeAndRelease: no slot is given to two, and a waiter gets the next that comes.
func TestTakeAndRelease(t *testing.T) {
	s, err := slots.New("test", 4, 8)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for i := range s.Len() {
		s.Release(i)
	}
	stop := make(chan struct{})
	var all sync.WaitGroup
	var mu sync.Mutex
	used := map[int]bool{}
	for range 16 {
		all.Go(func() {
			for range 500 {
				i, ok := s.Take(stop)
				if !ok {
					t.Error("stopped")
					return
				}
				mu.Lock()
				if used[i] {
					t.Errorf("slot %d was given twice", i)
				}
				used[i] = true
				mu.Unlock()
				mu.Lock()
				delete(used, i)
				mu.Unlock()
				s.Release(i)
			}
		})
	}
	all.Wait()
	for range 4 {
		s.TryTake()
	}
	close(stop)
	if _, ok := s.Take(stop); ok {
		t.Error("took a slot that nobody has")
	}
}

// TestOpenRefuses: memory that is not ours, or may shrink under us, is refused with a reason.
func TestOpenRefuses(t *testing.T) {
	file := func(p []byte) *os.File {
		path := filepath.Join(t.TempDir(), "f")
		if err := os.WriteFile(path, p, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	memory := func(head string, n, size uint32, bytes int64) *os.File {
		fd, err := unix.MemfdCreate("test", unix.MFD_ALLOW_SEALING)
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), "memory")
		p := make([]byte, 4096)
		copy(p, head)
		binary.LittleEndian.PutUint32(p[8:], 1)
		binary.LittleEndian.PutUint32(p[12:], n)
		binary.LittleEndian.PutUint32(p[16:], size)
		if _, err := f.WriteAt(p, 0); err != nil {
			t.Fatal(err)
		}
		if err := f.Truncate(bytes); err != nil {
			t.Fatal(err)
		}
		if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK); err != nil {
			t.Fatal(err)
		}
		return f
	}
	for name, f := range map[string]*os.File{
		"a file": file(make([]byte, 8192)), "other memory": memory("SOMETHING", 1, 4096, 8192),
		"too short": memory("REMORASL", 100, 4096, 8192), "none": memory("REMORASL", 0, 4096, 4096),
		"far too many": memory("REMORASL", 1<<31, 1<<31, 8192), "odd": memory("REMORASL", 1, 4095, 8191),
	} {
		if _, err := slots.Open(f); err == nil {
			t.Errorf("%s was opened", name)
		}
	}
}
