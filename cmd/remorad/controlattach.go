package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"

	controlv1 "github.com/remora-storage/remora/cmd/control/v1"
	"github.com/remora-storage/remora/volume"
	"github.com/remora-storage/remora/volume/node"
)

// AttachVolume makes a block device of a volume.
func (v *volumes) AttachVolume(
	req *controlv1.AttachVolumeRequest, stream grpc.ServerStreamingServer[controlv1.AttachVolumeResponse],
) error {
	ctx := stream.Context()
	tell := func(what string) {
		_ = stream.Send(&controlv1.AttachVolumeResponse{Waits: text(what)}) // the end will say that the caller is gone
	}
	t, err := v.attach(ctx, req, req.GetAcceptLoss(), tell)
	if err == nil {
		err = v.finish(ctx, t.id, tell)
	}
	if err != nil {
		return err
	}
	open, err := v.host.Volume(ctx, t.id)
	if err != nil {
		return err
	}
	return stream.Send(&controlv1.AttachVolumeResponse{Volume: v.describe(t.url, open.Head()), Fresh: open.Fresh()})
}

// attach makes a volume this node's, with a device. One that comes back to its node has no need of its store.
func (v *volumes) attach(ctx context.Context, req named, acceptLoss bool, tell func(string)) (target, error) {
	url, _, h, err := v.find(ctx, req)
	if err != nil {
		return target{}, err
	}
	if err := v.node.Attach(ctx, h.ID, v.hands(url, h), node.How{AcceptLoss: acceptLoss}, tell); err != nil {
		return target{}, fmt.Errorf("volume %s: %w", h.Name, err)
	}
	return target{h.Name, url, h.ID}, nil
}

const detachTells = time.Second

// DetachVolume gives a volume up when its store has everything, and tells meanwhile how much is missing.
func (v *volumes) DetachVolume(
	req *controlv1.DetachVolumeRequest, stream grpc.ServerStreamingServer[controlv1.DetachVolumeResponse],
) error {
	ctx := stream.Context()
	t, ok, err := v.ownTarget(ctx, req)
	if err != nil {
		return err
	}
	if !ok {
		return stream.Send(&controlv1.DetachVolumeResponse{Done: true})
	}
	away := v.node.Detach
	if req.GetAbandonToJournal() {
		away = v.node.Abandon
	}
	was, err := v.giveUp(ctx, t.id, away, func(atRisk int64, reason string) error {
		return stream.Send(&controlv1.DetachVolumeResponse{AtRiskBytes: atRisk, Reason: reason})
	})
	if err != nil {
		return err
	}
	return stream.Send(&controlv1.DetachVolumeResponse{Done: true, WasAttached: was})
}

// giveUp has a volume given up, and tells meanwhile how much the store does not have yet, and why.
func (v *volumes) giveUp(ctx context.Context, id volume.ID, away func(context.Context, volume.ID) (bool, error),
	tell func(atRisk int64, reason string) error,
) (was bool, err error) {
	if k := v.disks.Find(sourceOf(id)); k.Dead {
		_, err := v.disks.Detach(ctx, k.Source)
		return err == nil, err
	}
	var telling sync.WaitGroup
	done := make(chan struct{})
	telling.Go(func() { v.tellDetaching(id, done, tell) })
	was, err = away(ctx, id)
	close(done)
	telling.Wait()
	if err != nil && ctx.Err() != nil {
		return was, fmt.Errorf("%w; it goes on without you, and gives the volume up when its store has everything", err)
	}
	return was, err
}

// tellDetaching tells how much the store does not have yet, until done is closed or the caller is gone.
func (v *volumes) tellDetaching(id volume.ID, done <-chan struct{}, tell func(atRisk int64, reason string) error) {
	t := time.NewTicker(detachTells)
	defer t.Stop()
	for {
		select {
		case <-done:
			return
		case <-t.C:
		}
		atRisk, reason := int64(0), ""
		if st, _, _, ok := v.host.Status(id); ok {
			atRisk = st.AtRisk
			for _, w := range st.Waits {
				reason = text(w.Reason.Error())
			}
		}
		if tell(atRisk, reason) != nil {
			return
		}
	}
}
