package host

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/remora-storage/remora/volume"
)

// Register adds the metrics of a node's volumes to a registry.
func (h *Host) Register(r prometheus.Registerer) {
	r.MustRegister(h.requests, collector{h})
}

// collector reads what volumes and stores count themselves.
type collector struct{ h *Host }

var (
	byVolume = []string{"volume", "store"} // other stores may have volumes of the same name
	byStore  = []string{"store"}

	volumeMetrics = []struct {
		desc  *prometheus.Desc
		kind  prometheus.ValueType
		value func(volume.Status) float64
	}{
		{prometheus.NewDesc("remora_volume_at_risk_bytes", "acknowledged bytes that the store does not have", byVolume, nil),
			prometheus.GaugeValue, func(s volume.Status) float64 { return float64(s.AtRisk) }},
		{prometheus.NewDesc("remora_volume_at_risk_seconds", "age of the oldest of them", byVolume, nil), prometheus.GaugeValue,
			func(s volume.Status) float64 { return s.Oldest.Seconds() }},
		{prometheus.NewDesc("remora_volume_journal_used_bytes", "bytes of the journal in use", byVolume, nil), prometheus.GaugeValue,
			func(s volume.Status) float64 { return float64(s.Journal) }},
		{prometheus.NewDesc("remora_volume_journal_bytes", "bytes of the journal; writers wait when all are in use", byVolume, nil),
			prometheus.GaugeValue, func(s volume.Status) float64 { return float64(s.JournalOf) }},
		{prometheus.NewDesc("remora_volume_waiting", "operations that wait for the store", byVolume, nil), prometheus.GaugeValue,
			func(s volume.Status) float64 { return float64(len(s.Waits)) }},
		{prometheus.NewDesc("remora_volume_failed", "1 if everything that uses the volume fails", byVolume, nil), prometheus.GaugeValue,
			func(s volume.Status) float64 { return oneIf(s.Failed != nil) }},
		{prometheus.NewDesc("remora_volume_written_bytes_total", "bytes written", byVolume, nil), prometheus.CounterValue,
			func(s volume.Status) float64 { return float64(s.Stats.Written) }},
		{prometheus.NewDesc("remora_volume_read_bytes_total", "bytes read", byVolume, nil), prometheus.CounterValue,
			func(s volume.Status) float64 { return float64(s.Stats.Read) }},
		{prometheus.NewDesc("remora_volume_flushes_total", "flushes", byVolume, nil), prometheus.CounterValue,
			func(s volume.Status) float64 { return float64(s.Stats.Flushes) }},
		{prometheus.NewDesc("remora_volume_commits_total", "changes of the head", byVolume, nil), prometheus.CounterValue,
			func(s volume.Status) float64 { return float64(s.Stats.Commits) }},
		{prometheus.NewDesc("remora_volume_uploaded_bytes_total", "bytes of segments stored", byVolume, nil), prometheus.CounterValue,
			func(s volume.Status) float64 { return float64(s.Stats.Uploaded) }},
		{prometheus.NewDesc("remora_volume_uploaded_map_bytes_total", "bytes of map nodes stored", byVolume, nil), prometheus.CounterValue,
			func(s volume.Status) float64 { return float64(s.Stats.Map) }},
	}
	throttledDesc = prometheus.NewDesc("remora_volume_throttled", "1 while writes wait for this reason",
		[]string{"volume", "store", "reason"}, nil)
	requestsDesc = prometheus.NewDesc("remora_store_requests_total", "requests to a store", []string{"store", "op"}, nil)
	failuresDesc = prometheus.NewDesc("remora_store_errors_total", "requests that failed", byStore, nil)
	warningsDesc = prometheus.NewDesc("remora_store_warnings",
		"settings of a store that are unwise; snapctl volume probe names them", byStore, nil)
	leaseDesc = prometheus.NewDesc("remora_volume_lease_seconds", "for how long the node's lease in a store is certain", byStore, nil)
)

// Describe implements prometheus.Collector.
func (c collector) Describe(out chan<- *prometheus.Desc) {
	for _, m := range volumeMetrics {
		out <- m.desc
	}
	out <- throttledDesc
	out <- requestsDesc
	out <- failuresDesc
	out <- warningsDesc
	out <- leaseDesc
}

// Collect implements prometheus.Collector.
func (c collector) Collect(out chan<- prometheus.Metric) {
	for _, a := range c.h.Attached() {
		st, _, margin, ok := c.h.Status(a.ID)
		if !ok {
			continue
		}
		for reason, waits := range map[string]bool{
			volume.ThrottleJournal: st.Throttled == volume.ThrottleJournal,
			volume.ThrottleStore:   st.Throttled == volume.ThrottleStore,
			"lease_uncertain":      margin <= 0,
		} {
			out <- prometheus.MustNewConstMetric(throttledDesc, prometheus.GaugeValue, oneIf(waits), a.Name, a.Store, reason)
		}
		for _, m := range volumeMetrics {
			out <- prometheus.MustNewConstMetric(m.desc, m.kind, m.value(st), a.Name, a.Store)
		}
	}
	for _, s := range c.h.allStores() {
		url := s.url
		out <- prometheus.MustNewConstMetric(warningsDesc, prometheus.GaugeValue, float64(c.h.warningsOf(s)), url)
		r := s.requests()
		for op, n := range map[string]int64{"get": r.Get, "put": r.Put, "delete": r.Delete, "list": r.List, "lease": r.Lease} {
			out <- prometheus.MustNewConstMetric(requestsDesc, prometheus.CounterValue, float64(n), url, op)
		}
		out <- prometheus.MustNewConstMetric(failuresDesc, prometheus.CounterValue, float64(r.Failed), url)
		if margin, holds := s.member.Margin(); holds {
			out <- prometheus.MustNewConstMetric(leaseDesc, prometheus.GaugeValue, margin.Seconds(), url)
		}
	}
}

func oneIf(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
