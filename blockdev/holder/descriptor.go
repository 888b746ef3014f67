package holder

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev/slots"
)

// ownDescriptors is the least number of the descriptors that this process keeps for others. The kernel gives events the lowest
// numbers that are free. If a holder dies, the next one must take the numbers of events that are not answered yet, so nothing
// that stays for long may lie among them.
const ownDescriptors = 1 << 14

// dupHigh duplicates a descriptor to a number that no event gets, if this process may have such numbers.
func dupHigh(fd int) (int, error) {
	high, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, ownDescriptors)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EMFILE) { // RLIMIT_NOFILE
		high, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	}
	if err != nil {
		return 0, fmt.Errorf("duplicate descriptor: %w", err)
	}
	return high, nil
}

// reserve takes the number of the event that an earlier process had read into a slot. ok is false if something else has it.
func reserve(mem *slots.Slots, slot int) (fd int, ok bool) {
	e, err := parseEvent(mem.Slot(slot)[:eventRoom])
	if err != nil || e.FD < 0 {
		return 0, false
	}
	raw, err := mem.File().SyscallConn() // any descriptor does
	if err != nil {
		return 0, false
	}
	if cerr := raw.Control(func(some uintptr) { fd, err = unix.FcntlInt(some, unix.F_DUPFD_CLOEXEC, int(e.FD)) }); cerr != nil || err != nil {
		return 0, false
	}
	if fd != int(e.FD) {
		unix.Close(fd)
		return 0, false
	}
	return fd, true
}

// Dup duplicates a descriptor that stays.
func Dup(f *os.File) (*os.File, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var fd int
	if cerr := raw.Control(func(old uintptr) { fd, err = dupHigh(int(old)) }); cerr != nil {
		return nil, cerr
	}
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}
