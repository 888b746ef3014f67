package main

import (
	"context"
	"errors"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"

	controlv1 "github.com/remora-storage/remora/cmd/control/v1"
	"github.com/remora-storage/remora/fs/profile"
	"github.com/remora-storage/remora/snapshotter"
	"github.com/remora-storage/remora/snapshotter/start"
)

// Record keeps a recording until it is ended, or the caller goes.
func (i *imagesService) Record(req *controlv1.RecordRequest, stream grpc.ServerStreamingServer[controlv1.RecordResponse]) error {
	ctx := namespaces.WithNamespace(stream.Context(), req.GetNamespace())
	r, err := i.sn.Record(ctx, digest.Digest(req.GetManifest()), req.GetRef())
	if err != nil {
		return err
	}
	if err := stream.Send(&controlv1.RecordResponse{Id: r.ID, Label: snapshotter.RecordLabel}); err != nil {
		return errors.Join(err, r.End())
	}
	<-ctx.Done()
	return r.End()
}

// GetRecording implements controlv1.ImagesServer.
func (i *imagesService) GetRecording(_ context.Context, req *controlv1.GetRecordingRequest) (*controlv1.GetRecordingResponse, error) {
	p, err := i.sn.Recorded(req.GetId())
	if err != nil {
		return nil, err
	}
	data, err := p.Encode()
	return &controlv1.GetRecordingResponse{Profile: data}, err
}

// EndRecording implements controlv1.ImagesServer.
func (i *imagesService) EndRecording(_ context.Context, req *controlv1.EndRecordingRequest) (*controlv1.EndRecordingResponse, error) {
	return &controlv1.EndRecordingResponse{}, i.sn.EndRecording(req.GetId())
}

// GetProfile implements controlv1.ImagesServer.
func (i *imagesService) GetProfile(_ context.Context, req *controlv1.GetProfileRequest) (*controlv1.GetProfileResponse, error) {
	p, err := i.sn.Profile(digest.Digest(req.GetManifest()))
	if errors.Is(err, start.ErrNoProfile) {
		return &controlv1.GetProfileResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	data, err := p.Encode()
	return &controlv1.GetProfileResponse{Profile: data}, err
}

// AddProfile implements controlv1.ImagesServer.
func (i *imagesService) AddProfile(_ context.Context, req *controlv1.AddProfileRequest) (*controlv1.AddProfileResponse, error) {
	p, err := profile.Decode(req.GetProfile())
	if err != nil {
		return nil, err
	}
	if p, err = i.sn.AddProfile(digest.Digest(req.GetManifest()), p); err != nil {
		return nil, err
	}
	data, err := p.Encode()
	return &controlv1.AddProfileResponse{Profile: data}, err
}

// RemoveProfile implements controlv1.ImagesServer.
func (i *imagesService) RemoveProfile(_ context.Context, req *controlv1.RemoveProfileRequest) (*controlv1.RemoveProfileResponse, error) {
	return &controlv1.RemoveProfileResponse{}, i.sn.RemoveProfile(digest.Digest(req.GetManifest()))
}
