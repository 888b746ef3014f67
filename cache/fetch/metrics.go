package fetch

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/remora-storage/remora/cache/image"
)

// metrics are counted over all images.
type metrics struct {
	hits, misses, localUnits                         prometheus.Counter
	fetchBytes, fetchErrors, wrongBytes, unreachable prometheus.Counter
	wait                                             prometheus.Histogram
}

func newMetrics() metrics {
	count := image.NewCounter
	return metrics{
		hits:        count("read_hits_total", "Reads of images that found every byte present."),
		misses:      count("read_misses_total", "Reads of images that waited for a fetch."),
		localUnits:  count("local_units_total", "Units filled from extents with the same digest."),
		fetchBytes:  count("fetch_bytes_total", "Bytes taken from sources."),
		fetchErrors: count("fetch_errors_total", "Fetches that failed after all retries."),
		wrongBytes:  count("wrong_bytes_total", "Units whose bytes were not what their digest says."),
		unreachable: count("unreachable_total", "Times that a source stopped answering while somebody waited for it."),
		wait: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: "remora", Subsystem: "cache", Name: "read_wait_seconds",
			Help: "How long reads of images waited for a fetch.", Buckets: prometheus.ExponentialBuckets(0.001, 2, 16),
		}),
	}
}

// Collectors returns the metrics.
func (p *Pool) Collectors() []prometheus.Collector {
	m := &p.metrics
	return []prometheus.Collector{m.hits, m.misses, m.localUnits, m.fetchBytes, m.fetchErrors, m.wrongBytes, m.unreachable, m.wait,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "remora", Subsystem: "cache", Name: "waiting_reads",
			Help: "Reads that have waited for more than a second now."},
			func() float64 { return float64(len(p.Waiting(time.Second))) })}
}
