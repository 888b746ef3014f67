package filestore

import (
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// handles keeps files open that are read piece by piece, while they are: a file system whose files are open cannot be
// unmounted. An object that was deleted or replaced is not read any more: its file has no name then.
type handles struct {
	mu      sync.Mutex // guards the fields below, and those of handle
	open    map[string]*handle
	tick    uint64 // rises with each use
	swept   uint64 // tick of the last sweep
	sweeper *time.Timer
}

type handle struct {
	f       *os.File
	users   int
	last    uint64 // tick of its last use
	dropped bool   // to be closed by its last user
}

const (
	maxHandles = 64
	idleHandle = 2 * time.Second // after which one that nobody uses is closed, or twice that
)

// get returns an open file and its size. release must be called.
func (h *handles) get(path string) (_ *handle, size int64, err error) {
	for {
		x, err := h.take(path)
		if err != nil {
			return nil, 0, err
		}
		var st unix.Stat_t
		if err := unix.Fstat(int(x.f.Fd()), &st); err != nil {
			h.release(x)
			return nil, 0, &os.PathError{Op: "stat", Path: path, Err: err}
		}
		if st.Mode&unix.S_IFMT != unix.S_IFREG { // the directory of other objects
			h.drop(path, x)
			h.release(x)
			return nil, 0, &os.PathError{Op: "open", Path: path, Err: unix.ENOENT}
		}
		if st.Nlink > 0 {
			return x, st.Size, nil
		}
		h.drop(path, x)
		h.release(x)
	}
}

// take returns a handle, opening the file if need be.
func (h *handles) take(path string) (*handle, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	x, ok := h.open[path]
	if !ok {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		if h.open == nil {
			h.open = map[string]*handle{}
		}
		x = &handle{f: f}
		h.evictLocked()
		h.open[path] = x
		if h.sweeper == nil {
			h.sweeper = time.AfterFunc(idleHandle, h.sweep)
		}
	}
	h.tick++
	x.users, x.last = x.users+1, h.tick
	return x, nil
}

// sweep closes what was not used since the last one, and comes again as long as something is open.
func (h *handles) sweep() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for path, x := range h.open {
		if x.last <= h.swept {
			h.dropLocked(path)
		}
	}
	h.swept = h.tick
	h.sweeper = nil
	if len(h.open) > 0 {
		h.sweeper = time.AfterFunc(idleHandle, h.sweep)
	}
}

// evictLocked makes room for one more.
func (h *handles) evictLocked() {
	if len(h.open) < maxHandles {
		return
	}
	oldest := ""
	for path, x := range h.open {
		if oldest == "" || x.last < h.open[oldest].last {
			oldest = path
		}
	}
	h.dropLocked(oldest)
}

func (h *handles) release(x *handle) {
	h.mu.Lock()
	defer h.mu.Unlock()
	x.users--
	if x.dropped && x.users == 0 {
		x.f.Close() // it was only read
	}
}

// forget closes what is open of a path, once nobody reads it: its bytes take room until then.
func (h *handles) forget(path string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.dropLocked(path)
}

// drop is forget for one handle of a path that may have another by now.
func (h *handles) drop(path string, x *handle) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.open[path] == x {
		h.dropLocked(path)
	}
}

func (h *handles) dropLocked(path string) {
	x, ok := h.open[path]
	if !ok {
		return
	}
	delete(h.open, path)
	x.dropped = true
	if x.users == 0 {
		x.f.Close() // it was only read
	}
}
