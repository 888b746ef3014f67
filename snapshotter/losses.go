package snapshotter

import (
	"log/slog"
	"slices"
	"strings"
	"sync"
)

// losses are the snapshots that containerd knows, and that were lost here for good: what was committed, built, or written by a
// container, and layers of which containerd has no image any more.
type losses struct {
	log *slog.Logger

	mu  sync.Mutex                   // guards all
	all map[string]map[string]string // why each cannot be made anew, by namespace and containerd's key
}

// set says which there are now, and logs those that are new.
func (l *losses) set(all map[string]map[string]string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for namespace, some := range all {
		for key, why := range some {
			if _, known := l.all[namespace][key]; !known {
				l.log.Error("a snapshot that containerd knows was lost, and cannot be made anew", "namespace", namespace, "key", key, "err", why)
			}
		}
	}
	l.all = all
}

func (l *losses) in(namespace string) map[string]string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all[namespace]
}

func (l *losses) none() bool { return len(l.broken()) == 0 }

// broken returns them as status has them.
func (l *losses) broken() (all []BrokenSnapshot) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for namespace, some := range l.all {
		for key, why := range some {
			all = append(all, BrokenSnapshot{ID: namespace + "/" + key, Reason: "it was lost with what was in it, and cannot be made anew: " + why})
		}
	}
	slices.SortFunc(all, func(a, b BrokenSnapshot) int { return strings.Compare(a.ID, b.ID) })
	return all
}
