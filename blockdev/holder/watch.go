package holder

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev/slots"
)

// A watch reads one fanotify group. The kernel matches an answer to an event by the number of the
// descriptor that read(2) made, and never delivers an event twice, so the rules are:
//
//   - an event is read straight into its slot, so that nothing is lost if we die on the way;
//   - its descriptor stays open until the event is answered, so that no two unanswered events
//     have the same number;
//   - the number of an event that an earlier holder had read is taken by a descriptor of ours until
//     the event is answered: the kernel might give a new event the same number, and one answer would
//     release the wrong reader. Where something else of ours has the number, nothing is read before
//     the answer (descriptor.go says why that is rare).
type watch struct {
	group *os.File
	mem   *slots.Slots
	emit  func(slot int)

	stop chan struct{}
	done chan struct{}

	mu       sync.Mutex   // guards the fields below
	open     map[int]int  // descriptors that have the numbers of unanswered events, by slot
	foreign  map[int]bool // slots of events of earlier holders whose numbers could not be taken
	sequence uint64
	clean    chan struct{} // closed when no foreign event is left
}

// startWatch begins to read a group. Events that wait already are emitted first, oldest first.
// Both files belong to the watch from now on.
func startWatch(group *os.File, mem *slots.Slots, emit func(slot int)) *watch {
	w := &watch{
		group: group, mem: mem, emit: emit, stop: make(chan struct{}), done: make(chan struct{}),
		open: map[int]int{}, foreign: map[int]bool{}, clean: make(chan struct{}),
	}
	for i := range mem.Len() {
		p := mem.Slot(i)
		switch state := loadState(p); {
		case state == stateFree, state == stateAnswered, binary.NativeEndian.Uint32(p) == 0:
			w.clear(i)
			mem.Release(i)
		default:
			if fd, ok := reserve(mem, i); ok {
				w.open[i] = fd
			} else {
				w.foreign[i] = true
			}
			w.sequence = max(w.sequence, binary.NativeEndian.Uint64(p[sequenceAt:]))
		}
	}
	if len(w.foreign) == 0 {
		close(w.clean)
	}
	w.offer()
	go w.run()
	return w
}

// offer emits everything that waits, oldest first.
func (w *watch) offer() {
	w.mu.Lock()
	var waiting []int
	for slot := range w.foreign {
		waiting = append(waiting, slot)
	}
	for slot := range w.open {
		waiting = append(waiting, slot)
	}
	w.mu.Unlock()
	slices.SortFunc(waiting, func(a, b int) int {
		return cmp.Compare(binary.NativeEndian.Uint64(w.mem.Slot(a)[sequenceAt:]), binary.NativeEndian.Uint64(w.mem.Slot(b)[sequenceAt:]))
	})
	for _, slot := range waiting {
		w.emit(slot)
	}
}

func (w *watch) clear(slot int) {
	p := w.mem.Slot(slot)
	binary.NativeEndian.PutUint32(p, 0)
	storeState(p, stateFree)
}

// run reads events until the watch is closed or the group fails.
func (w *watch) run() {
	defer close(w.done)
	select {
	case <-w.clean:
	case <-w.stop:
		return
	}
	raw, err := w.group.SyscallConn()
	if err != nil {
		return
	}
	for {
		slot, ok := w.mem.Take(w.stop)
		if !ok {
			return
		}
		if err := w.readOne(raw, slot); err != nil {
			w.clear(slot)
			w.mem.Release(slot)
			return // closed, or nobody can do anything about it
		}
	}
}

// readOne reads one event into a slot and emits it.
func (w *watch) readOne(raw interface {
	Read(func(uintptr) bool) error
}, slot int) error {
	p := w.mem.Slot(slot)
	w.mu.Lock()
	w.sequence++
	n := w.sequence
	w.mu.Unlock()
	binary.NativeEndian.PutUint32(p, 0)
	binary.NativeEndian.PutUint64(p[inoAt:], 0)
	binary.NativeEndian.PutUint64(p[sequenceAt:], n)
	storeState(p, stateReading)
	var err error
	if rerr := raw.Read(func(fd uintptr) bool {
		for {
			_, err = unix.Read(int(fd), p[:eventRoom])
			if !errors.Is(err, unix.EINTR) {
				return !errors.Is(err, unix.EAGAIN)
			}
		}
	}); rerr != nil {
		return rerr
	}
	if err != nil {
		return fmt.Errorf("read fanotify group: %w", err)
	}
	e, err := parseEvent(p[:eventRoom])
	if err != nil || e.FD < 0 { // FAN_REPORT_FD_ERROR: the kernel itself has denied the read
		w.clear(slot)
		w.mem.Release(slot)
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(e.FD), &st); err == nil {
		binary.NativeEndian.PutUint64(p[devAt:], st.Dev)
		binary.NativeEndian.PutUint64(p[inoAt:], st.Ino)
	}
	w.mu.Lock()
	w.open[slot] = int(e.FD)
	w.mu.Unlock()
	storeState(p, stateWaiting)
	w.emit(slot)
	return nil
}

// answered closes an event's descriptor and frees its slot. which are the low bits of the event's
// sequence number: of an event that the slot no longer holds nothing is to be done.
func (w *watch) answered(slot int, which uint32) {
	if slot < 0 || slot >= w.mem.Len() || uint32(binary.NativeEndian.Uint64(w.mem.Slot(slot)[sequenceAt:])) != which {
		return
	}
	w.mu.Lock()
	fd, ours := w.open[slot]
	foreign := w.foreign[slot]
	delete(w.open, slot)
	delete(w.foreign, slot)
	last := foreign && len(w.foreign) == 0
	w.mu.Unlock()
	if !ours && !foreign {
		return
	}
	w.clear(slot)
	if ours {
		unix.Close(fd)
	}
	w.mem.Release(slot)
	if last {
		close(w.clean)
	}
}

// close stops reading and closes all descriptors. What waits goes on waiting if somebody else
// has the group.
func (w *watch) close() {
	close(w.stop)
	w.group.Close() // wakes the reader
	<-w.done
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, fd := range w.open {
		unix.Close(fd)
	}
	w.mem.Close() // only this mapping
}
