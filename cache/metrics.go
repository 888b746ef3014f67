package cache

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	hits, misses, localUnits                      prometheus.Counter
	fetchBytes                                    prometheus.Counter
	fetchErrors, wrongBytes                       prometheus.Counter
	prefetchBytes, prefetchUsedBytes, demandBytes prometheus.Counter
	unstored, unreachable                         prometheus.Counter
	wait                                          prometheus.Histogram
}

func newMetrics() metrics {
	count := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "remora", Subsystem: "cache", Name: name, Help: help})
	}
	return metrics{
		hits:              count("read_hits_total", "Reads of images that found every byte present."),
		misses:            count("read_misses_total", "Reads of images that waited for a fetch."),
		localUnits:        count("local_units_total", "Units filled from extents with the same digest."),
		fetchBytes:        count("fetch_bytes_total", "Bytes taken from sources."),
		prefetchBytes:     count("prefetch_bytes_total", "Packed bytes fetched before a reader waited for them."),
		prefetchUsedBytes: count("prefetch_used_bytes_total", "Of the prefetched bytes, those that a reader asked for later."),
		demandBytes:       count("demand_bytes_total", "Packed bytes fetched because a reader waited for them."),
		fetchErrors:       count("fetch_errors_total", "Fetches that failed after all retries."),
		wrongBytes:        count("wrong_bytes_total", "Units whose bytes were not what their digest says."),
		unstored:          count("unstored_extents_total", "Extents served without being stored, for lack of room."),
		unreachable:       count("unreachable_total", "Times that a source stopped answering while somebody waited for it."),
		wait: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: "remora", Subsystem: "cache", Name: "read_wait_seconds",
			Help: "How long reads of images waited for a fetch.", Buckets: prometheus.ExponentialBuckets(0.001, 2, 16),
		}),
	}
}

// Register adds the cache's metrics to a registry.
func (c *Cache) Register(r prometheus.Registerer) {
	m := &c.metrics
	r.MustRegister(m.hits, m.misses, m.localUnits, m.fetchBytes, m.prefetchBytes, m.prefetchUsedBytes, m.demandBytes, m.fetchErrors,
		m.wrongBytes, m.unstored, m.unreachable, m.wait,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "remora", Subsystem: "cache", Name: "waiting_reads",
			Help: "Reads that have waited for more than a second now."}, func() float64 { return float64(len(c.Waiting(time.Second))) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "remora", Subsystem: "cache", Name: "pinned_bytes",
			Help: "Bytes that cannot be evicted, since the kernel may read them without asking."}, func() float64 { return float64(c.Pinned()) }))
	r.MustRegister(c.budget.Collectors()...)
}
