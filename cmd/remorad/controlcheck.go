package main

import (
	"context"
	"errors"

	"google.golang.org/grpc"

	controlv1 "github.com/remora-storage/remora/cmd/control/v1"
	"github.com/remora-storage/remora/remote/store"
	"github.com/remora-storage/remora/volume"
	"github.com/remora-storage/remora/volume/host"
)

// InitStore tries a store and prepares it for volumes.
func (v *volumes) InitStore(req *controlv1.InitStoreRequest, stream grpc.ServerStreamingServer[controlv1.InitStoreResponse]) error {
	ctx := stream.Context()
	url := cleanStore(req.GetStore())
	if url == "" {
		url = v.byName
	}
	if url == "" {
		return errNoStore
	}
	s, err := v.host.OpenStore(url)
	if err != nil {
		return err
	}
	probe := func(ctx context.Context) error {
		return store.Probe(ctx, s, "probe/", func(step string) {
			_ = stream.Send(&controlv1.InitStoreResponse{Store: text(url), Step: text(step)}) // the end will say that the caller is gone
		})
	}
	made := false
	switch {
	case req.GetProbe():
		err = probe(ctx)
	case v.uses(ctx, url):
		_, err = volume.StoreID(ctx, s)
	default:
		made, err = volume.Init(ctx, s, probe)
	}
	if err != nil {
		return err
	}
	warnings, err := host.Warnings(ctx, s)
	if err != nil {
		return err
	}
	return stream.Send(&controlv1.InitStoreResponse{Store: text(url), Done: true, Made: made, Warnings: list(warnings, text)})
}

// CheckVolume walks over everything that belongs to a volume.
func (v *volumes) CheckVolume(req *controlv1.CheckVolumeRequest, stream grpc.ServerStreamingServer[controlv1.CheckVolumeResponse]) error {
	ctx := stream.Context()
	_, s, err := v.store(ctx, req)
	if err != nil {
		return err
	}
	step := func(what string) {
		_ = stream.Send(&controlv1.CheckVolumeResponse{Step: text(what)}) // the end will say that the caller is gone
	}
	repaired := ""
	if req.GetRepair() {
		if repaired, err = volume.Repair(ctx, s, req.GetName(), step); err != nil {
			return err
		}
	}
	r, err := volume.Check(ctx, s, req.GetName(), req.GetData(), step)
	if err != nil {
		return err
	}
	return stream.Send(&controlv1.CheckVolumeResponse{Report: reportMessage(r, repaired)})
}

func reportMessage(r *volume.Report, repaired string) *controlv1.VolumeReport {
	return &controlv1.VolumeReport{
		Name: text(r.Name), Segments: r.Segments, MapNodes: r.Nodes, Extents: r.Extents, MappedBytes: r.Blocks * volume.Block,
		ReadBytes: r.Read, UnusedObjects: r.Unused.Objects, UnusedBytes: r.Unused.Bytes,
		Problems: list(r.Problems, text), Repaired: text(repaired),
	}
}

// RebuildVolume makes a new volume of what is left of another one.
func (v *volumes) RebuildVolume(
	req *controlv1.RebuildVolumeRequest, stream grpc.ServerStreamingServer[controlv1.RebuildVolumeResponse],
) error {
	ctx := stream.Context()
	url, s, err := v.store(ctx, req)
	if err != nil {
		return err
	}
	made, err := volume.Rebuild(ctx, s, req.GetName(), req.GetInto(), func(what string) {
		_ = stream.Send(&controlv1.RebuildVolumeResponse{Step: text(what)}) // the end will say that the caller is gone
	})
	if err != nil {
		return err
	}
	end := &controlv1.RebuildVolumeResponse{Rebuilt: rebuiltMessage(made)}
	return errors.Join(v.host.Remember(req.GetInto(), url), stream.Send(end))
}

func rebuiltMessage(r *volume.Rebuilt) *controlv1.RebuiltVolume {
	return &controlv1.RebuiltVolume{
		DamagedId: r.From.String(), Id: r.ID.String(), Name: r.Name, SizeBytes: r.Size, SizeGuessed: r.Guessed, Write: r.Write,
		MapSegment: r.Map, Segments: int32(r.Segments), Ignored: int32(r.Ignored), Missing: r.Missing, Problems: list(r.Problems, text),
		MappedBytes: r.Bytes, Stale: list(r.Stale, rangeMessage), Lost: list(r.Lost, rangeMessage),
	}
}

func rangeMessage(r volume.Range) *controlv1.ByteRange {
	return &controlv1.ByteRange{Offset: r.Off, Length: r.Len}
}
