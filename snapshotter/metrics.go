package snapshotter

import "github.com/prometheus/client_golang/prometheus"

// Register adds the snapshotter's metrics to a registry.
func (s *Snapshotter) Register(r prometheus.Registerer) { r.MustRegister(layerCollector{s}) }

// layerCollector counts layers by how they are mounted, when somebody asks.
type layerCollector struct{ s *Snapshotter }

var layersDesc = prometheus.NewDesc("remora_snapshotter_layers",
	`Remote layers by back end: "direct" for complete ones that the kernel reads itself, "unpacked" for directories, `+
		`"none" for those not mounted.`,
	[]string{"backend"}, nil)

var brokenDesc = prometheus.NewDesc("remora_snapshotter_broken_layers",
	`Remote layers that cannot be used: "failed" ones could not be opened and are tried again, "gone" ones are no longer anywhere `+
		`or beyond [limits], "quarantined" ones are not what their image says.`,
	[]string{"state"}, nil)

var releasedDesc = prometheus.NewDesc("remora_snapshotter_released_images_total",
	"Images that were removed from containerd since a layer of them is no longer anywhere, or beyond [limits].", nil, nil)

// Describe implements prometheus.Collector.
func (c layerCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- layersDesc
	ch <- brokenDesc
	ch <- releasedDesc
}

// Collect implements prometheus.Collector.
func (c layerCollector) Collect(ch chan<- prometheus.Metric) {
	count, broken := map[string]int{}, map[string]int{"failed": 0, "gone": 0, "quarantined": 0}
	for _, b := range c.s.bindings.all() {
		count[b.backend()]++
		if state := b.brokenAs(); state != "" {
			broken[state]++
		}
	}
	for state, n := range broken {
		ch <- prometheus.MustNewConstMetric(brokenDesc, prometheus.GaugeValue, float64(n), state)
	}
	ch <- prometheus.MustNewConstMetric(releasedDesc, prometheus.CounterValue, float64(c.s.releasing.released.Load()))
	for backend, n := range count {
		ch <- prometheus.MustNewConstMetric(layersDesc, prometheus.GaugeValue, float64(n), backend)
	}
}

func (b *binding) backend() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch b.how {
	case mountedLazy:
		return string(b.way())
	case mountedDirect, mountedUnpacked:
		return string(b.how)
	}
	return "none"
}

// brokenAs returns why a layer cannot be used, as the metric has it; "" if it can.
func (b *binding) brokenAs() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.saved.Quarantined != "":
		return "quarantined"
	case b.gone != nil:
		return "gone"
	case b.failedLocked() != nil:
		return "failed"
	}
	return ""
}

// failedLocked returns why the last attempt to mount a layer failed; nil if it did not, or is under way.
func (b *binding) failedLocked() error {
	if b.how != notMounted || b.attempt == nil {
		return nil
	}
	select {
	case <-b.attempt.done:
		return b.attempt.err
	default:
		return nil
	}
}
