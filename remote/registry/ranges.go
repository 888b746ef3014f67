package registry

import (
	"context"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
)

// LacksRanges reports whether no host of a registry serves ranges, as far as each has lately shown.
func (r *Registry) LacksRanges(ctx context.Context, registry string) bool {
	hosts, err := r.registryHosts(ctx, registry)
	if err != nil {
		return false // the next request says so
	}
	some := false
	for _, host := range hosts {
		if !host.Capabilities.Has(docker.HostCapabilityPull) {
			continue
		}
		if some = true; r.healthOf(host.Scheme, host.Host).noRanges() == nil {
			return false
		}
	}
	return some
}

// ServesRanges reports whether the host that a registry asks first has lately served a range.
func (r *Registry) ServesRanges(ctx context.Context, registry string) bool {
	hosts, err := r.registryHosts(ctx, registry)
	if err != nil {
		return false // the next request says so
	}
	for _, host := range hosts {
		if host.Capabilities.Has(docker.HostCapabilityPull) {
			return r.healthOf(host.Scheme, host.Host).servesRanges()
		}
	}
	return false
}

// servesRanges reports whether the host has lately served a range.
func (h *health) servesRanges() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return time.Now().Before(h.rangesUntil)
}

// noRanges returns why the host is taken for one that serves no ranges, or nil.
func (h *health) noRanges() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.rangeless != nil && time.Now().Before(h.rangelessUntil) {
		return h.rangeless
	}
	return nil
}

// ranges notes whether the host serves them; err says why it does not. It reports whether that is news.
func (h *health) ranges(serves bool, err error) (news bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	was := h.rangeless == nil
	switch {
	case serves:
		h.rangeless, h.rangesUntil = nil, time.Now().Add(lackHolds)
	case err != nil:
		h.rangeless, h.rangesUntil = err, time.Time{}
	}
	h.rangelessUntil = time.Now().Add(lackHolds)
	return was != (h.rangeless == nil)
}

// noteRanges remembers whether a host serves ranges. err is nil where a whole answer did.
func (r *Registry) noteRanges(host docker.RegistryHost, serves bool, err error) {
	switch news := r.healthOf(host.Scheme, host.Host).ranges(serves, err); {
	case news && serves:
		r.opts.Log.Info("registry host serves ranges again", "host", host.Host)
	case news:
		r.opts.Log.Warn("registry host serves no ranges: layers that are in use are read whole", "host", host.Host, "err", err)
	}
}
