package volume

import (
	"context"
	"errors"
)

// A node that was cut off from the store for longer than its lease is fenced by whoever takes one of its volumes. It lives again under
// another incarnation, and owns what nobody has taken: nothing was acknowledged since its lease ran out, so all that is in its journals
// continues what the heads say. But first each head has to say so, in an epoch of its own: whoever was about to take the volume, as one of
// a node that was fenced, swaps a head that is no longer there.

var errReasserted = errors.New("the head says so already")

// reassert makes the volume that of the node's present life. ErrFenced says that it was taken.
func (v *Volume) reassert(ctx context.Context) error {
	err := v.update(ctx, func(h *Head) error {
		if !v.claim(h) {
			return errReasserted
		}
		return nil
	}, v.claimedLocked)
	if errors.Is(err, errReasserted) {
		v.mu.Lock()
		v.claimedLocked()
		v.mu.Unlock()
		return nil
	}
	return err
}

// keep has the volume know soon after the node lives again whether it is that life's, though nobody uses it.
func (v *Volume) keep(ctx context.Context) {
	for {
		changed := v.lease.Changed()
		switch life, certain, err := v.lease.Certain(); {
		case errors.Is(err, ErrFenced):
			v.fail(err)
			return
		case certain && life != *v.life.Load():
			if err := v.leased(ctx); errors.Is(err, ErrFenced) {
				return
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// claim has a head that is about to be written say which life of the node owns the volume, and reports whether it did not. The head's
// owner may not be nil.
func (v *Volume) claim(h *Head) bool {
	life, _, _ := v.lease.Certain()
	if h.Owner.Incarnation == life {
		return false
	}
	h.Epoch++
	h.Owner = &Owner{Node: h.Owner.Node, Incarnation: life}
	return true
}

// claimedLocked takes over what the head says of the owner.
func (v *Volume) claimedLocked() {
	if o := v.head.Owner; o != nil && o.Incarnation != *v.life.Load() {
		v.life.Store(&o.Incarnation)
		v.journal.setEpoch(v.head.Epoch)
	}
}
