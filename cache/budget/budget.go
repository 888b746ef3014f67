package budget

import (
	"cmp"
	"log/slog"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// A Budget counts bytes on disk. It is never exceeded.
type Budget struct {
	Clock

	limit int64 // 0 for none

	evicting sync.Mutex // one eviction at a time; taken before all locks of what is evicted
	log      *slog.Logger
	spare    func() (freed int64) // frees what nobody uses, which goes first
	victims  func([]Victim) []Victim
	evicted  prometheus.Counter

	mu   sync.Mutex // guards used
	used int64
}

// A Holder has bytes on disk that may be evicted.
type Holder interface {
	// ID says in logs whose bytes they are.
	ID() string
	// Drop takes parts away and returns how many bytes that freed, which Evict subtracts. It may find that a part stays.
	Drop(parts []uint32) (freed int64, err error)
}

// A Victim is a part of a Holder that may be evicted.
type Victim struct {
	Of   Holder
	Part uint32
	Used uint32 // when it was last used, on the budget's clock
	Size int64  // bytes on disk
}

// New returns a budget of so many bytes; 0 is no limit.
func New(limit int64, log *slog.Logger) *Budget {
	return &Budget{limit: limit, log: log, evicted: prometheus.NewCounter(prometheus.CounterOpts{
		Namespace: "remora", Subsystem: "cache", Name: "evicted_bytes_total", Help: "Bytes evicted."})}
}

// Evicts says what may be evicted: spare frees what nobody uses, and victims appends what may go beside that. It is called
// before anything is reserved.
func (b *Budget) Evicts(spare func() (freed int64), victims func([]Victim) []Victim) {
	b.spare, b.victims = spare, victims
}

// Collectors returns the metrics.
func (b *Budget) Collectors() []prometheus.Collector {
	return []prometheus.Collector{b.evicted,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "remora", Subsystem: "cache", Name: "used_bytes",
			Help: "Bytes on disk."}, func() float64 { used, _ := b.Usage(); return float64(used) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "remora", Subsystem: "cache", Name: "limit_bytes",
			Help: "The budget; 0 for none."}, func() float64 { return float64(b.limit) })}
}

// Add counts n bytes more, or fewer, without asking for room.
func (b *Budget) Add(n int64) {
	b.mu.Lock()
	b.used += n
	b.mu.Unlock()
}

// Usage returns the bytes on disk and the limit.
func (b *Budget) Usage() (used, limit int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used, b.limit
}

// TryReserve takes n bytes if they are free, and says how many are missing.
func (b *Budget) TryReserve(n int64) (missing int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.limit == 0 || b.used+n <= b.limit {
		b.used += n
		return 0
	}
	return b.used + n - b.limit
}

// Reserve takes n bytes of the budget, evicting if need be. It must not be called while a lock is held that a Holder takes.
func (b *Budget) Reserve(n int64) bool {
	for {
		if b.TryReserve(n) == 0 {
			return true
		}
		if freed := b.evictFor(n); freed == 0 {
			return false
		}
	}
}

// evictFor makes room for n bytes, unless another eviction has done so meanwhile, and returns how many
// bytes are free for it or were freed.
func (b *Budget) evictFor(n int64) int64 {
	b.evicting.Lock()
	defer b.evicting.Unlock()
	used, limit := b.Usage()
	if used+n <= limit {
		return n
	}
	return b.evictLocked(used + n - limit)
}

// Evict frees at least n bytes and some more, so that the next caller finds room, taking what was used least recently. It
// returns how many bytes it freed.
func (b *Budget) Evict(n int64) (freed int64) {
	b.evicting.Lock()
	defer b.evicting.Unlock()
	return b.evictLocked(n)
}

// EvictAll evicts everything that may be evicted and returns how many bytes that freed.
func (b *Budget) EvictAll() int64 { return b.Evict(math.MaxInt64 / 2) }

func (b *Budget) evictLocked(n int64) int64 {
	n += b.limit / 32
	idle := b.spare()
	b.Add(-idle)
	if idle >= n {
		return idle
	}
	return idle + b.evictVictims(n-idle)
}

func (b *Budget) evictVictims(n int64) (freed int64) {
	all := b.victims(nil)
	slices.SortFunc(all, func(a, b Victim) int { return cmp.Compare(a.Used, b.Used) })
	parts := map[Holder][]uint32{}
	for _, v := range all {
		if freed >= n {
			break
		}
		freed += v.Size
		parts[v.Of] = append(parts[v.Of], v.Part)
	}
	freed = 0
	for of, some := range parts {
		k, err := of.Drop(some)
		if err != nil {
			b.log.Warn("extents not evicted", "digest", of.ID(), "err", err)
		}
		freed += k
	}
	b.Add(-freed)
	b.evicted.Add(float64(freed))
	return freed
}

// A Clock gives the times by which Victims are compared: seconds since its first use.
type Clock struct {
	start atomic.Int64
}

// Now returns the time.
func (c *Clock) Now() uint32 {
	t := time.Now().Unix()
	c.start.CompareAndSwap(0, t-1)
	return uint32(t - c.start.Load())
}
