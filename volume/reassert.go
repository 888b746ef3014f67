package volume

import (
	"context"
	"errors"
	"sync/atomic"
)

// A node that was cut off from the store for longer than its lease is fenced by whoever takes one of its volumes. It lives again under
// another incarnation, and owns what nobody has taken: nothing was acknowledged since its lease ran out, so all that is in its journals
// continues what the heads say. But first each head has to say so, in an epoch of its own: whoever was about to take the volume, as one of
// a node that was fenced, swaps a head that is no longer there.

// A life says which life of its node a volume's head names.
type life struct {
	v     *Volume
	named atomic.Pointer[ID]
}

var errReasserted = errors.New("the head says so already")

// reassert makes the volume that of the node's present life. ErrFenced says that it was taken. An error fails the volume, unless ctx has
// ended.
func (l *life) reassert(ctx context.Context) error {
	err := l.v.update(ctx, func(h *Head) error {
		if err := l.v.failed(); err != nil {
			return err
		}
		if !l.claim(h) {
			return errReasserted
		}
		return nil
	}, l.claimedLocked)
	if errors.Is(err, errReasserted) {
		l.v.mu.Lock()
		l.claimedLocked()
		l.v.mu.Unlock()
		return nil
	}
	if errors.Is(err, ErrNotFound) {
		err = fencing("the volume is no more")
	}
	if err != nil && ctx.Err() == nil {
		l.v.fail(err)
	}
	return err
}

// keep has the volume know soon after the node lives again whether it is that life's, though nobody uses it.
func (l *life) keep(ctx context.Context) {
	for {
		changed := l.v.lease.Changed()
		switch now, certain, err := l.v.lease.Certain(); {
		case errors.Is(err, ErrFenced):
			l.v.fail(err)
			return
		case certain && now != *l.named.Load():
			if err := l.v.leased(ctx); errors.Is(err, ErrFenced) {
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
func (l *life) claim(h *Head) bool {
	now, _, _ := l.v.lease.Certain()
	if h.Owner.Incarnation == now {
		return false
	}
	h.Epoch++
	h.Owner = &Owner{Node: h.Owner.Node, Incarnation: now}
	return true
}

// claimedLocked takes over what the volume's head says of the owner, under the volume's lock.
func (l *life) claimedLocked() {
	if o := l.v.head.Owner; o != nil && o.Incarnation != *l.named.Load() {
		l.named.Store(&o.Incarnation)
		l.v.journal.setEpoch(l.v.head.Epoch)
	}
}
