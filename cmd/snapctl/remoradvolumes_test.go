package main

import (
	"context"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	controlv1 "github.com/remora-storage/remora/cmd/control/v1"
)

// volumeLocked returns a volume by its name.
func (f *fakeRemorad) volumeLocked(name string) (*controlv1.Volume, error) {
	for _, v := range f.volumes {
		if v.Name == name {
			return v, nil
		}
	}
	return nil, status.Errorf(codes.NotFound, "volume %s: not found", name)
}

func (f *fakeRemorad) InitStore(req *controlv1.InitStoreRequest, to grpc.ServerStreamingServer[controlv1.InitStoreResponse]) error {
	return stream(f, req, to, func() (all []*controlv1.InitStoreResponse) {
		for _, s := range f.steps {
			all = append(all, &controlv1.InitStoreResponse{Store: req.Store, Step: s})
		}
		return append(all, &controlv1.InitStoreResponse{Store: req.Store, Done: true, Made: f.fresh, Warnings: f.warnings})
	})
}

func (f *fakeRemorad) CreateVolume(_ context.Context, req *controlv1.CreateVolumeRequest) (*controlv1.CreateVolumeResponse, error) {
	return answer(f, req, func() (*controlv1.CreateVolumeResponse, error) {
		if v, err := f.volumeLocked(req.Name); err == nil {
			return &controlv1.CreateVolumeResponse{Volume: v}, nil
		}
		v := &controlv1.Volume{Name: req.Name, Id: "0123", Store: req.Store, SizeBytes: req.SizeBytes, Class: req.Class, Device: f.device}
		f.volumes = append(f.volumes, v)
		return &controlv1.CreateVolumeResponse{Volume: v, Made: true, Warnings: f.warnings}, nil
	})
}

func (f *fakeRemorad) ListVolumes(_ context.Context, req *controlv1.ListVolumesRequest) (*controlv1.ListVolumesResponse, error) {
	return answer(f, req, func() (*controlv1.ListVolumesResponse, error) {
		return proto.CloneOf(&controlv1.ListVolumesResponse{Volumes: f.volumes}), nil
	})
}

func (f *fakeRemorad) ListAttachedVolumes(_ context.Context,
	req *controlv1.ListAttachedVolumesRequest) (*controlv1.ListAttachedVolumesResponse, error) {
	return answer(f, req, func() (*controlv1.ListAttachedVolumesResponse, error) {
		reply := &controlv1.ListAttachedVolumesResponse{}
		for _, v := range f.volumes {
			if v.Here {
				reply.Volumes = append(reply.Volumes, proto.CloneOf(v))
			}
		}
		return reply, nil
	})
}

func (f *fakeRemorad) InspectVolume(_ context.Context, req *controlv1.InspectVolumeRequest) (*controlv1.InspectVolumeResponse, error) {
	return answer(f, req, func() (*controlv1.InspectVolumeResponse, error) {
		v, err := f.volumeLocked(req.Name)
		if err != nil {
			return nil, err
		}
		reply := &controlv1.InspectVolumeResponse{}
		if f.details != nil {
			reply = proto.CloneOf(f.details)
		}
		reply.Volume = proto.CloneOf(v)
		return reply, nil
	})
}

func (f *fakeRemorad) AttachVolume(req *controlv1.AttachVolumeRequest,
	to grpc.ServerStreamingServer[controlv1.AttachVolumeResponse]) error {
	f.mu.Lock()
	v, err := f.volumeLocked(req.Name)
	f.mu.Unlock()
	if err != nil {
		return err
	}
	return stream(f, req, to, func() (all []*controlv1.AttachVolumeResponse) {
		for _, s := range f.steps {
			all = append(all, &controlv1.AttachVolumeResponse{Waits: s})
		}
		v.Here = true
		return append(all, &controlv1.AttachVolumeResponse{Volume: proto.CloneOf(v), Fresh: f.fresh})
	})
}

func (f *fakeRemorad) DetachVolume(req *controlv1.DetachVolumeRequest,
	to grpc.ServerStreamingServer[controlv1.DetachVolumeResponse]) error {
	return stream(f, req, to, func() (all []*controlv1.DetachVolumeResponse) {
		for _, s := range f.steps {
			all = append(all, &controlv1.DetachVolumeResponse{AtRiskBytes: 1 << 20, Reason: s})
		}
		end := &controlv1.DetachVolumeResponse{Done: true}
		if v, err := f.volumeLocked(req.Name); err == nil {
			end.WasAttached, v.Here = v.Here, false
		}
		return append(all, end)
	})
}

func (f *fakeRemorad) MountVolume(req *controlv1.MountVolumeRequest, to grpc.ServerStreamingServer[controlv1.MountVolumeResponse]) error {
	f.mu.Lock()
	v, err := f.volumeLocked(req.Name)
	f.mu.Unlock()
	if err != nil {
		return err
	}
	return stream(f, req, to, func() (all []*controlv1.MountVolumeResponse) {
		for _, s := range f.steps {
			all = append(all, &controlv1.MountVolumeResponse{Step: s})
		}
		v.Here = true
		return append(all, &controlv1.MountVolumeResponse{Volume: proto.CloneOf(v), Dir: req.Dir})
	})
}

func (f *fakeRemorad) UnmountVolume(req *controlv1.UnmountVolumeRequest,
	to grpc.ServerStreamingServer[controlv1.UnmountVolumeResponse]) error {
	return stream(f, req, to, func() (all []*controlv1.UnmountVolumeResponse) {
		end := &controlv1.UnmountVolumeResponse{Done: true, Detached: !req.KeepAttached}
		if v, err := f.volumeLocked(req.Name); err == nil && v.Here {
			for _, dir := range v.MountPoints {
				all = append(all, &controlv1.UnmountVolumeResponse{Unmounted: dir})
			}
			end.Dirs, end.WasAttached, v.MountPoints, v.Here = v.MountPoints, true, nil, req.KeepAttached
			for _, s := range f.steps {
				all = append(all, &controlv1.UnmountVolumeResponse{AtRiskBytes: 1 << 20, Reason: s})
			}
		}
		return append(all, end)
	})
}

func (f *fakeRemorad) ResizeVolume(_ context.Context, req *controlv1.ResizeVolumeRequest) (*controlv1.ResizeVolumeResponse, error) {
	return answer(f, req, func() (*controlv1.ResizeVolumeResponse, error) {
		v, err := f.volumeLocked(req.Name)
		if err != nil {
			return nil, err
		}
		v.SizeBytes = req.SizeBytes
		return &controlv1.ResizeVolumeResponse{Volume: proto.CloneOf(v)}, nil
	})
}

func (f *fakeRemorad) RemoveVolume(_ context.Context, req *controlv1.RemoveVolumeRequest) (*controlv1.RemoveVolumeResponse, error) {
	return answer(f, req, func() (*controlv1.RemoveVolumeResponse, error) {
		i := slices.IndexFunc(f.volumes, func(v *controlv1.Volume) bool { return v.Name == req.Name })
		if i < 0 {
			return &controlv1.RemoveVolumeResponse{}, nil
		}
		reply := &controlv1.RemoveVolumeResponse{Store: f.volumes[i].Store, Objects: 3, Bytes: 5 << 20, Existed: true}
		if !req.DryRun {
			f.volumes = slices.Delete(f.volumes, i, i+1)
		}
		return reply, nil
	})
}

func (f *fakeRemorad) CheckVolume(req *controlv1.CheckVolumeRequest, to grpc.ServerStreamingServer[controlv1.CheckVolumeResponse]) error {
	return stream(f, req, to, func() (all []*controlv1.CheckVolumeResponse) {
		for _, s := range f.steps {
			all = append(all, &controlv1.CheckVolumeResponse{Step: s})
		}
		if f.report != nil {
			all = append(all, &controlv1.CheckVolumeResponse{Report: f.report})
		}
		return all
	})
}

func (f *fakeRemorad) RebuildVolume(req *controlv1.RebuildVolumeRequest,
	to grpc.ServerStreamingServer[controlv1.RebuildVolumeResponse]) error {
	return stream(f, req, to, func() (all []*controlv1.RebuildVolumeResponse) {
		for _, s := range f.steps {
			all = append(all, &controlv1.RebuildVolumeResponse{Step: s})
		}
		return append(all, &controlv1.RebuildVolumeResponse{Rebuilt: f.rebuilt})
	})
}

func (f *fakeRemorad) ListJournals(_ context.Context, req *controlv1.ListJournalsRequest) (*controlv1.ListJournalsResponse, error) {
	return answer(f, req, func() (*controlv1.ListJournalsResponse, error) {
		return &controlv1.ListJournalsResponse{Journals: f.journals}, nil
	})
}

func (f *fakeRemorad) SalvageJournal(req *controlv1.SalvageJournalRequest,
	to grpc.ServerStreamingServer[controlv1.SalvageJournalResponse]) error {
	return stream(f, req, to, func() (all []*controlv1.SalvageJournalResponse) {
		for _, s := range f.steps {
			all = append(all, &controlv1.SalvageJournalResponse{Step: s})
		}
		return append(all, &controlv1.SalvageJournalResponse{Salvaged: &controlv1.SalvagedJournal{Volume: f.rebuilt, Journal: req.Journal,
			FirstWrite: 7, LastWrite: 9, JournalBytes: 3 << 20}})
	})
}

func (f *fakeRemorad) RemoveJournal(_ context.Context, req *controlv1.RemoveJournalRequest) (*controlv1.RemoveJournalResponse, error) {
	return answer(f, req, func() (*controlv1.RemoveJournalResponse, error) {
		return &controlv1.RemoveJournalResponse{Journal: &controlv1.Journal{Id: req.Journal, Volume: "data", FileBytes: 1 << 30}}, nil
	})
}
