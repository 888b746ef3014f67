package snapshotter

import (
	"fmt"
	"log/slog"
	"strings"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/blockdev/probe"
)

// Capabilities say how layers are mounted here, and why.
type Capabilities struct {
	Lazy       blockdev.Backend // for incomplete layers; "" if there is no way
	LazyReason string           // why that one, in words
	Direct     bool             // complete image files are mounted as they are; by a loop device otherwise
	Reason     string           // why not Direct
	IDMap      bool             // containers in user namespaces can share the layers
	IDReason   string           // why not IDMap
	Ways       map[blockdev.Backend]probe.Result
}

// order lists the back ends, the best first.
//
// With pre-content events a layer is as fast as a local one the moment its last byte is here, even
// for containers that run already. But if the holder and this process die together, what is
// missing reads as zeros until the next start, where a FUSE-served file gives errors. So it is
// first only where nothing kills both at once.
func order(safe bool) []blockdev.Backend {
	if safe {
		return []blockdev.Backend{blockdev.Precontent, blockdev.FuseFile, blockdev.FuseLoop, blockdev.FuseTree}
	}
	return []blockdev.Backend{blockdev.FuseFile, blockdev.FuseLoop, blockdev.FuseTree}
}

// Probe finds out how layers whose images lie in dir can be mounted, by doing it. pinned and safe
// are as in Options: the only back end wanted, and whether a holder outlives the process.
func Probe(dir string, pinned blockdev.Backend, safe bool, log *slog.Logger) (Capabilities, error) {
	r, err := probe.Run(dir, probeImage(), log)
	if err != nil {
		return Capabilities{}, fmt.Errorf("probe what this kernel can mount: %w", err)
	}
	return choose(r, pinned, safe), nil
}

// choose takes the best back end that works, or the one that is pinned. safe says that the holder
// does not die with this process.
func choose(r probe.Results, pinned blockdev.Backend, safe bool) Capabilities {
	c := Capabilities{Direct: r.Direct.OK, Ways: r.Ways}
	if !c.Direct {
		c.Reason = r.Direct.Reason
	}
	candidates := order(safe)
	if pinned != "" {
		candidates = []blockdev.Backend{pinned}
	}
	var reasons []string
	if pinned == "" && !safe {
		reasons = append(reasons, fmt.Sprintf(
			"%s: not the default here, where one kill may take remorad and its holder (a pod, or no holder)", blockdev.Precontent))
	}
	for _, way := range candidates {
		reasons = append(reasons, fmt.Sprintf("%s: %s", way, r.Ways[way].Reason))
		if r.Ways[way].OK {
			c.Lazy = way
			break
		}
	}
	if pinned != "" {
		reasons = append(reasons, "pinned by the configuration")
	}
	c.LazyReason = strings.Join(reasons, "; ")
	id := r.IDMapped[c.Lazy]
	c.IDMap = id.OK
	if !id.OK {
		c.IDReason = id.Reason
	}
	return c
}

// wayFor returns how a binding's layer is mounted while it is incomplete, and why. The caller
// holds b.mu.
func (m *mountings) wayFor(b *binding) (blockdev.Backend, string) {
	way, reason := m.caps.Lazy, m.caps.LazyReason
	if m.opts.BackendOf != nil {
		if pinned := m.opts.BackendOf(b.saved.Source.Repo); pinned != "" {
			if r := m.caps.Ways[pinned]; !r.OK {
				return "", fmt.Sprintf("the configuration wants %s for %s: %s", pinned, b.saved.Source.Repo, r.Reason)
			}
			way, reason = pinned, "pinned for its repository"
		}
	}
	unfit := ""
	switch {
	case way != blockdev.Precontent:
	case !b.file.Fits(): // what the kernel reads this way cannot be evicted
		unfit = "the layer would not fit the cache whole"
	case m.layers.Sources.Mixed(b.file.ID()): // the kernel reads one file for all, and does not say for whom
		unfit = "images of several registries share it"
	}
	if unfit != "" {
		for _, other := range order(false) {
			if m.caps.Ways[other].OK {
				return other, unfit
			}
		}
	}
	return way, reason
}

// countLazy returns how many layers need this process.
func (m *mountings) countLazy() (n int) {
	for _, b := range m.bindings.all() {
		if b.isLazy() {
			n++
		}
	}
	return n
}
