package image

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// dropAbove is how many bytes of an image file in the page cache are worth a call.
const dropAbove = 4 << 20

// DropPages gives back the page cache of the image file itself. The kernel keeps what a mounted
// file system has read once more for that, so that these pages are second copies.
func (m *Image) DropPages() {
	m.punch.RLock()
	defer m.punch.RUnlock()
	m.mu.Lock()
	closed := m.closed
	m.mu.Unlock()
	if closed {
		return
	}
	fd := -1
	if raw, err := m.file.SyscallConn(); err != nil || raw.Control(func(n uintptr) { fd = int(n) }) != nil {
		return
	}
	if pages, ok := cachedPages(fd); ok && pages*4096 < dropAbove {
		return
	}
	_ = unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED) // only advice; pages that are not written yet stay
}

// cachedPages returns how many pages of a file are in the page cache (cachestat(2), Linux 6.5).
func cachedPages(fd int) (pages int64, ok bool) {
	const sysCachestat = 451 // on every architecture
	var all struct{ off, length uint64 }
	var stat struct{ cache, dirty, writeback, evicted, recentlyEvicted uint64 }
	_, _, errno := unix.Syscall6(sysCachestat, uintptr(fd), uintptr(unsafe.Pointer(&all)), uintptr(unsafe.Pointer(&stat)), 0, 0, 0)
	return int64(stat.cache), errno == 0
}
