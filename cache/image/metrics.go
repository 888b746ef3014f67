package image

import "github.com/prometheus/client_golang/prometheus"

// metrics are counted over all images.
type metrics struct {
	prefetch, prefetchUsed, demand, unstored prometheus.Counter
}

// NewCounter returns one of the cache's counters.
func NewCounter(name, help string) prometheus.Counter {
	return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "remora", Subsystem: "cache", Name: name, Help: help})
}

func newMetrics() metrics {
	count := NewCounter
	return metrics{
		prefetch:     count("prefetch_bytes_total", "Packed bytes fetched before a reader waited for them."),
		prefetchUsed: count("prefetch_used_bytes_total", "Of the prefetched bytes, those that a reader asked for later."),
		demand:       count("demand_bytes_total", "Packed bytes fetched because a reader waited for them."),
		unstored:     count("unstored_extents_total", "Extents served without being stored, for lack of room."),
	}
}

// Collectors returns the metrics.
func (d *Dir) Collectors() []prometheus.Collector {
	m := &d.metrics
	return []prometheus.Collector{m.prefetch, m.prefetchUsed, m.demand, m.unstored,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "remora", Subsystem: "cache", Name: "pinned_bytes",
			Help: "Bytes that cannot be evicted, since the kernel may read them without asking."},
			func() float64 { return float64(d.Pinned()) })}
}
