package registry

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
)

// A host may begin to answer requests for ranges with whole blobs while containers read: a cache was put before it, or lost a setting.
// The image was promised, so nobody else downloads the layer. What lies near the beginning of the blob is read from whole answers.

// maxSkipped is how many bytes before a range are read and dropped at most.
const maxSkipped = 64 << 20

type skippingKey struct{}

// Skipping returns a context whose requests for ranges are answered from whole answers, too, where all hosts give nothing else: what
// comes before a range is dropped, up to 64 MiB. It is for reads that have no other way. Openings have one: they import the layer.
func Skipping(ctx context.Context) context.Context {
	return context.WithValue(ctx, skippingKey{}, true)
}

// askHosts asks the hosts in turn for the rest of the range, and if it comes to that, for the whole.
func (r *rangeReader) askHosts(hosts []docker.RegistryHost) (asked int, err error) {
	reg := r.b.r
	some, all := reg.rangeless(hosts)
	r.skips = r.skips || r.maySkip() && all // a request for a range alone would be one in vain
	t := turn{
		hosts: hosts, first: r.try, needs: docker.HostCapabilityPull, repo: r.b.repo, blob: r.b.digest.String(), ranged: !r.whole && !r.skips,
	}
	asked, err = reg.ask(r.ctx, t, r.ask)
	if r.body == nil && (some || r.lacking) && r.maySkip() {
		r.skips, t.ranged = true, false
		asked, err = reg.ask(r.ctx, t, r.ask)
	}
	return asked, err
}

func (r *rangeReader) skipping() bool { return r.ctx.Value(skippingKey{}) != nil }

func (r *rangeReader) maySkip() bool {
	return !r.whole && !r.skips && r.off <= maxSkipped && r.skipping()
}

// beyond says why a whole answer is of no use to a reader that would skip its beginning.
func (r *rangeReader) beyond() string {
	if !r.skipping() || r.off <= maxSkipped {
		return ""
	}
	return fmt.Sprintf(", and the range begins more than %d MiB into it", maxSkipped>>20)
}

// rangeless reports whether some of the hosts have lately served no ranges, and whether all have.
func (r *Registry) rangeless(hosts []docker.RegistryHost) (some, all bool) {
	all = true
	for _, host := range hosts {
		if host.Capabilities.Has(docker.HostCapabilityPull) {
			none := r.healthOf(host.Scheme, host.Host).noRanges() != nil
			some, all = some || none, all && none
		}
	}
	return some, some && all
}

// LacksRanges reports whether no host of a registry serves ranges, as far as each has lately shown.
func (r *Registry) LacksRanges(ctx context.Context, registry string) bool {
	hosts, err := r.registryHosts(ctx, registry)
	if err != nil {
		return false // the next request says so
	}
	_, all := r.rangeless(hosts)
	return all
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
		r.opts.Log.Warn("registry host serves no ranges: layers that are in use are read from whole answers, and not beyond their beginning",
			"host", host.Host, "beginning", maxSkipped, "err", err)
	}
}
