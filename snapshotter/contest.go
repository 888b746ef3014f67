package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/snapshotter/layers"
)

// containerd has one snapshot of a chainID for all images of a namespace, and does not ask us about the second image that
// claims it. What an image's configuration says of its layers may be a lie. So, where several images of a namespace claim
// a chainID by different layers or tables, no container sees the snapshot before its diffID is proven, and it is filled by
// the image whose bytes have that diffID, whichever came first.

// mending decides what bindings show that are contested, wrong, or no longer where they were.
type mending struct {
	*base
	bindings  *bindings
	mountings *mountings
	releasing *releasing
	doubting  *doubting
	asking    *asking
}

// settle proves the contested ones among bindings before a container of the request's namespace sees them. Parents come before their
// children.
func (m *mending) settle(ctx context.Context, all []*binding) error {
	if err := m.contest(ctx, all); err != nil {
		return err
	}
	namespace, _ := namespaces.Namespace(ctx)
	for _, b := range slices.Backward(all) { // the nearest to the container came first
		if err := m.decide(ctx, b, b.rivalsIn(namespace)); err != nil {
			return err
		}
	}
	return nil
}

// contest notes which of some bindings the images of the request's namespace contest now, for whoever settles them, or comes to their
// gates later.
func (m *mending) contest(ctx context.Context, all []*binding) error {
	namespace, ok := namespaces.Namespace(ctx)
	if !ok {
		return nil // it is our own doing: no container sees what comes of it
	}
	rivals, err := m.rivals(ctx, unproven(all))
	if err != nil {
		return err
	}
	for _, b := range all {
		b.noteRivals(namespace, rivals[b])
	}
	return nil
}

// settleNoted settles a binding that contest has found contested in any namespace: who comes to a gate may be of each.
func (m *mending) settleNoted(ctx context.Context, b *binding) error {
	return m.decide(ctx, b, b.rivalsIn(""))
}

// noteRivals notes by whom else the images of a namespace claim a binding's layer; nil for nobody.
func (b *binding) noteRivals(namespace string, rivals []layers.Source) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(rivals) == 0 {
		delete(b.rivals, namespace)
		return
	}
	if b.rivals == nil {
		b.rivals = map[string][]layers.Source{}
	}
	b.rivals[namespace] = rivals
}

// rivalsIn returns what was noted of a namespace; "" for all.
func (b *binding) rivalsIn(namespace string) (rivals []layers.Source) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for in, some := range b.rivals {
		if namespace == "" || namespace == in {
			rivals = append(rivals, some...)
		}
	}
	return rivals
}

// unproven returns those of which it is not known that they have the right bytes in the right tree.
func unproven(all []*binding) []*binding {
	return slices.DeleteFunc(slices.Clone(all), (*binding).isProven)
}

func (b *binding) isProven() bool {
	f, src := b.image(), b.source()
	// The first has a damaged record.
	return src.DiffID == "" || b.isUnpacked() || f != nil && layers.Proven(f, &src) && f.Verified(src.DiffID) && b.quarantined() == ""
}

// rivals returns, for each binding, the other layers and tables by which images of the request's namespace claim the same
// chainID.
func (m *mending) rivals(ctx context.Context, all []*binding) (map[*binding][]layers.Source, error) {
	if len(all) == 0 {
		return nil, nil
	}
	chains, err := m.bindings.chainsOf(ctx, all)
	if err != nil {
		return nil, err
	}
	wanted := map[digest.Digest]bool{}
	for _, id := range chains {
		wanted[id] = true
	}
	claims, err := m.images.Claims(ctx, wanted)
	if err != nil {
		return nil, fmt.Errorf("which images claim these layers: %w", err)
	}
	rivals := map[*binding][]layers.Source{}
	for _, b := range all {
		f, src := b.image(), b.source()
		for _, theirs := range claims[chains[b]] {
			if !m.layers.Agree(f, &src, &theirs) {
				rivals[b] = append(rivals[b], theirs)
			}
		}
	}
	return rivals, nil
}

// refill has a binding show something else, and what was built on it look again.
func (m *mending) refill(b *binding, with filled) error {
	b.endAttempt()
	b.mu.Lock()
	if b.removed {
		b.mu.Unlock()
		return errors.New("snapshot was removed")
	}
	was := b.file
	err := errors.Join(m.mountings.makeWayLocked(b), m.fillLocked(b, with))
	b.mu.Unlock()
	if was != with.file {
		m.dropUnused(was)
	}
	return errors.Join(err, m.rebuildOn(b))
}

// endAttempt ends the attempt to mount a binding that is under way.
func (b *binding) endAttempt() {
	b.mu.Lock()
	a := b.attempt
	b.mu.Unlock()
	if a == nil {
		return
	}
	if a.stop != nil {
		a.stop()
	}
	<-a.done
}
