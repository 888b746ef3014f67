package volume

import (
	"sort"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev"
)

// A window keeps the records that were written last, so that what makes segments of them does not read the disk. They are
// made in its memory, one behind the other, and begin anew where that ends.
type window struct {
	mem  []byte // begins on a page; empty for none
	next int    // where the next record is made

	mu      sync.RWMutex // guards records; held for reading while their bytes are read
	records []windowed   // oldest first; none overlaps what is being made
}

type windowed struct {
	pos int64  // in the journal
	at  int    // in mem
	buf []byte // mem from there on
}

// leastWindow is large beside the records that are being made and written, which must not be overwritten.
const leastWindow = 2 * (journalAhead + 1) * (Block + maxRecord)

// windowMemory returns memory for a window of about so many bytes, or none if they are too few. It is not the collector's: of
// a volume that is hardly written to, hardly any of it is ever touched. free gives it back.
func windowMemory(bytes int64) (mem []byte, free func()) {
	if bytes < leastWindow {
		return nil, func() {}
	}
	mem, err := unix.Mmap(-1, 0, int(bytes)&^(Block-1), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil { // everything is read from the journal then
		return nil, func() {}
	}
	return mem, func() { _ = unix.Munmap(mem) } // which fails for what is not mapped alone
}

// room returns a buffer of n bytes for the record at a position, whose content is anything. One caller at a time.
func (w *window) room(pos int64, n int) windowed {
	if len(w.mem) == 0 {
		return windowed{pos: pos, buf: blockdev.AlignedBuffer(n)}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	drop := 0
	if w.next+n > len(w.mem) {
		for drop < len(w.records) && w.records[drop].at >= w.next { // the oldest lie at the end
			drop++
		}
		w.next = 0
	}
	for drop < len(w.records) && w.records[drop].at >= w.next && w.records[drop].at < w.next+n {
		drop++
	}
	w.records = w.records[drop:]
	r := windowed{pos, w.next, w.mem[w.next : w.next+n : w.next+n]}
	w.next += n
	return r
}

// add keeps a record. Records are added in the order in which room was made for them.
func (w *window) add(r windowed) {
	if len(w.mem) == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.records = append(w.records, r)
}

// read copies len(p) bytes from a position that are all of one record, if that is here.
func (w *window) read(pos int64, p []byte) bool {
	w.mu.RLock()
	defer w.mu.RUnlock()
	i := sort.Search(len(w.records), func(i int) bool { return w.records[i].pos > pos }) // behind the last that begins before
	if i == 0 {
		return false
	}
	r := w.records[i-1]
	off := pos - r.pos
	if off+int64(len(p)) > int64(len(r.buf)) {
		return false
	}
	copy(p, r.buf[off:])
	return true
}
