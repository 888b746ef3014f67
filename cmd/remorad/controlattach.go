package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"

	controlv1 "github.com/remora-storage/remora/cmd/control/v1"
	"github.com/remora-storage/remora/volume"
	"github.com/remora-storage/remora/volume/host"
)

// AttachVolume makes a block device of a volume.
func (v *volumes) AttachVolume(
	req *controlv1.AttachVolumeRequest, stream grpc.ServerStreamingServer[controlv1.AttachVolumeResponse],
) error {
	ctx := stream.Context()
	url, _, h, err := v.find(ctx, req)
	if err != nil {
		return err
	}
	if _, err := v.host.Attach(ctx, url, h, host.AttachOptions{AcceptLoss: req.GetAcceptLoss(), Progress: func(what string) {
		_ = stream.Send(&controlv1.AttachVolumeResponse{Waits: text(what)}) // the end will say that the caller is gone
	}}); err != nil {
		return err
	}
	if _, err := v.disks.Attach(ctx, volumeSource+h.ID.String(), h.Mode == volume.ModeReadOnly, volume.Block); err != nil {
		return errors.Join(err, v.host.Detach(ctx, h.ID))
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
	id, ok, err := v.attachedID(ctx, req)
	if err != nil {
		return err
	}
	if !ok {
		return stream.Send(&controlv1.DetachVolumeResponse{Done: true})
	}
	if _, err := v.disks.Detach(ctx, volumeSource+id.String()); err != nil {
		return err
	}
	if req.GetAbandonToJournal() {
		v.log.Warn("a volume was detached with acknowledged writes in this node's journal alone", "volume", req.GetName())
		if err := v.host.Abandon(id); err != nil {
			return err
		}
		return stream.Send(&controlv1.DetachVolumeResponse{Done: true, WasAttached: true})
	}
	var telling sync.WaitGroup
	done := make(chan struct{})
	telling.Go(func() { v.tellDetaching(id, done, stream.Send) })
	err = v.host.Detach(ctx, id)
	close(done)
	telling.Wait()
	if err != nil {
		return fmt.Errorf("%w; the volume stays with this node until its store has everything", err)
	}
	return stream.Send(&controlv1.DetachVolumeResponse{Done: true, WasAttached: true})
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
	id, ok, err := v.attachedID(ctx, req)
	if err == nil && !ok {
		err = fmt.Errorf("volume %s: %w", req.GetName(), host.ErrNotAttached)
	}
	if err != nil {
		return nil, err
	}
	open, err := v.host.Volume(ctx, id)
	if err != nil {
		return nil, err
	}
	return &controlv1.SetVolumeFileSystemResponse{}, open.SetFS(ctx, req.GetFs())
}
