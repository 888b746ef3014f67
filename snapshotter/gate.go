package snapshotter

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/remora-storage/remora/blockdev/autofs"
	"github.com/remora-storage/remora/blockdev/mounts"
)

// containerd is told where a layer's directory is before the layer is there, by View and by Prepare, and some of its clients mount
// that without ever calling Mounts. A layer's directory has a gate for that, below whatever is mounted there: who mounts an overlay
// on it before the layer is mounted waits for the layer, or fails. Nobody sees an empty directory in its place.

// openGates makes the gates, where the kernel has them.
func (s *Snapshotter) openGates() {
	gates, err := s.kernel.Gates(s.enter)
	if err != nil {
		s.log.Info("what a client mounts without asking again is waited for when it asks first", "reason", err)
		return
	}
	s.gates = gates
}

// enter mounts the layer whose directory somebody enters.
func (s *Snapshotter) enter(dir string) error {
	b := s.binding(filepath.Base(filepath.Dir(dir)))
	if b == nil || b.fsDir() != dir {
		return fmt.Errorf("the snapshot of %s is gone", dir)
	}
	return s.ensure(s.life, b)
}

// gateLocked puts a gate on a binding's directory, on which nothing is mounted. Its snapshot may be gone already.
func (s *Snapshotter) gateLocked(b *binding) {
	if s.gates == nil || b.removed || s.life.Err() != nil {
		return
	}
	if err := s.gates.Mount(b.fsDir()); err != nil {
		s.log.Warn("a client that mounts a layer without asking again may see an empty directory", "dir", b.fsDir(), "err", err)
	}
}

// renewGate replaces the gate that an earlier process has left on a directory, if nothing else is mounted there.
func (s *Snapshotter) renewGate(b *binding) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.how != notMounted || s.gates == nil {
		return
	}
	if err := s.kernel.Unmount(b.fsDir()); err != nil {
		s.log.Warn("mount of an earlier life stays", "dir", b.fsDir(), "err", err)
		return
	}
	s.gateLocked(b)
}

// closeGates ends the waiting. Where mounts stay for the next process, the gates do, too, and who comes to one fails until then.
// Otherwise they are taken away.
func (s *Snapshotter) closeGates() error {
	if s.gates == nil {
		return nil
	}
	errs := []error{s.gates.Close()}
	all := s.allBindings()
	if s.exports.Outlive() && slices.ContainsFunc(all, (*binding).mounted) {
		return errs[0]
	}
	for _, b := range all {
		if !b.mounted() {
			errs = append(errs, s.unmount(b))
		}
	}
	return errors.Join(errs...)
}

// quietGate lets those go who wait at a gate of an earlier process.
func (s *Snapshotter) quietGate(m mounts.Mount) {
	if err := autofs.Quiet(m); err != nil {
		s.log.Warn("who waits for a layer since an earlier life may go on waiting", "dir", m.Dir, "err", err)
	}
}
