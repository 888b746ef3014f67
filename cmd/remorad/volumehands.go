package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/remora-storage/remora/blockdev/disk"
	"github.com/remora-storage/remora/volume"
	"github.com/remora-storage/remora/volume/host"
	"github.com/remora-storage/remora/volume/node"
)

// volumeHands are node.Hands for one volume.
type volumeHands struct {
	*volumes
	url  string
	head *volume.Head // name, size and mode may be older than what the store has
}

func (v *volumes) hands(url string, head *volume.Head) node.Hands { return volumeHands{v, url, head} }

// adoptVolumes takes over what an earlier process had taken. What has no device any more is given up.
func (v *volumes) adoptVolumes() error {
	if err := v.host.ResumeAll(); err != nil {
		return err
	}
	for _, a := range v.host.Attached() {
		k := v.disks.Find(sourceOf(a.ID))
		works := k.Path != "" && !k.Dead
		v.node.Adopt(a.ID, v.hands(a.Store, &volume.Head{ID: a.ID, Name: a.Name, Size: a.Size}), works)
	}
	return nil
}

// Open implements node.Hands.
func (h volumeHands) Open(ctx context.Context, how node.How, stop <-chan struct{}, tell func(string)) error {
	ctx, end := until(ctx, stop)
	defer end()
	_, err := h.host.Attach(ctx, h.url, h.head, host.AttachOptions{AcceptLoss: how.AcceptLoss, Progress: tell})
	return err
}

// Export implements node.Hands.
func (h volumeHands) Export(ctx context.Context) error {
	st, _, _, ok := h.host.Status(h.head.ID)
	switch {
	case ok && st.Failed != nil:
		return fmt.Errorf("detach it here first: %w", st.Failed)
	case ok && st.Closed:
		return errors.New("it is half given up; detach it here first")
	}
	_, err := h.disks.Attach(ctx, sourceOf(h.head.ID), h.head.Mode == volume.ModeReadOnly, volume.Block)
	return err
}

// Withdraw implements node.Hands.
func (h volumeHands) Withdraw(ctx context.Context) error {
	_, err := h.disks.Detach(ctx, sourceOf(h.head.ID))
	if err == nil || errors.Is(err, disk.ErrInUse) {
		return err
	}
	if device, _ := h.device(h.head.ID); device == "" {
		h.log.Warn("a volume's device has gone, not without trouble", "volume", h.head.Name, "err", err)
		return nil
	}
	return err
}

// Leave implements node.Hands.
func (h volumeHands) Leave(ctx context.Context, stop <-chan struct{}) error {
	ctx, end := until(ctx, stop)
	defer end()
	err := h.host.Detach(ctx, h.head.ID)
	if err == nil || !errors.Is(context.Cause(ctx), errNotWanted) {
		return err
	}
	if st, _, _, ok := h.host.Status(h.head.ID); ok && st.Closed {
		return node.ErrHalfLeft
	}
	return node.ErrKept
}

// Abandon implements node.Hands.
func (h volumeHands) Abandon(context.Context) error {
	h.log.Warn("a volume is given up with acknowledged writes in this node's journal alone", "volume", h.head.Name)
	return h.host.Abandon(h.head.ID)
}

var errNotWanted = errors.New("somebody wants something else of the volume by now")

// until returns a context that ends when stop is closed, too. end must be called.
func until(ctx context.Context, stop <-chan struct{}) (_ context.Context, end func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		select {
		case <-stop:
			cancel(errNotWanted)
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil) }
}
