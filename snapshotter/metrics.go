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

// Describe implements prometheus.Collector.
func (c layerCollector) Describe(ch chan<- *prometheus.Desc) { ch <- layersDesc }

// Collect implements prometheus.Collector.
func (c layerCollector) Collect(ch chan<- prometheus.Metric) {
	count := map[string]int{}
	for _, b := range c.s.allBindings() {
		count[b.backend()]++
	}
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
