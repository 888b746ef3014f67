package main

import (
	"context"
	"errors"

	"github.com/containerd/containerd/v2/pkg/namespaces"

	"github.com/remora-storage/remora/cmd/internal/control"
	"github.com/remora-storage/remora/fs/profile"
	"github.com/remora-storage/remora/snapshotter"
)

// Record keeps a recording until it is ended, or the caller goes.
func (c *controlServer) Record(ctx context.Context, req *control.RecordRequest, send func(*control.RecordReply) error) error {
	r, err := c.sn.Record(namespaces.WithNamespace(ctx, req.Namespace), req.Manifest, req.Ref)
	if err != nil {
		return err
	}
	if err := send(&control.RecordReply{ID: r.ID, Label: snapshotter.RecordLabel}); err != nil {
		return errors.Join(err, r.End())
	}
	<-ctx.Done()
	return r.End()
}

// Expose keeps the file of a layer's image for as long as the caller stays.
func (c *controlServer) Expose(ctx context.Context, req *control.ExposeRequest, send func(*control.ExposeReply) error) error {
	path, end, err := c.sn.Expose(namespaces.WithNamespace(ctx, req.Namespace), req.Manifest, req.Layer, req.Ref)
	if err != nil {
		return err
	}
	defer end()
	if err := send(&control.ExposeReply{Path: path}); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

func (c *controlServer) Recorded(_ context.Context, req *control.RecordingRequest) (*control.ProfileReply, error) {
	p, err := c.sn.Recorded(req.ID)
	if err != nil {
		return nil, err
	}
	return encoded(p)
}

func (c *controlServer) EndRecording(_ context.Context, req *control.RecordingRequest) (*control.Empty, error) {
	return &control.Empty{}, c.sn.EndRecording(req.ID)
}

func encoded(p *profile.Profile) (*control.ProfileReply, error) {
	data, err := p.Encode()
	return &control.ProfileReply{Profile: data}, err
}

func (c *controlServer) Profile(_ context.Context, req *control.ProfileRequest) (*control.ProfileReply, error) {
	p, err := c.sn.Profile(req.Manifest)
	if errors.Is(err, snapshotter.ErrNoProfile) {
		return &control.ProfileReply{}, nil
	}
	if err != nil {
		return nil, err
	}
	return encoded(p)
}

func (c *controlServer) AddProfile(_ context.Context, req *control.ProfileRequest) (*control.ProfileReply, error) {
	p, err := profile.Decode(req.Profile)
	if err != nil {
		return nil, err
	}
	if p, err = c.sn.AddProfile(req.Manifest, p); err != nil {
		return nil, err
	}
	return encoded(p)
}

func (c *controlServer) RemoveProfile(_ context.Context, req *control.ProfileRequest) (*control.Empty, error) {
	return &control.Empty{}, c.sn.RemoveProfile(req.Manifest)
}

const traceBuffer = 4096 // events that wait for a slow listener; more are dropped

// Trace sends what happens for as long as the caller stays.
func (c *controlServer) Trace(ctx context.Context, _ *control.Empty, send func(*control.TraceEvent) error) error {
	events := make(chan snapshotter.Span, traceBuffer)
	stop := c.sn.Trace(func(s snapshotter.Span) {
		select {
		case events <- s:
		default:
		}
	})
	defer stop()
	if err := send(&control.TraceEvent{}); err != nil {
		return err
	}
	for {
		select {
		case s := <-events:
			e := &control.TraceEvent{Kind: s.Kind, Digest: s.Digest, For: s.For, Off: s.Off, Len: s.Len, PID: s.PID, What: s.What, Began: s.Began, Took: s.Took}
			if s.Err != nil {
				e.Err = s.Err.Error()
			}
			if err := send(e); err != nil {
				return err
			}
		case <-ctx.Done():
			return nil
		}
	}
}
