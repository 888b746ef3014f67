package blockdev

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics counts the requests of all devices that have them for a Duty: how long each took, the bytes of those that
// succeeded, and those that failed.
type Metrics struct {
	seconds *prometheus.HistogramVec
	bytes   *prometheus.CounterVec
	errors  *prometheus.CounterVec

	// The same, found without a look at labels.
	opSeconds [opCount]prometheus.Observer
	opBytes   [opCount]prometheus.Counter
	opErrors  [opCount]prometheus.Counter
}

// NewMetrics returns metrics, a Collector, of some kind of devices, "volume" say: remora_volume_request_seconds{op},
// remora_volume_request_bytes_total{op} and remora_volume_request_errors_total{op}.
func NewMetrics(kind string) *Metrics {
	labels, prefix := []string{"op"}, "remora_"+kind+"_request_"
	m := &Metrics{
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: prefix + "seconds", Help: "how long requests to " + kind + "s took", Buckets: prometheus.ExponentialBuckets(50e-6, 4, 10),
		}, labels),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: prefix + "bytes_total", Help: "bytes of requests to " + kind + "s that succeeded",
		}, labels),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: prefix + "errors_total", Help: "requests to " + kind + "s that failed",
		}, labels),
	}
	for op := range opCount {
		name := op.String()
		m.opSeconds[op] = m.seconds.WithLabelValues(name)
		m.opBytes[op], m.opErrors[op] = m.bytes.WithLabelValues(name), m.errors.WithLabelValues(name)
	}
	return m
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(out chan<- *prometheus.Desc) {
	m.seconds.Describe(out)
	m.bytes.Describe(out)
	m.errors.Describe(out)
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(out chan<- prometheus.Metric) {
	m.seconds.Collect(out)
	m.bytes.Collect(out)
	m.errors.Collect(out)
}

// Before implements Duty. Its token is the time at which the request began, in nanoseconds.
func (m *Metrics) Before(context.Context, Op, int64, int64) (int64, error) {
	return time.Since(processStart).Nanoseconds(), nil
}

var processStart = time.Now() // what times are told from, without a clock that may jump

// After implements Duty.
func (m *Metrics) After(op Op, n, began int64, err error) error {
	m.opSeconds[op].Observe((time.Since(processStart) - time.Duration(began)).Seconds())
	if err != nil {
		m.opErrors[op].Inc()
	} else {
		m.opBytes[op].Add(float64(n))
	}
	return err
}
