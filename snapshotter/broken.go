package snapshotter

import (
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/remora-storage/remora/internal/durable"
)

// breakage knows the active snapshots whose processes may see errors.
type breakage struct {
	*base
	bindings *bindings

	mu     sync.Mutex        // guards broken
	broken map[string]string // active snapshots that lost their lower layers, and why
}

// BrokenFile keeps the broken snapshots over restarts: after the first, nothing else tells that a
// container still has what was lost then.
var BrokenFile = durable.Kind{
	Name: "broken.json",
	Lost: "which containers were broken before remorad started last",
	Do:   "if remorad and its holder had ended together before, start the containers again that ran then; then remove this file",
}

func (x *breakage) read() map[string]string {
	broken, _, err := durable.LoadJSON[map[string]string](filepath.Join(x.root, BrokenFile.Name), BrokenFile, x.log, nil)
	if err != nil {
		x.log.Error("containers that an earlier life has named are no longer known", "err", err)
	}
	return broken
}

// saveLocked writes the broken snapshots down. The caller holds mu.
func (x *breakage) saveLocked() {
	path := filepath.Join(x.root, BrokenFile.Name)
	p, err := json.Marshal(x.broken)
	if err == nil {
		err = durable.Replace(path, p, 0o600)
	}
	if err != nil {
		x.log.Error("the next start will not name these containers", "broken", x.broken, "err", err)
	}
}

// find names the active snapshots that are mounted over layers which could not be taken
// over, until their containers are started again. It is called before anybody else is there.
func (x *breakage) find() {
	all, err := x.kernel.Own()
	if err != nil {
		x.log.Warn("mounts not read", "err", err)
		return
	}
	earlier := x.read()
	for _, m := range all {
		id, lowers := x.overlayOf(m)
		if id == "" {
			continue
		}
		if why, was := earlier[id]; was {
			x.broken[id] = why
			continue
		}
		for _, lower := range lowers {
			if b := x.bindings.get(lower); b != nil && b.dead != "" {
				x.broken[id] = b.dead + "; start its container again"
				x.log.Error("container may see errors or wrong data", "container", containerOf(m.Dir),
					"snapshot", id, "mounted", m.Dir, "reason", b.dead)
				break
			}
		}
	}
	if len(x.broken)+len(earlier) > 0 {
		x.saveLocked()
	}
}

// containerOf returns the namespace and name of the container whose root file system containerd
// mounts on a directory, or "".
func containerOf(dir string) string {
	parts := strings.Split(dir, "/")
	if n := len(parts); n > 3 && parts[n-1] == "rootfs" {
		return parts[n-3] + "/" + parts[n-2]
	}
	return ""
}

// forget drops a snapshot that was removed.
func (x *breakage) forget(id string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.broken, id)
}

// forgetEnded drops broken snapshots that are no longer mounted. It is called before a container is
// started: mounted again, its snapshot is whole.
func (x *breakage) forgetEnded() {
	x.mu.Lock()
	some := len(x.broken) > 0
	x.mu.Unlock()
	if some {
		x.still()
	}
}

// still returns the broken snapshots that are still mounted.
func (x *breakage) still() []BrokenSnapshot {
	left, err := x.kernel.Own()
	if err != nil {
		x.log.Warn("mounts not read", "err", err)
	}
	mounted := map[string]string{}
	for _, m := range left {
		if id, _ := x.overlayOf(m); id != "" {
			mounted[id] = m.Dir
		}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	var all []BrokenSnapshot
	ended := false
	for id, why := range x.broken {
		if dir, ok := mounted[id]; ok {
			all = append(all, BrokenSnapshot{ID: id, Mounted: dir, Reason: why, Container: containerOf(dir)})
		} else {
			delete(x.broken, id) // its container has ended
			ended = true
		}
	}
	if ended {
		x.saveLocked()
	}
	slices.SortFunc(all, func(a, b BrokenSnapshot) int { return strings.Compare(a.ID, b.ID) })
	return all
}

// inUse returns the snapshots that overlay mounts of containers and views are made of.
func (x *breakage) inUse() (map[string]bool, error) {
	all, err := x.kernel.Own()
	used := map[string]bool{}
	for _, m := range all {
		active, lowers := x.overlayOf(m)
		for _, id := range append(lowers, active) {
			used[id] = true
		}
	}
	return used, err
}
