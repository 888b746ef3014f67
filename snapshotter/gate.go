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

// gating has who mounts a layer that is not there yet wait for it.
type gating struct {
	*base
	bindings  *bindings
	mountings *mountings
	mending   *mending

	gates Gates // on directories of layers; nil where the kernel has none
}

func (g *gating) dirOf(b *binding) string { return filepath.Join(g.gatesDir(), b.id, "fs") }
func (g *gating) of(dir string) *binding  { return g.bindings.get(filepath.Base(filepath.Dir(dir))) }

// open makes gates possible, where the kernel has them.
func (g *gating) open() {
	gates, err := g.kernel.Gates(g.enter)
	if err != nil {
		g.log.Info("the kernel holds up nobody who mounts a layer that is not there yet: views wait for their layers", "reason", err)
		return
	}
	g.gates = gates
}

// gate returns a layer's directory for a client that does not ask again: the layer's own if it is mounted and nobody contests it, and
// its gate otherwise. Without gates it is a directory that does not exist: a mount that fails shows less than the image to nobody.
func (g *gating) gate(b *binding) (string, error) {
	proven := b.isProven()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.how != notMounted && (len(b.rivals) == 0 || proven) {
		return b.fsDir(), nil
	}
	if g.gates == nil {
		return filepath.Join(b.dir, "not-mounted-yet"), nil
	}
	if b.shown && len(b.rivals) > 0 { // who had it mounted keeps what is behind it
		if err := g.dropLocked(b); err != nil {
			return "", err
		}
	}
	if !b.gated {
		if err := g.makeLocked(b); err != nil {
			return "", err
		}
	}
	return g.dirOf(b) + "/", nil // the kernel stops only those who go on from there
}

func (g *gating) makeLocked(b *binding) error {
	dir := g.dirOf(b)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := g.gates.Mount(dir); err != nil {
		return errors.Join(fmt.Errorf("gate of a layer that is not there yet: %w", err), os.RemoveAll(filepath.Dir(dir)))
	}
	b.gated, b.shown = true, false
	return nil
}

// enter mounts the layer whose gate somebody enters, and shows it there.
func (g *gating) enter(dir string) error {
	b := g.of(dir)
	if b == nil {
		return errors.New("its snapshot is gone")
	}
	for {
		if err := g.mending.settleNoted(g.life, b); err != nil {
			return err
		}
		if err := g.mountings.ensure(g.life, b); err != nil {
			return err
		}
		if done, err := g.showAt(b, dir); done || err != nil {
			return err
		}
	}
}

// showAt shows a layer at its gate. done is false if the layer was unmounted meanwhile.
func (g *gating) showAt(b *binding, dir string) (done bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.gated || b.removed {
		return false, errors.New("its snapshot is gone")
	}
	if b.how == notMounted {
		return false, nil
	}
	b.shown = true
	return true, g.kernel.Bind(b.fsDir(), dir)
}

// dropLocked takes a binding's gate away, with what is mounted on it. Containers that have it keep what they have.
func (g *gating) dropLocked(b *binding) error {
	if !b.gated {
		return nil
	}
	dir := g.dirOf(b)
	if err := g.kernel.Unmount(dir); err != nil {
		return err
	}
	b.gated, b.shown = false, false
	return os.RemoveAll(filepath.Dir(dir))
}

// renew replaces the gates that an earlier process has left. Who waits at one fails. What a reboot has left of others goes.
func (g *gating) renew(left []mounts.Mount) {
	defer g.removeStray()
	gated := map[string]bool{}
	for _, m := range left {
		if m.Type == autofs.Type && g.gates != nil {
			if err := g.gates.Quiet(m); err != nil {
				g.log.Warn("who waits for a layer since an earlier life may go on waiting", "gate", m.Dir, "err", err)
			}
		}
		gated[m.Dir] = true
	}
	for dir := range gated {
		if err := g.kernel.Unmount(dir); err != nil {
			g.log.Warn("gate of an earlier life stays", "gate", dir, "err", err)
			continue
		}
		b := g.of(dir)
		if b == nil || g.gates == nil {
			continue
		}
		b.mu.Lock()
		if err := g.makeLocked(b); err != nil {
			g.log.Warn("who was told of a layer before the restart cannot mount it", "gate", dir, "err", err)
		}
		b.mu.Unlock()
	}
}

// removeStray removes directories of gates on which nothing is mounted.
func (g *gating) removeStray() {
	entries, err := os.ReadDir(g.gatesDir())
	if err != nil {
		return // there never was one
	}
	for _, e := range entries {
		b := g.bindings.get(e.Name())
		if b != nil && b.hasGate() {
			continue
		}
		dir := filepath.Join(g.gatesDir(), e.Name())
		_ = os.Remove(filepath.Join(dir, "fs")) // not if something is mounted there
		_ = os.Remove(dir)
	}
}

func (b *binding) hasGate() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.gated
}

// close ends the waiting. Where mounts stay for the next process, the gates do, too, and who comes to one on which nothing is
// mounted fails until then. Otherwise they are taken away.
func (g *gating) close() error {
	if g.gates == nil {
		return nil
	}
	errs := []error{g.gates.Close()}
	all := g.bindings.all()
	if g.exports.Outlive() && slices.ContainsFunc(all, (*binding).mounted) {
		return errs[0]
	}
	for _, b := range all {
		b.mu.Lock()
		errs = append(errs, g.dropLocked(b))
		b.mu.Unlock()
	}
	return errors.Join(errs...)
}
