package snapshotter

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/remora-storage/remora/blockdev/autofs"
	"github.com/remora-storage/remora/blockdev/mounts"
)

// containerd is told where a layer's directory is before the layer is there, by View and by Prepare, and some of its clients mount
// that without ever calling Mounts. For a layer that is not mounted yet they are told of a gate: a directory of its own, which
// nobody enters before the layer is mounted on it, too. Who mounts an overlay on a gate waits for the layer, or fails. Nobody sees
// an empty directory in its place.
//
// Gates are not below the directory of the snapshots: containerd idmaps all that is mounted there together, and autofs cannot be.

func (s *Snapshotter) gatesDir() string           { return filepath.Join(s.root, "gates") }
func (s *Snapshotter) gateDir(b *binding) string  { return filepath.Join(s.gatesDir(), b.id, "fs") }
func (s *Snapshotter) gateOf(dir string) *binding { return s.binding(filepath.Base(filepath.Dir(dir))) }

// openGates makes gates possible, where the kernel has them.
func (s *Snapshotter) openGates() {
	gates, err := s.kernel.Gates(s.enter)
	if err != nil {
		s.log.Info("the kernel holds up nobody who mounts a layer that is not there yet: views wait for their layers", "reason", err)
		return
	}
	s.gates = gates
}

// gate returns a layer's directory for somebody who will not ask again: the layer's own if it is mounted and nobody contests it, and its
// gate otherwise.
func (s *Snapshotter) gate(b *binding) (string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.how != notMounted && len(b.rivals) == 0 || s.gates == nil {
		return b.fsDir(), nil
	}
	if !b.gated {
		if err := s.makeGateLocked(b); err != nil {
			return "", err
		}
	}
	return s.gateDir(b) + "/", nil // the kernel stops only those who go on from there
}

func (s *Snapshotter) makeGateLocked(b *binding) error {
	dir := s.gateDir(b)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := s.gates.Mount(dir); err != nil {
		return errors.Join(fmt.Errorf("gate of a layer that is not there yet: %w", err), os.RemoveAll(filepath.Dir(dir)))
	}
	b.gated = true
	return nil
}

// enter mounts the layer whose gate somebody enters, and shows it there.
func (s *Snapshotter) enter(dir string) error {
	b := s.gateOf(dir)
	if b == nil {
		return errors.New("its snapshot is gone")
	}
	for {
		if err := s.settleNoted(s.life, b); err != nil {
			return err
		}
		if err := s.ensure(s.life, b); err != nil {
			return err
		}
		if done, err := s.showAt(b, dir); done || err != nil {
			return err
		}
	}
}

// showAt shows a layer at its gate. done is false if the layer was unmounted meanwhile.
func (s *Snapshotter) showAt(b *binding, dir string) (done bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.gated || b.removed {
		return false, errors.New("its snapshot is gone")
	}
	if b.how == notMounted {
		return false, nil
	}
	return true, s.kernel.Bind(b.fsDir(), dir)
}

// dropGateLocked takes a binding's gate away, with what is mounted on it. Containers that have it keep what they have.
func (s *Snapshotter) dropGateLocked(b *binding) error {
	if !b.gated {
		return nil
	}
	dir := s.gateDir(b)
	if err := s.kernel.Unmount(dir); err != nil {
		return err
	}
	b.gated = false
	return os.RemoveAll(filepath.Dir(dir))
}

// renewGates replaces the gates that an earlier process has left. Who waits at one fails. What a reboot has left of others goes.
func (s *Snapshotter) renewGates(left []mounts.Mount) {
	defer s.removeStrayGates()
	gated := map[string]bool{}
	for _, m := range left {
		if m.Type == autofs.Type && s.gates != nil {
			if err := s.gates.Quiet(m); err != nil {
				s.log.Warn("who waits for a layer since an earlier life may go on waiting", "gate", m.Dir, "err", err)
			}
		}
		gated[m.Dir] = true
	}
	for dir := range gated {
		if err := s.kernel.Unmount(dir); err != nil {
			s.log.Warn("gate of an earlier life stays", "gate", dir, "err", err)
			continue
		}
		b := s.gateOf(dir)
		if b == nil || s.gates == nil {
			continue
		}
		b.mu.Lock()
		if err := s.makeGateLocked(b); err != nil {
			s.log.Warn("who was told of a layer before the restart cannot mount it", "gate", dir, "err", err)
		}
		b.mu.Unlock()
	}
}

// removeStrayGates removes directories of gates on which nothing is mounted.
func (s *Snapshotter) removeStrayGates() {
	entries, err := os.ReadDir(s.gatesDir())
	if err != nil {
		return // there never was one
	}
	for _, e := range entries {
		b := s.binding(e.Name())
		if b != nil && b.hasGate() {
			continue
		}
		dir := filepath.Join(s.gatesDir(), e.Name())
		_ = os.Remove(filepath.Join(dir, "fs")) // not if something is mounted there
		_ = os.Remove(dir)
	}
}

func (b *binding) hasGate() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.gated
}

// closeGates ends the waiting. Where mounts stay for the next process, the gates do, too, and who comes to one on which nothing is
// mounted fails until then. Otherwise they are taken away.
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
		b.mu.Lock()
		errs = append(errs, s.dropGateLocked(b))
		b.mu.Unlock()
	}
	return errors.Join(errs...)
}
