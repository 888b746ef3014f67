package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"

	controlv1 "github.com/remora-storage/remora/cmd/control/v1"
	"github.com/remora-storage/remora/volume"
	"github.com/remora-storage/remora/volume/host"
	"github.com/remora-storage/remora/volume/node"
)

// AttachVolume makes a block device of a volume.
func (v *volumes) AttachVolume(
	req *controlv1.AttachVolumeRequest, stream grpc.ServerStreamingServer[controlv1.AttachVolumeResponse],
) error {
	ctx := stream.Context()
	url, _, h, err := v.find(ctx, req) // one that comes back to its node has no need of its store
	if err != nil {
		return err
	}
	tell := func(what string) {
		_ = stream.Send(&controlv1.AttachVolumeResponse{Waits: text(what)}) // the end will say that the caller is gone
	}
	if err := v.node.Attach(ctx, h.ID, v.hands(url, h), node.How{AcceptLoss: req.GetAcceptLoss()}, tell); err != nil {
		return fmt.Errorf("volume %s: %w", h.Name, err)
	}
	open, err := v.host.Volume(ctx, h.ID)
	if err != nil {
		return err
	}
	return stream.Send(&controlv1.AttachVolumeResponse{Volume: v.describe(url, open.Head()), Fresh: open.Fresh()})
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
	var telling sync.WaitGroup
	done := make(chan struct{})
	telling.Go(func() { v.tellDetaching(t.id, done, stream.Send) })
	was, err := away(ctx, t.id)
	close(done)
	telling.Wait()
	switch {
	case err != nil && ctx.Err() != nil:
		return fmt.Errorf("%w; it goes on without you, and gives the volume up when its store has everything", err)
	case err != nil:
		return err
	}
	return stream.Send(&controlv1.DetachVolumeResponse{Done: true, WasAttached: was})
}

// tellDetaching sends how much the store does not have yet, until done is closed or the caller is gone.
func (v *volumes) tellDetaching(id volume.ID, done <-chan struct{}, send func(*controlv1.DetachVolumeResponse) error) {
	t := time.NewTicker(detachTells)
	defer t.Stop()
	for {
		select {
		case <-done:
			return
		case <-t.C:
		}
		m := &controlv1.DetachVolumeResponse{}
		if st, _, _, ok := v.host.Status(id); ok {
			m.AtRiskBytes = st.AtRisk
			for _, w := range st.Waits {
				m.Reason = text(w.Reason.Error())
			}
		}
		if send(m) != nil {
			return
		}
	}
}

// SetVolumeFileSystem records which file system was made.
func (v *volumes) SetVolumeFileSystem(ctx context.Context, req *controlv1.SetVolumeFileSystemRequest) (
	*controlv1.SetVolumeFileSystemResponse, error) {
	t, ok, err := v.ownTarget(ctx, req)
	if err == nil && !ok {
		err = fmt.Errorf("volume %s: %w", req.GetName(), host.ErrNotAttached)
	}
	if err != nil {
		return nil, err
	}
	open, err := v.host.Volume(ctx, t.id)
	if err != nil {
		return nil, err
	}
	return &controlv1.SetVolumeFileSystemResponse{}, open.SetFS(ctx, req.GetFs())
}
