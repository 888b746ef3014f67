package cache

import "sync"

// flight counts the bytes of requests that are under way.
type flight struct {
	mu    sync.Mutex // guards bytes
	less  *sync.Cond
	bytes int64
}

func newFlight() *flight {
	f := new(flight)
	f.less = sync.NewCond(&f.mu)
	return f
}

// enter returns when n bytes more are no more than the limit, or the only ones.
func (f *flight) enter(n, limit int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.bytes > 0 && f.bytes+n > limit {
		f.less.Wait()
	}
	f.bytes += n
}

func (f *flight) leave(n int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.bytes -= n
	f.less.Signal()
}

// bytes returns the packed bytes of a batch, gaps included.
func (b batch) bytes() int64 {
	last := b.f.t.unit(b.units[len(b.units)-1])
	return last.Off + last.Len - b.f.t.unit(b.units[0]).Off
}
