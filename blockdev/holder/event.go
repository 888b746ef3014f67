package holder

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev/slots"
)

// An event lies in a slot as the kernel wrote it, with what the holder adds behind it. Numbers
// are in the machine's byte order.
//
//	offset  size  field
//	0       80    the event as read(2) returned it; its first field, the length, is 0 while there is none
//	80      8     device of the file
//	88      8     inode of the file, 0 until the holder has looked
//	96      8     a number that grows from event to event
//	104     4     state: see below
const (
	eventRoom   = 80 // one event with its range, and not two
	devAt       = 80
	inoAt       = 88
	sequenceAt  = 96
	stateAt     = 104
	eventSlot   = 128
	eventSlots  = 8192 // readers that may wait at once
	infoRange   = 6    // FAN_EVENT_INFO_TYPE_RANGE of <linux/fanotify.h>
	rangeLength = 24   // of struct fanotify_event_info_range
)

// States of a slot.
const (
	stateFree     uint32 = 0
	stateReading  uint32 = 1 // the holder is in read(2), or was when it died
	stateWaiting  uint32 = 2 // the event waits for an answer
	stateAnswered uint32 = 3 // it has one; the holder may close its descriptor
)

// NewEvents makes the memory of a group's events.
func NewEvents() (*slots.Slots, error) { return slots.New("events", eventSlots, eventSlot) }

// An Event is a read that the kernel holds up.
type Event struct {
	Slot int
	// Sequence tells the events of a group apart: a slot is used again.
	Sequence uint64
	// FD is the number by which the event is answered. It is a descriptor of the process that
	// read the event, which may be dead.
	FD int32
	// PID is the process that reads, in the holder's PID namespace.
	PID int32
	// Off and Len are the range of the file that will be read, in bytes. A Len of 0 is all of it.
	Off, Len int64
	// Dev and Ino identify the file. Ino is 0 if the holder died before it could look.
	Dev, Ino uint64
}

// ReadEvent returns the event that waits in a slot. ok is false if none does.
func ReadEvent(mem *slots.Slots, slot int) (e Event, ok bool, err error) {
	p := mem.Slot(slot)
	state := loadState(p)
	if state == stateFree || state == stateAnswered || binary.NativeEndian.Uint32(p) == 0 {
		return Event{}, false, nil
	}
	e, err = parseEvent(p[:eventRoom])
	e.Slot, e.Sequence = slot, binary.NativeEndian.Uint64(p[sequenceAt:])
	if state == stateWaiting {
		e.Dev, e.Ino = binary.NativeEndian.Uint64(p[devAt:]), binary.NativeEndian.Uint64(p[inoAt:])
	}
	return e, err == nil, err
}

// MarkAnswered notes that an event's answer was written, before the holder is told.
func MarkAnswered(mem *slots.Slots, e *Event) { storeState(mem.Slot(e.Slot), stateAnswered) }

// parseEvent reads struct fanotify_event_metadata and the records behind it.
func parseEvent(p []byte) (Event, error) {
	const metadata = 24 // bytes of the structure
	if len(p) < metadata {
		return Event{}, fmt.Errorf("event of %d bytes", len(p))
	}
	n, head := int(binary.NativeEndian.Uint32(p)), int(binary.NativeEndian.Uint16(p[6:]))
	if p[4] != unix.FANOTIFY_METADATA_VERSION || n < head || head < metadata || n > len(p) {
		return Event{}, fmt.Errorf("event of version %d, %d bytes, %d of them metadata", p[4], n, head)
	}
	e := Event{FD: int32(binary.NativeEndian.Uint32(p[16:])), PID: int32(binary.NativeEndian.Uint32(p[20:]))}
	for info := p[head:n]; len(info) >= 4; {
		length := int(binary.NativeEndian.Uint16(info[2:]))
		if length < 4 || length > len(info) {
			return Event{}, fmt.Errorf("event record of %d bytes in %d", length, len(info))
		}
		if info[0] == infoRange {
			if length < rangeLength {
				return Event{}, fmt.Errorf("event range of %d bytes", length)
			}
			off, count := binary.NativeEndian.Uint64(info[8:]), binary.NativeEndian.Uint64(info[16:])
			if off > 1<<62 || count > 1<<62 {
				return Event{}, fmt.Errorf("event range at %d of %d", off, count)
			}
			e.Off, e.Len = int64(off), int64(count)
		}
		info = info[length:]
	}
	return e, nil
}

func statePointer(p []byte) *uint32 { return (*uint32)(unsafe.Pointer(&p[stateAt])) }

func loadState(p []byte) uint32 { return atomic.LoadUint32(statePointer(p)) }

func storeState(p []byte, s uint32) { atomic.StoreUint32(statePointer(p), s) }
