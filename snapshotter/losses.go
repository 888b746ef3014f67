package snapshotter

import (
	"log/slog"
	"slices"
	"strings"
	"sync"
)

// losses are the snapshots that containerd knows, and that were lost here for good: what was committed, built, or written by a
// container, and layers of which containerd has no image any more. What is being committed has another name here already, and none that
// containerd knows, until containerd's transaction is on its disk. So what was found lost once is only suspected.
type losses struct {
	log *slog.Logger

	mu   sync.Mutex                   // guards the fields below
	all  map[string]map[string]string // why each cannot be made anew, by namespace and containerd's key
	last map[string]map[string]string // what was found last: all of that, and what is suspected
}

// set says which were found now. Those that were found before, too, are lost; it logs which of them are new.
func (l *losses) set(found map[string]map[string]string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := map[string]map[string]string{}
	for namespace, some := range found {
		all[namespace] = map[string]string{}
		for key, why := range some {
			if _, suspected := l.last[namespace][key]; !suspected {
				continue
			}
			all[namespace][key] = why
			if _, known := l.all[namespace][key]; !known {
				l.log.Error("a snapshot that containerd knows was lost, and cannot be made anew", "namespace", namespace, "key", key, "err", why)
			}
		}
	}
	l.all, l.last = all, found
}

func (l *losses) in(namespace string) map[string]string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all[namespace]
}

// none reports whether nothing was found lost.
func (l *losses) none() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return count(l.last) == 0
}

// suspected reports whether something was found lost for the first time.
func (l *losses) suspected() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return count(l.last) > count(l.all)
}

func count(all map[string]map[string]string) (n int) {
	for _, some := range all {
		n += len(some)
	}
	return n
}

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
