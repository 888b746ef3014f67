package volume

import (
	"sync"

	"github.com/remora-storage/remora/blockdev"
)

// A window keeps the records that were written last, so that what makes segments of them does not read the disk.
type window struct {
	limit int64 // bytes

	mu      sync.RWMutex // guards the fields below
	records []windowed   // oldest first
	used    int64
	spare   [][]byte // buffers of full size, to be used again
}

type windowed struct {
	pos int64
	buf []byte
}

const smallRecord = 64 << 10 // bytes up to which a buffer is made to measure

// buffer returns n bytes for a record.
func (w *window) buffer(n int) []byte {
	if n <= smallRecord {
		return blockdev.AlignedBuffer(n)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if k := len(w.spare); k > 0 {
		p := w.spare[k-1]
		w.spare = w.spare[:k-1]
		return p[:n]
	}
	return blockdev.AlignedBuffer(Block + maxRecord)[:n]
}

// add keeps a record, whose buffer is the window's from now on.
func (w *window) add(pos int64, buf []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.records = append(w.records, windowed{pos, buf})
	w.used += int64(cap(buf))
	drop := 0
	for w.used > w.limit && drop < len(w.records) {
		old := w.records[drop].buf
		w.used -= int64(cap(old))
		if cap(old) > smallRecord+Block && len(w.spare) < 8 {
			w.spare = append(w.spare, old)
		}
		w.records[drop].buf = nil
		drop++
	}
	w.records = w.records[drop:]
}

// read copies len(p) bytes from a position that are all of one record, if that is here.
func (w *window) read(pos int64, p []byte) bool {
	w.mu.RLock()
	defer w.mu.RUnlock()
	lo, hi := 0, len(w.records)
	for lo < hi { // the last record that begins at or before pos
		mid := (lo + hi) / 2
		if w.records[mid].pos <= pos {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo == 0 {
		return false
	}
	r := w.records[lo-1]
	off := pos - r.pos
	if off+int64(len(p)) > int64(len(r.buf)) {
		return false
	}
	copy(p, r.buf[off:])
	return true
}
