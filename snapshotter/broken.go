package snapshotter

import (
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"

	"github.com/remora-storage/remora/internal/durable"
)

// BrokenFile keeps the broken snapshots over restarts: after the first, nothing else tells that a
// container still has what was lost then.
var BrokenFile = durable.Kind{
	Name: "broken.json",
	Lost: "which containers were broken before remorad started last",
	Do:   "if remorad and its holder had ended together before, start the containers again that ran then; then remove this file",
}

func (s *Snapshotter) readBroken() map[string]string {
	broken, _, err := durable.LoadJSON[map[string]string](filepath.Join(s.root, BrokenFile.Name), BrokenFile, s.log, nil)
	if err != nil {
		s.log.Error("containers that an earlier life has named are not known any more", "err", err)
	}
	return broken
}

// saveBrokenLocked writes the broken snapshots down. The caller holds mu.
func (s *Snapshotter) saveBrokenLocked() {
	path := filepath.Join(s.root, BrokenFile.Name)
	p, err := json.Marshal(s.broken)
	if err == nil {
		err = durable.Replace(path, p, 0o600)
	}
	if err != nil {
		s.log.Error("the next start will not name these containers", "broken", s.broken, "err", err)
	}
}

// findBroken names the active snapshots that are mounted over layers which could not be taken
// over, until their containers are started again. It is called before anybody else is there.
func (s *Snapshotter) findBroken() {
	all, err := s.kernel.Own()
	if err != nil {
		s.log.Warn("mounts not read", "err", err)
		return
	}
	earlier := s.readBroken()
	for _, m := range all {
		id, ok := s.activeOf(m)
		if !ok {
			continue
		}
		if why, was := earlier[id]; was {
			s.broken[id] = why
			continue
		}
		for _, lower := range s.lowersOf(m) {
			if b := s.bindings[lower]; b != nil && b.dead != "" {
				s.broken[id] = b.dead + "; start its container again"
				s.log.Error("container may see errors or wrong data", "container", containerOf(m.Dir),
					"snapshot", id, "mounted", m.Dir, "reason", b.dead)
				break
			}
		}
	}
	if len(s.broken)+len(earlier) > 0 {
		s.saveBrokenLocked()
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

// forgetEnded drops broken snapshots that are no longer mounted. It is called before a container is
// started: mounted again, its snapshot is whole.
func (s *Snapshotter) forgetEnded() {
	s.mu.Lock()
	some := len(s.broken) > 0
	s.mu.Unlock()
	if some {
		s.stillBroken()
	}
}

// stillBroken returns the broken snapshots that are still mounted.
func (s *Snapshotter) stillBroken() []BrokenSnapshot {
	left, err := s.kernel.Own()
	if err != nil {
		s.log.Warn("mounts not read", "err", err)
	}
	mounted := map[string]string{}
	for _, m := range left {
		if id, ok := s.activeOf(m); ok {
			mounted[id] = m.Dir
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []BrokenSnapshot
	ended := false
	for id, why := range s.broken {
		if dir, ok := mounted[id]; ok {
			all = append(all, BrokenSnapshot{ID: id, Mounted: dir, Reason: why, Container: containerOf(dir)})
		} else {
			delete(s.broken, id) // its container has ended
			ended = true
		}
	}
	if ended {
		s.saveBrokenLocked()
	}
	slices.SortFunc(all, func(a, b BrokenSnapshot) int { return strings.Compare(a.ID, b.ID) })
	return all
}
