package slots

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The memory begins with a header of one page; all numbers are little-endian.
//
//	offset  size  field
//	0       8     "REMORASL"
//	8       4     version, 1
//	12      4     slots
//	16      4     bytes of one slot
//	64      64    the user's own
const (
	magic      = "REMORASL"
	version    = 1
	headerSize = 4096
	ownOffset  = 64
	ownSize    = 64

	maxSlots = 1 << 16
	maxSize  = 1 << 20
)

// Slots is the mapped memory. Its methods are safe for concurrent use; the bytes of a slot belong
// to whoever took it.
type Slots struct {
	file *os.File
	mem  []byte
	n    int
	size int

	mu    sync.Mutex // guards free
	free  []int      // the last one is taken next, so that few pages are ever touched
	avail chan struct{}
}

// New makes the memory for n slots of size bytes. None of them is free yet, as with Open. name is for people.
func New(name string, n, size int) (*Slots, error) {
	if n <= 0 || n > maxSlots || size <= 0 || size > maxSize || size%8 != 0 {
		return nil, fmt.Errorf("slots %s: %d of %d bytes", name, n, size)
	}
	fd, err := unix.MemfdCreate("remora-"+name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("slots %s: memfd: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	head := make([]byte, headerSize)
	copy(head, magic)
	binary.LittleEndian.PutUint32(head[8:], version)
	binary.LittleEndian.PutUint32(head[12:], uint32(n))
	binary.LittleEndian.PutUint32(head[16:], uint32(size))
	_, err = f.WriteAt(head, 0)
	if err == nil {
		err = f.Truncate(headerSize + int64(n)*int64(size))
	}
	if err == nil { // whoever else has it can rely on the size
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("slots %s: %w", name, err)
	}
	return Open(f)
}

// Open maps memory that New made, here or in another process. No slot is free until it is
// released: the caller looks first at what they hold. The file belongs to the Slots from now on.
func Open(f *os.File) (*Slots, error) {
	s, err := open(f)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("slots %s: %w", f.Name(), err)
	}
	return s, nil
}

func open(f *os.File) (*Slots, error) {
	seals, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0)
	if err != nil || seals&unix.F_SEAL_SHRINK == 0 {
		return nil, fmt.Errorf("not sealed memory (%v)", err)
	}
	head := make([]byte, headerSize)
	if _, err := f.ReadAt(head, 0); err != nil {
		return nil, err
	}
	n, size := int(binary.LittleEndian.Uint32(head[12:])), int(binary.LittleEndian.Uint32(head[16:]))
	switch v := binary.LittleEndian.Uint32(head[8:]); {
	case string(head[:8]) != magic:
		return nil, errors.New("not slots")
	case v != version:
		return nil, fmt.Errorf("version %d is not known", v)
	case n <= 0 || n > maxSlots || size <= 0 || size > maxSize || size%8 != 0:
		return nil, fmt.Errorf("%d of %d bytes", n, size)
	}
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if want := headerSize + int64(n)*int64(size); st.Size() != want {
		return nil, fmt.Errorf("%d bytes, not %d", st.Size(), want)
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map: %w", err)
	}
	return &Slots{file: f, mem: mem, n: n, size: size, avail: make(chan struct{}, 1)}, nil
}

// File returns the memory's descriptor, to be handed to another process.
func (s *Slots) File() *os.File { return s.file }

// Len returns how many slots there are.
func (s *Slots) Len() int { return s.n }

// Size returns the bytes of one slot.
func (s *Slots) Size() int { return s.size }

// Own returns 64 bytes for whatever all users of the memory agree on.
func (s *Slots) Own() []byte { return s.mem[ownOffset : ownOffset+ownSize] }

// Slot returns the bytes of slot i.
func (s *Slots) Slot(i int) []byte {
	at := headerSize + i*s.size
	return s.mem[at : at+s.size : at+s.size]
}

// TryTake takes a free slot.
func (s *Slots) TryTake() (slot int, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := len(s.free)
	if k == 0 {
		return 0, false
	}
	slot = s.free[k-1]
	s.free = s.free[:k-1]
	return slot, true
}

// Take waits for a free slot until stop is closed.
func (s *Slots) Take(stop <-chan struct{}) (slot int, ok bool) {
	for {
		if slot, ok := s.TryTake(); ok {
			return slot, true
		}
		select {
		case <-s.avail:
		case <-stop:
			return 0, false
		}
	}
}

// Release makes a slot free. The caller has cleared what says that it is in use.
func (s *Slots) Release(slot int) {
	s.mu.Lock()
	s.free = append(s.free, slot)
	s.mu.Unlock()
	select {
	case s.avail <- struct{}{}:
	default:
	}
}

// Keep has every page stay in memory from when it is first touched here. An error says that this process may not lock
// memory.
func (s *Slots) Keep() error {
	if _, _, errno := unix.Syscall(unix.SYS_MLOCK2, uintptr(unsafe.Pointer(&s.mem[0])), uintptr(len(s.mem)), unix.MLOCK_ONFAULT); errno != 0 {
		return fmt.Errorf("slots %s: lock memory: %w", s.file.Name(), errno)
	}
	return nil
}

// Close unmaps the memory here. Nobody may use a slot any more.
func (s *Slots) Close() error { return errors.Join(unix.Munmap(s.mem), s.file.Close()) }
