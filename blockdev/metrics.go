package blockdev

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics counts the requests of all devices that Measure wraps with it.
type Metrics struct {
	seconds *prometheus.HistogramVec
	bytes   *prometheus.CounterVec
	errors  *prometheus.CounterVec

	// The same, found without a look at labels.
	opSeconds [opCount]prometheus.Observer
	opBytes   [opCount]prometheus.Counter
	opErrors  [opCount]prometheus.Counter
}

// NewMetrics returns metrics of devices, registered with r.
func NewMetrics(r prometheus.Registerer) *Metrics {
	labels := []string{"op"}
	m := &Metrics{
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "blockdev_request_duration_seconds",
			Help: "Time that requests of block devices took.", Buckets: prometheus.ExponentialBuckets(10e-6, 4, 10)}, labels),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "blockdev_request_bytes_total",
			Help: "Bytes of the requests of block devices that succeeded."}, labels),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "blockdev_request_errors_total",
			Help: "Requests of block devices that failed."}, labels),
	}
	r.MustRegister(m.seconds, m.bytes, m.errors)
	for op := range opCount {
		name := op.String()
		m.opSeconds[op] = m.seconds.WithLabelValues(name)
		m.opBytes[op], m.opErrors[op] = m.bytes.WithLabelValues(name), m.errors.WithLabelValues(name)
	}
	return m
}

// Measure returns d with its requests counted.
func Measure(d Device, m *Metrics) Device { return wrap(d, m) }

// before's token is the time at which the request began, in nanoseconds.
func (m *Metrics) before(context.Context, Op, int64, int64) (int64, error) {
	return time.Since(processStart).Nanoseconds(), nil
}

var processStart = time.Now() // what times are told from, without a clock that may jump

func (m *Metrics) after(op Op, n, began int64, err error) error {
	m.opSeconds[op].Observe((time.Since(processStart) - time.Duration(began)).Seconds())
	if err != nil {
		m.opErrors[op].Inc()
	} else {
		m.opBytes[op].Add(float64(n))
	}
	return err
}
