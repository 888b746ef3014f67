package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/docker/go-units"

	"github.com/remora-storage/remora/blockdev/disk"
	"github.com/remora-storage/remora/cmd/internal/control"
	"github.com/remora-storage/remora/remote/store"
	"github.com/remora-storage/remora/volume"
	"github.com/remora-storage/remora/volume/host"
)

const volumeSource = "volume:" // before an id, in the name of a disk's bytes

// volumes is what remorad does with volumes.
type volumes struct {
	host   *host.Host
	disks  *disk.Disks
	byName string // store of names that this node does not know; "" for none
	log    *slog.Logger
}

// openHost opens this node's volumes.
func openHost(root string, cfg *config, keep volume.Cache, log *slog.Logger) (*host.Host, error) {
	memory, err := units.RAMInBytes(cfg.Volume.Memory)
	if err != nil {
		return nil, fmt.Errorf("[volume] memory: %w", err)
	}
	journal, err := units.RAMInBytes(cfg.Volume.Journal)
	if err != nil {
		return nil, fmt.Errorf("[volume] journal: %w", err)
	}
	return host.Open(host.Options{
		Root: filepath.Join(root, "volumes"), OpenStore: storeOpener(cfg.Volume.Credentials),
		Cache: keep, Memory: memory, Journal: journal, TTL: time.Duration(cfg.Volume.Lease), Log: log,
	})
}

// sourceOpener opens disks' bytes: files, and volumes that an earlier process had attached.
func sourceOpener(h *host.Host) func(context.Context, string, bool) (disk.Device, error) {
	return func(ctx context.Context, source string, readOnly bool) (disk.Device, error) {
		s, ok := strings.CutPrefix(source, volumeSource)
		if !ok {
			return openDiskFile(ctx, source, readOnly)
		}
		id, err := volume.ParseID(s)
		if err != nil {
			return nil, err
		}
		return h.Resume(id, true)
	}
}

// storeOf returns the store that a request means.
func (v *volumes) storeOf(req control.VolumeRequest) (string, error) {
	if req.Store != "" {
		return cleanStore(req.Store), nil
	}
	url, err := v.host.StoreOf(req.Name)
	if errors.Is(err, host.ErrUnknownName) && v.byName != "" {
		return v.byName, nil
	}
	return url, err
}

// store opens the store that a request means.
func (v *volumes) store(req control.VolumeRequest) (url string, s store.Store, err error) {
	if url, err = v.storeOf(req); err == nil {
		s, err = v.host.Store(url)
	}
	return url, s, err
}

// find returns a volume's store and head.
func (v *volumes) find(ctx context.Context, req control.VolumeRequest) (url string, s store.Store, h *volume.Head, err error) {
	if url, s, err = v.store(req); err != nil {
		return "", nil, nil, err
	}
	h, err = volume.Lookup(ctx, s, req.Name)
	return url, s, h, err
}

// describe says what a head says, and what this node knows beside.
func (v *volumes) describe(url string, h *volume.Head) control.Volume {
	c := control.Volume{Name: h.Name, ID: h.ID.String(), Store: url, Size: h.Size, Class: string(h.Class), FS: h.FS, Created: h.Created, Epoch: h.Epoch, ReadOnly: h.Mode == volume.ModeReadOnly}
	if h.Owner != nil {
		c.Owner = h.Owner.Node.String()
		c.Here = h.Owner.Node == v.host.NodeID()
	}
	for _, k := range v.disks.List() {
		if k.Source == volumeSource+c.ID {
			c.Device, c.Failed = k.Path, k.Reason
		}
	}
	return c
}

var errNoStore = errors.New("name a store: --store, or [volume] store in remorad's configuration")

// InitStore tries a store and prepares it for volumes.
func (v *volumes) InitStore(ctx context.Context, req *control.InitStoreRequest, send func(*control.InitStoreReply) error) error {
	url := cleanStore(req.Store)
	if url == "" {
		url = v.byName
	}
	if url == "" {
		return errNoStore
	}
	s, err := v.host.Store(url)
	if err != nil {
		return err
	}
	probe := func(ctx context.Context) error {
		return store.Probe(ctx, s, "probe/", func(step string) {
			_ = send(&control.InitStoreReply{Store: url, Step: step}) // the end will say that the caller is gone
		})
	}
	made := false
	if req.Probe {
		err = probe(ctx)
	} else {
		made, err = volume.Init(ctx, s, probe)
	}
	if err != nil {
		return err
	}
	warnings, err := v.host.Warnings(ctx, url)
	if err != nil {
		return err
	}
	return send(&control.InitStoreReply{Store: url, Done: true, Made: made, Warnings: warnings})
}

// CreateVolume makes a volume, in a store that is prepared if it never was.
func (v *volumes) CreateVolume(ctx context.Context, req *control.CreateVolumeRequest) (*control.CreateVolumeReply, error) {
	url, s, err := v.store(req.VolumeRequest)
	if errors.Is(err, host.ErrUnknownName) {
		return nil, errNoStore
	}
	if err != nil {
		return nil, err
	}
	if err := volume.CheckName(req.Name); err != nil {
		return nil, err
	}
	prepared, err := volume.Init(ctx, s, func(ctx context.Context) error { return store.Probe(ctx, s, "probe/", func(string) {}) })
	if err != nil {
		return nil, err
	}
	var warnings []string
	if prepared {
		if warnings, err = v.host.Warnings(ctx, url); err != nil {
			return nil, err
		}
	}
	h, made, err := volume.Create(ctx, s, req.Name, volume.Spec{Size: req.Size, Class: volume.Class(req.Class), MaxAge: req.MaxAge})
	if err != nil {
		return nil, err
	}
	return &control.CreateVolumeReply{Volume: v.describe(url, h), Made: made, Warnings: warnings}, v.host.Remember(req.Name, url)
}

// Volumes lists the volumes of one store, or of all that this node has used.
func (v *volumes) Volumes(ctx context.Context, req *control.VolumesRequest) (*control.VolumesReply, error) {
	urls := v.host.Stores()
	switch {
	case req.Store != "":
		urls = []string{cleanStore(req.Store)}
	case len(urls) == 0 && v.byName != "":
		urls = []string{v.byName}
	}
	reply := &control.VolumesReply{Volumes: []control.Volume{}}
	for _, url := range urls {
		s, err := v.host.Store(url)
		if err != nil {
			return nil, err
		}
		err = patiently(ctx, s, func(ctx context.Context, s store.Store) error {
			return volume.List(ctx, s, func(name string, h *volume.Head, err error) {
				if err != nil {
					reply.Volumes = append(reply.Volumes, control.Volume{Name: name, Store: url, Error: err.Error()})
					return
				}
				reply.Volumes = append(reply.Volumes, v.describe(url, h))
			})
		})
		if err != nil && req.Store != "" {
			return nil, err
		}
		if err != nil { // the others' volumes are there
			reply.Volumes = append(reply.Volumes, control.Volume{Store: url, Error: err.Error()})
		}
	}
	return reply, nil
}

// AttachedVolumes lists what this node owns, without asking stores.
func (v *volumes) AttachedVolumes(context.Context, *control.Empty) (*control.AttachedReply, error) {
	reply := &control.AttachedReply{Volumes: []control.Volume{}}
	disks := v.disks.List()
	for _, a := range v.host.Attached() {
		c := control.Volume{Name: a.Name, ID: a.ID.String(), Store: a.Store, Size: a.Size, Here: true}
		for _, k := range disks {
			if k.Source == volumeSource+c.ID {
				c.Device, c.Failed = k.Path, k.Reason
			}
		}
		reply.Volumes = append(reply.Volumes, c)
	}
	return reply, nil
}

// InspectVolume tells all about a volume.
func (v *volumes) InspectVolume(ctx context.Context, req *control.VolumeRequest) (*control.VolumeDetails, error) {
	url, s, h, err := v.known(ctx, *req)
	if err != nil {
		return nil, err
	}
	d := &control.VolumeDetails{Volume: v.describe(url, h), MaxAge: float64(h.MaxAge), Committed: h.Write, Tail: len(h.Tail), Waits: []control.VolumeWait{}, Events: []control.VolumeEvent{}}
	if err := patiently(ctx, s, func(ctx context.Context, s store.Store) error { return stored(ctx, s, h.ID, d) }); err != nil {
		d.StoreError = err.Error()
	}
	if h.Journal != nil {
		d.Journal = h.Journal.Node.String() + "/" + h.Journal.ID.String()
	}
	st, requests, margin, ok := v.host.Status(h.ID)
	if !ok {
		return d, nil
	}
	d.AtRiskBytes, d.AtRiskSeconds, d.JournalUsed, d.JournalBytes = st.AtRisk, st.Oldest.Seconds(), st.Journal, st.JournalOf
	d.LeaseSeconds, d.Throttled = margin.Seconds(), st.Throttled
	d.Written, d.Read, d.Flushes, d.Commits, d.Uploaded, d.MapBytes = st.Stats.Written, st.Stats.Read, st.Stats.Flushes, st.Stats.Commits, st.Stats.Uploaded, st.Stats.Map
	d.Requests = control.StoreRequests(requests)
	if st.Failed != nil {
		d.Failed = st.Failed.Error()
	}
	for _, w := range st.Waits {
		d.Waits = append(d.Waits, control.VolumeWait{What: w.What, Reason: w.Reason.Error(), Seconds: time.Since(w.Since).Seconds()})
	}
	return d, nil
}

// known is find for a volume that this node may own: then its head is known without the store.
func (v *volumes) known(ctx context.Context, req control.VolumeRequest) (url string, s store.Store, h *volume.Head, err error) {
	id, ok, err := v.attachedID(req)
	if err == nil && ok {
		if h := v.host.Head(id); h != nil {
			url, s, err := v.store(req)
			return url, s, h, err
		}
	}
	return v.find(ctx, req)
}

// stored adds what only the store knows.
func stored(ctx context.Context, s store.Store, id volume.ID, d *control.VolumeDetails) error {
	usage, err := volume.StoreUsage(ctx, s, id)
	if err != nil {
		return err
	}
	d.StoredBytes, d.StoredObjects = usage.Bytes, usage.Objects
	events, err := volume.Events(ctx, s, id)
	for _, e := range events {
		c := control.VolumeEvent{Time: e.Time, What: e.What, Detail: e.Detail}
		if e.Node != nil {
			c.Node = e.Node.String()
		}
		d.Events = append(d.Events, c)
	}
	return err
}

// AttachVolume makes a block device of a volume.
func (v *volumes) AttachVolume(ctx context.Context, req *control.AttachVolumeRequest, send func(*control.AttachVolumeReply) error) error {
	url, s, h, err := v.find(ctx, req.VolumeRequest)
	if err != nil {
		return err
	}
	if err := volume.CheckStore(ctx, s); err != nil {
		return err
	}
	if _, err := v.host.Attach(ctx, url, h, host.AttachOptions{AcceptLoss: req.AcceptLoss, Progress: func(what string) {
		_ = send(&control.AttachVolumeReply{Waits: what}) // the end will say that the caller is gone
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
	c := v.describe(url, open.Head())
	return send(&control.AttachVolumeReply{Volume: &c, Fresh: open.Fresh()})
}

const detachTells = time.Second

// DetachVolume gives a volume up when its store has everything, and tells meanwhile how much is missing.
func (v *volumes) DetachVolume(ctx context.Context, req *control.DetachVolumeRequest, send func(*control.DetachVolumeReply) error) error {
	id, ok, err := v.attachedID(req.VolumeRequest)
	if err != nil {
		return err
	}
	if !ok {
		return send(&control.DetachVolumeReply{Done: true})
	}
	if _, err := v.disks.Detach(ctx, volumeSource+id.String()); err != nil {
		return err
	}
	if req.Abandon {
		v.log.Warn("a volume was detached with acknowledged writes in this node's journal alone", "volume", req.Name)
		if err := v.host.Abandon(id); err != nil {
			return err
		}
		return send(&control.DetachVolumeReply{Done: true, Was: true})
	}
	var telling sync.WaitGroup
	done := make(chan struct{})
	telling.Go(func() {
		t := time.NewTicker(detachTells)
		defer t.Stop()
		for {
			select {
			case <-done:
				return
			case <-t.C:
			}
			reply := &control.DetachVolumeReply{}
			if st, _, _, ok := v.host.Status(id); ok {
				reply.AtRisk = st.AtRisk
				for _, w := range st.Waits {
					reply.Reason = w.Reason.Error()
				}
			}
			if send(reply) != nil {
				return
			}
		}
	})
	err = v.host.Detach(ctx, id)
	close(done)
	telling.Wait()
	if err != nil {
		return fmt.Errorf("%w; the volume stays with this node until its store has everything", err)
	}
	return send(&control.DetachVolumeReply{Done: true, Was: true})
}

// attachedID returns the id of a volume that this node owns, without asking the store.
func (v *volumes) attachedID(req control.VolumeRequest) (id volume.ID, ok bool, err error) {
	url, err := v.storeOf(req)
	if err != nil {
		return id, false, err
	}
	for _, a := range v.host.Attached() {
		if a.Name == req.Name && a.Store == url {
			return a.ID, true, nil
		}
	}
	return id, false, nil
}

// SetVolumeFS records which file system was made.
func (v *volumes) SetVolumeFS(ctx context.Context, req *control.SetVolumeFSRequest) (*control.Empty, error) {
	id, ok, err := v.attachedID(req.VolumeRequest)
	if err == nil && !ok {
		err = fmt.Errorf("volume %s: %w", req.Name, host.ErrNotAttached)
	}
	if err != nil {
		return nil, err
	}
	open, err := v.host.Volume(ctx, id)
	if err != nil {
		return nil, err
	}
	return &control.Empty{}, open.SetFS(ctx, req.FS)
}

// ResizeVolume makes a volume larger, and its device if it has one.
func (v *volumes) ResizeVolume(ctx context.Context, req *control.ResizeVolumeRequest) (*control.Volume, error) {
	url, s, h, err := v.find(ctx, req.VolumeRequest)
	if err != nil {
		return nil, err
	}
	if open, err := v.host.Volume(ctx, h.ID); err == nil {
		if err := open.Resize(ctx, req.Size); err != nil {
			return nil, err
		}
		if err := v.host.Resized(h.ID, req.Size); err != nil {
			return nil, err
		}
		if err := v.disks.Grow(volumeSource + h.ID.String()); err != nil {
			return nil, err
		}
		c := v.describe(url, open.Head())
		return &c, nil
	}
	if h, err = volume.Resize(ctx, s, h.ID, req.Size); err != nil {
		return nil, err
	}
	c := v.describe(url, h)
	return &c, nil
}

// RemoveVolume deletes a volume. One whose removal was begun before and has not ended is deleted to the end.
func (v *volumes) RemoveVolume(ctx context.Context, req *control.RemoveVolumeRequest) (*control.RemoveVolumeReply, error) {
	url, s, err := v.store(req.VolumeRequest)
	if errors.Is(err, host.ErrUnknownName) {
		return &control.RemoveVolumeReply{}, nil
	}
	if err != nil {
		return nil, err
	}
	remove := volume.Remove
	if req.DryRun {
		remove = volume.Removal
	}
	r, err := remove(ctx, s, req.Name)
	switch {
	case errors.Is(err, volume.ErrNotFound):
		return &control.RemoveVolumeReply{Store: url}, v.host.Forget(req.Name)
	case err == nil && !req.DryRun:
		err = v.host.Removed(req.Name, r.ID)
	}
	return &control.RemoveVolumeReply{Store: url, Objects: r.Objects, Bytes: r.Bytes, Was: true}, err
}

// CheckVolume walks over everything that belongs to a volume.
func (v *volumes) CheckVolume(ctx context.Context, req *control.CheckVolumeRequest, send func(*control.CheckVolumeReply) error) error {
	_, s, err := v.store(req.VolumeRequest)
	if err != nil {
		return err
	}
	step := func(what string) {
		_ = send(&control.CheckVolumeReply{Step: what}) // the end will say that the caller is gone
	}
	repaired := ""
	if req.Repair {
		if repaired, err = volume.Repair(ctx, s, req.Name, step); err != nil {
			return err
		}
	}
	r, err := volume.Check(ctx, s, req.Name, req.Data, step)
	if err != nil {
		return err
	}
	return send(&control.CheckVolumeReply{Report: &control.VolumeReport{
		Name: r.Name, Segments: r.Segments, Nodes: r.Nodes, Extents: r.Extents, MappedBytes: r.Blocks * volume.Block,
		ReadBytes: r.Read, UnusedObjects: r.Unused.Objects, UnusedBytes: r.Unused.Bytes, Problems: r.Problems, Repaired: repaired,
	}})
}

// RebuildVolume makes a new volume of what is left of another one.
func (v *volumes) RebuildVolume(ctx context.Context, req *control.RebuildVolumeRequest, send func(*control.RebuildVolumeReply) error) error {
	url, s, err := v.store(req.VolumeRequest)
	if err != nil {
		return err
	}
	made, err := volume.Rebuild(ctx, s, req.Name, req.Into, func(what string) {
		_ = send(&control.RebuildVolumeReply{Step: what}) // the end will say that the caller is gone
	})
	if err != nil {
		return err
	}
	return errors.Join(v.host.Remember(req.Into, url), send(&control.RebuildVolumeReply{Rebuilt: made}))
}
