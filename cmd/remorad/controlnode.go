package main

import (
	"context"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/remora-storage/remora/blockdev/disk"
	"github.com/remora-storage/remora/cache"
	controlv1 "github.com/remora-storage/remora/cmd/control/v1"
	"github.com/remora-storage/remora/cmd/internal/version"
	"github.com/remora-storage/remora/internal/durable"
	"github.com/remora-storage/remora/remote/registry"
	"github.com/remora-storage/remora/snapshotter"
	"github.com/remora-storage/remora/volume/host"
)

// nodeService tells and changes what this node does.
type nodeService struct {
	controlv1.UnsafeNodeServer
	root   string
	cfg    *config
	cache  *cache.Cache
	sn     *snapshotter.Snapshotter
	holder *theHolder
}

// Status implements controlv1.NodeServer.
func (n *nodeService) Status(context.Context, *controlv1.StatusRequest) (*controlv1.StatusResponse, error) {
	st := n.sn.Status()
	damaged, err := damagedFiles(n.root)
	if err != nil {
		return nil, err
	}
	return &controlv1.StatusResponse{
		Version: version.String(), Root: n.root, Backend: backendMessage(st.Capabilities), Cache: n.usage(),
		Registry: registryMessage(n.cfg),
		Layers:   list(st.Layers, layerMessage), Broken: list(st.Broken, brokenMessage), Waiting: list(st.Waiting, waitingMessage),
		Holder: &controlv1.Holder{Pid: int32(n.holder.pid())}, Damaged: list(damaged, damagedMessage),
	}, nil
}

func registryMessage(cfg *config) *controlv1.Registry {
	r := &cfg.Registry
	return &controlv1.Registry{ConfigPath: r.ConfigPath, DockerConfig: r.DockerConfig, PrivatePlaces: r.PrivatePlaces}
}

// damagedFiles lists what was set aside below the root, whenever that was.
func damagedFiles(root string) ([]durable.Damage, error) {
	of, err := durable.ListDamaged(root, registry.LoginsFile, disk.RecordFile)
	if err != nil {
		return nil, err
	}
	ofVolumes, err := durable.ListDamaged(volumesDir(root), host.RecordFile, host.NodeFile)
	if err != nil {
		return nil, err
	}
	ofImages, err := snapshotter.ListDamaged(root)
	return slices.Concat(of, ofVolumes, ofImages), err
}

func damagedMessage(d durable.Damage) *controlv1.DamagedFile {
	return &controlv1.DamagedFile{
		File: text(d.File), Aside: text(d.Aside), Found: timestamppb.New(d.When), Lost: d.Kind.Lost, Advice: d.Kind.Do,
	}
}

func backendMessage(c snapshotter.Capabilities) *controlv1.Backend {
	return &controlv1.Backend{
		Name: string(c.Lazy), Reason: text(c.LazyReason), Direct: c.Direct, DirectReason: text(c.Reason),
		Idmap: c.IDMap, IdmapReason: text(c.IDReason),
	}
}

func layerMessage(l snapshotter.LayerStatus) *controlv1.Layer {
	return &controlv1.Layer{
		Digest: l.Digest.String(), Image: l.Image, Snapshot: l.Snapshot, Format: l.Format, Backend: l.Backend, State: l.State,
		Reason: text(l.Reason), Verified: l.Verified,
		PresentBytes: l.Present, TotalBytes: l.Data, FetchedBytes: l.Fetched, ReadBytes: l.Read, DiskBytes: l.Disk,
		PrefetchedBytes: l.Prefetched, PrefetchUsedBytes: l.PrefetchUsed, DemandBytes: l.Demanded,
		Waits: l.Waits, Waited: durationpb.New(l.Waited),
	}
}

func brokenMessage(b snapshotter.BrokenSnapshot) *controlv1.Broken {
	return &controlv1.Broken{Container: text(b.Container), Snapshot: text(b.ID), Mounted: text(b.Mounted), Reason: text(b.Reason)}
}

func waitingMessage(w snapshotter.WaitingReader) *controlv1.Waiting {
	return &controlv1.Waiting{
		Pid: int32(w.PID), Command: text(w.Command), Container: text(w.Container), Image: w.Image, Digest: w.Digest.String(),
		Waited: durationpb.New(time.Since(w.Since)), Reason: text(w.Reason),
	}
}

// Detach takes all mounts away. The holder has nothing left to keep.
func (n *nodeService) Detach(context.Context, *controlv1.DetachRequest) (*controlv1.DetachResponse, error) {
	layers, err := n.sn.Detach()
	return &controlv1.DetachResponse{Layers: int64(layers)}, err
}

// ListCache implements controlv1.NodeServer.
func (n *nodeService) ListCache(context.Context, *controlv1.ListCacheRequest) (*controlv1.ListCacheResponse, error) {
	return &controlv1.ListCacheResponse{Usage: n.usage(), Entries: list(n.sn.Cached(), cacheEntryMessage)}, nil
}

func (n *nodeService) usage() *controlv1.CacheUsage {
	used, limit := n.cache.Usage()
	return &controlv1.CacheUsage{Bytes: used, Limit: limit, Pinned: n.cache.Pinned()}
}

func cacheEntryMessage(l snapshotter.CachedLayer) *controlv1.CacheEntry {
	return &controlv1.CacheEntry{
		Digest: l.Digest.String(), Images: l.Images, DiskBytes: l.Disk, PresentBytes: l.Present, TotalBytes: l.Data,
		Pinned: l.Kept, Evictable: l.Evictable,
	}
}

// Pin implements controlv1.NodeServer.
func (n *nodeService) Pin(_ context.Context, req *controlv1.PinRequest) (*controlv1.PinResponse, error) {
	layers, err := n.sn.Keep(req.GetImage(), req.GetPin())
	return &controlv1.PinResponse{Layers: int64(layers)}, err
}

// Repair implements controlv1.NodeServer.
func (n *nodeService) Repair(req *controlv1.RepairRequest, stream grpc.ServerStreamingServer[controlv1.RepairResponse]) error {
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	send := func(m *controlv1.RepairResponse) {
		if err := stream.Send(m); err != nil {
			cancel(err)
		}
	}
	return n.sn.Repair(ctx, req.GetImage(), req.GetRelease(), func(l snapshotter.Repaired) {
		send(&controlv1.RepairResponse{Digest: l.Digest.String(), Reason: text(l.Reason), Gone: l.Gone})
	}, func(img snapshotter.ImageName) { send(&controlv1.RepairResponse{Removed: text(img.String())}) })
}

// Prune implements controlv1.NodeServer.
func (n *nodeService) Prune(context.Context, *controlv1.PruneRequest) (*controlv1.PruneResponse, error) {
	return &controlv1.PruneResponse{Bytes: n.cache.Prune()}, nil
}
