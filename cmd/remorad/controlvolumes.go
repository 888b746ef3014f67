package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/docker/go-units"

	controlv1 "github.com/remora-storage/remora/cmd/control/v1"
	"github.com/remora-storage/remora/remote/store"
	"github.com/remora-storage/remora/volume"
	"github.com/remora-storage/remora/volume/host"
)

// CreateVolume makes a volume, in a store that is prepared if it never was.
func (v *volumes) CreateVolume(ctx context.Context, req *controlv1.CreateVolumeRequest) (*controlv1.CreateVolumeResponse, error) {
	t, err := v.target(ctx, req)
	if errors.Is(err, errUnknownName) {
		return nil, errNoStore
	}
	if err != nil {
		return nil, err
	}
	url := t.url
	if err := volume.CheckName(req.GetName()); err != nil {
		return nil, invalid("%v", err)
	}
	age := req.GetMaxAge().AsDuration()
	if age < 0 || age%time.Second != 0 {
		return nil, invalid("max_age %s: want whole seconds", age)
	}
	prepared, err := v.prepare(ctx, url)
	if err != nil {
		return nil, err
	}
	s, err := v.host.Store(ctx, url)
	if err != nil {
		return nil, err
	}
	var warnings []string
	if prepared {
		if warnings, err = v.host.Warnings(ctx, url); err != nil {
			return nil, err
		}
	}
	spec := volume.Spec{Size: req.GetSizeBytes(), Class: volume.Class(req.GetClass()), MaxAge: age}
	h, made, err := volume.Create(ctx, s, req.GetName(), spec)
	if err != nil {
		return nil, err
	}
	reply := &controlv1.CreateVolumeResponse{Volume: v.describe(url, h), Made: made, Warnings: list(warnings, text)}
	return reply, v.host.Remember(req.GetName(), url)
}

// prepare makes a store and prepares it for volumes where that was never done.
func (v *volumes) prepare(ctx context.Context, url string) (prepared bool, err error) {
	if v.uses(ctx, url) {
		return false, nil
	}
	raw, err := v.host.OpenStore(url)
	if err != nil {
		return false, err
	}
	return volume.Init(ctx, raw, func(ctx context.Context) error { return store.Probe(ctx, raw, "probe/", func(string) {}) })
}

// uses reports whether volumes of the store at a URL are attached here. It is prepared then, and no other is to be made in its place where
// it is away.
func (v *volumes) uses(ctx context.Context, url string) bool {
	return slices.ContainsFunc(v.host.Attached(), func(a host.Attached) bool {
		same, err := v.host.Same(ctx, a.Store, url)
		return err == nil && same // of one that this node never used nothing is known
	})
}

// ListVolumes lists the volumes of one store, or of all that this node has used.
func (v *volumes) ListVolumes(ctx context.Context, req *controlv1.ListVolumesRequest) (*controlv1.ListVolumesResponse, error) {
	urls := v.host.Stores()
	switch {
	case req.GetStore() != "":
		urls = []string{cleanStore(req.GetStore())}
	case len(urls) == 0 && v.byName != "":
		urls = []string{v.byName}
	}
	reply := &controlv1.ListVolumesResponse{}
	for _, url := range urls {
		err := v.addVolumes(ctx, url, reply)
		if err != nil && req.GetStore() != "" {
			return nil, err
		}
		if err != nil { // the others' volumes are there
			reply.Volumes = append(reply.Volumes, &controlv1.Volume{Store: text(url), Error: text(err.Error())})
		}
	}
	var err error
	reply.StrayJournals, err = v.strayJournals()
	return reply, err
}

// addVolumes adds the volumes of a store to a list.
func (v *volumes) addVolumes(ctx context.Context, url string, to *controlv1.ListVolumesResponse) error {
	s, err := v.host.Store(ctx, url)
	if err != nil {
		return err
	}
	return patiently(ctx, s, func(ctx context.Context, s store.Store) error {
		return volume.List(ctx, s, func(name string, h *volume.Head, err error) {
			if err != nil {
				to.Volumes = append(to.Volumes, &controlv1.Volume{Name: text(name), Store: text(url), Error: text(err.Error())})
				return
			}
			to.Volumes = append(to.Volumes, v.describe(url, h))
		})
	})
}

// ListAttachedVolumes lists what this node owns, without asking stores.
func (v *volumes) ListAttachedVolumes(context.Context, *controlv1.ListAttachedVolumesRequest) (
	*controlv1.ListAttachedVolumesResponse, error,
) {
	reply := &controlv1.ListAttachedVolumesResponse{}
	for _, a := range v.host.Attached() {
		m := &controlv1.Volume{Name: a.Name, Id: a.ID.String(), Store: text(a.Store), SizeBytes: a.Size, Here: true}
		v.tellState(m, a.ID)
		reply.Volumes = append(reply.Volumes, m)
	}
	return reply, nil
}

// ResizeVolume makes a volume larger, and its device if it has one, with the file system that is mounted.
func (v *volumes) ResizeVolume(ctx context.Context, req *controlv1.ResizeVolumeRequest) (*controlv1.ResizeVolumeResponse, error) {
	url, s, h, err := v.find(ctx, req)
	if err != nil {
		return nil, err
	}
	if open, err := v.host.Volume(ctx, h.ID); err == nil {
		if err := open.Resize(ctx, req.GetSizeBytes()); err != nil {
			return nil, err
		}
		if err := v.host.Resized(h.ID, req.GetSizeBytes()); err != nil {
			return nil, err
		}
		if err := v.disks.Grow(ctx, sourceOf(h.ID)); err != nil {
			return nil, err
		}
		if err := v.grow(ctx, h.ID); err != nil {
			return nil, fmt.Errorf("the volume has %s now, its file system has not grown; unmount it and mount it again: %w",
				units.BytesSize(float64(req.GetSizeBytes())), err)
		}
		return &controlv1.ResizeVolumeResponse{Volume: v.describe(url, open.Head())}, nil
	}
	if h, err = volume.Resize(ctx, s, h.ID, req.GetSizeBytes()); err != nil {
		return nil, err
	}
	return &controlv1.ResizeVolumeResponse{Volume: v.describe(url, h)}, nil
}

// RemoveVolume deletes a volume. One whose removal was begun before and has not ended is deleted to the end.
func (v *volumes) RemoveVolume(ctx context.Context, req *controlv1.RemoveVolumeRequest) (*controlv1.RemoveVolumeResponse, error) {
	url, s, err := v.store(ctx, req)
	if errors.Is(err, errUnknownName) {
		return &controlv1.RemoveVolumeResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	remove := volume.Remove
	if req.GetDryRun() {
		remove = volume.Removal
	}
	r, err := remove(ctx, s, req.GetName())
	switch {
	case errors.Is(err, volume.ErrNotFound):
		return &controlv1.RemoveVolumeResponse{Store: text(url)}, v.host.Forget(req.GetName(), url)
	case err == nil && !req.GetDryRun():
		err = v.host.Removed(req.GetName(), url, r.ID)
	}
	return &controlv1.RemoveVolumeResponse{Store: text(url), Objects: r.Objects, Bytes: r.Bytes, Existed: true}, err
}
