package registry

import (
	"slices"
	"sync"
	"time"
)

// meter measures the way to one registry: how long a first byte takes, and how many bytes a second
// come over all connections together.
type meter struct {
	mu        sync.Mutex // guards the fields below
	latencies []time.Duration
	rates     []int64
	began     time.Time // of the window that counts now
	last      time.Time // when bytes came last
	bytes     int64     // in the window
}

const (
	meterKept   = 16                     // measurements that are remembered
	meterWindow = 100 * time.Millisecond // bytes are counted for this long
	meterIdle   = 20 * time.Millisecond  // without bytes ends a window
	meterLeast  = 128 << 10              // bytes in a window that says something
)

func keepLast[T any](all []T, v T) []T {
	if len(all) == meterKept {
		all = slices.Delete(all, 0, 1)
	}
	return append(all, v)
}

// answered notes how long an answer took to begin.
func (m *meter) answered(took time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.latencies = keepLast(m.latencies, took)
}

// received notes bytes that came now.
func (m *meter) received(n int, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if idle := now.Sub(m.last) > meterIdle; idle || now.Sub(m.began) > meterWindow {
		m.closeLocked()
		m.began, m.bytes = now, 0 // the first bytes of a window came before it
		if !idle {
			m.bytes = int64(n)
		}
	} else {
		m.bytes += int64(n)
	}
	m.last = now
}

func (m *meter) closeLocked() {
	if took := m.last.Sub(m.began); m.bytes >= meterLeast && took > time.Millisecond {
		m.rates = keepLast(m.rates, int64(float64(m.bytes)/took.Seconds()))
	}
}

// link returns the least latency and the highest rate that were measured lately; 0 is not known.
func (m *meter) link() (latency time.Duration, rate int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.latencies) > 0 {
		latency = slices.Min(m.latencies)
	}
	if len(m.rates) > 0 {
		rate = slices.Max(m.rates)
	}
	return latency, rate
}

// meterOf returns the meter of a registry's host.
func (r *Registry) meterOf(host string) *meter {
	r.mu.Lock()
	defer r.mu.Unlock()
	if m, ok := r.meters.Get(host); ok {
		return m.(*meter)
	}
	m := new(meter)
	r.meters.Add(host, m)
	return m
}

// Link returns what was measured lately of the way to the blob's registry: how long an answer takes
// to begin, and bytes a second over all connections together. 0 is not known.
func (b *Blob) Link() (latency time.Duration, rate int64) { return b.r.meterOf(b.repo.Host).link() }
