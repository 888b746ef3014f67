package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/blockdev/disk"
	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/cmd/internal/control"
	"github.com/remora-storage/remora/cmd/internal/version"
	"github.com/remora-storage/remora/remote/registry"
	"github.com/remora-storage/remora/snapshotter"
)

// controlServer answers snapctl.
type controlServer struct {
	root       string
	cfg        *config
	cache      *cache.Cache
	sn         *snapshotter.Snapshotter
	registry   *registry.Registry
	containerd *client.Client
	holder     *theHolder
	disks      *disk.Disks
	*volumes
}

func (c *controlServer) Status(context.Context, *control.Empty) (*control.StatusReply, error) {
	st := c.sn.Status()
	used, limit := c.cache.Usage()
	reply := &control.StatusReply{
		Version: version.String(), Root: c.root,
		Backend: control.Backend{
			Name: string(st.Capabilities.Lazy), Reason: st.Capabilities.LazyReason,
			Direct: st.Capabilities.Direct, DirectReason: st.Capabilities.Reason,
			IDMap: st.Capabilities.IDMap, IDMapReason: st.Capabilities.IDReason,
		},
		Cache:    control.CacheUsage{Bytes: used, Limit: limit, Pinned: c.cache.Pinned()},
		Registry: control.Registry{ConfigPath: c.cfg.Registry.ConfigPath, DockerConfig: c.cfg.Registry.DockerConfig},
		Layers:   []control.Layer{}, Broken: []control.Broken{}, Waiting: []control.Waiting{},
		Holder: control.Holder{PID: c.holder.pid()},
	}
	for _, l := range st.Layers {
		reply.Layers = append(reply.Layers, control.Layer{
			Digest: l.Digest, Image: l.Image, Snapshot: l.Snapshot, Format: l.Format, Backend: l.Backend, State: l.State,
			Reason: l.Reason, Verified: l.Verified, PresentBytes: l.Present, TotalBytes: l.Data, FetchedBytes: l.Fetched, ReadBytes: l.Read, DiskBytes: l.Disk,
			PrefetchedBytes: l.Prefetched, PrefetchUsedBytes: l.PrefetchUsed, DemandBytes: l.Demanded, Waits: l.Waits, WaitSeconds: l.Waited.Seconds(),
		})
	}
	for _, b := range st.Broken {
		reply.Broken = append(reply.Broken, control.Broken{Container: b.Container, Snapshot: b.ID, Mounted: b.Mounted, Reason: b.Reason})
	}
	for _, w := range st.Waiting {
		reply.Waiting = append(reply.Waiting, control.Waiting{
			PID: w.PID, Command: w.Command, Container: w.Container, Image: w.Image, Digest: w.Digest,
			Seconds: time.Since(w.Since).Seconds(), Reason: w.Reason,
		})
	}
	return reply, nil
}

// Detach takes all mounts away. The holder has nothing left to keep.
func (c *controlServer) Detach(context.Context, *control.Empty) (*control.DetachReply, error) {
	n, err := c.sn.Detach()
	return &control.DetachReply{Layers: n}, err
}

func (c *controlServer) Cache(context.Context, *control.Empty) (*control.CacheReply, error) {
	used, limit := c.cache.Usage()
	reply := &control.CacheReply{CacheUsage: control.CacheUsage{Bytes: used, Limit: limit, Pinned: c.cache.Pinned()}, Entries: []control.CacheEntry{}}
	for _, l := range c.sn.Cached() {
		reply.Entries = append(reply.Entries, control.CacheEntry{
			Digest: l.Digest, Images: l.Images, DiskBytes: l.Disk, PresentBytes: l.Present, TotalBytes: l.Data, Pinned: l.Kept, Evictable: l.Evictable,
		})
	}
	return reply, nil
}

func (c *controlServer) Pin(_ context.Context, req *control.PinRequest) (*control.PinReply, error) {
	n, err := c.sn.Keep(req.Image, req.Pin)
	return &control.PinReply{Layers: n}, err
}

func (c *controlServer) Prune(context.Context, *control.Empty) (*control.PruneReply, error) {
	return &control.PruneReply{Bytes: c.cache.Prune()}, nil
}

func (c *controlServer) Login(_ context.Context, req *control.LoginRequest) (*control.Empty, error) {
	return &control.Empty{}, c.registry.SetLogin(req.Host, registry.Login{User: req.User, Secret: req.Secret, PlainHTTP: req.PlainHTTP})
}

func (c *controlServer) Prime(ctx context.Context, req *control.PrimeRequest) (*control.PrimeReply, error) {
	docs, err := c.sn.Prime(ctx, req.Namespace, req.Ref)
	if err != nil {
		return nil, err
	}
	reply := new(control.PrimeReply)
	for _, d := range docs {
		reply.Documents = append(reply.Documents, control.Document{MediaType: d.Descriptor.MediaType, Digest: d.Descriptor.Digest, Data: d.Data})
	}
	return reply, nil
}

func (c *controlServer) Resolve(ctx context.Context, req *control.ResolveRequest, send func(*control.ResolveReply) error) error {
	ctx, cancel := context.WithCancelCause(namespaces.WithNamespace(ctx, req.Namespace))
	defer cancel(nil)
	reasons, err := c.sn.Resolve(ctx, req.Manifest, req.Ref, func(all []snapshotter.Progress) {
		reply := new(control.ResolveReply)
		for _, p := range all {
			reply.Importing = append(reply.Importing, control.FetchProgress{Digest: p.Digest, Bytes: p.Came, Total: p.Total, Done: p.Came == p.Total})
		}
		if err := send(reply); err != nil {
			cancel(err)
		}
	})
	if err != nil {
		return err
	}
	return send(&control.ResolveReply{Ordinary: reasons, Done: true})
}

const progressEvery = 200 * time.Millisecond

// Fetch makes every layer complete, two at a time, and puts the blobs into containerd's content
// store.
func (c *controlServer) Fetch(ctx context.Context, req *control.FetchRequest, send func(*control.FetchProgress) error) error {
	ctx = namespaces.WithNamespace(ctx, req.Namespace)
	files, img, err := c.sn.Layers(ctx, req.Manifest, req.Ref)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var (
		mu    sync.Mutex // for send
		wg    sync.WaitGroup
		slots = make(chan struct{}, 2)
	)
	for i := range img.Layers {
		src := &img.Layers[i]
		f := files[src.Descriptor.Digest]
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			last := time.Time{}
			tell := func(n int64, done bool) {
				if !done && time.Since(last) < progressEvery {
					return
				}
				last = time.Now()
				mu.Lock()
				defer mu.Unlock()
				if err := send(&control.FetchProgress{Digest: src.Descriptor.Digest, Bytes: n, Total: src.Descriptor.Size, Done: done}); err != nil {
					cancel(err)
				}
			}
			if err := c.fetchLayer(ctx, f, src, img, req.CacheOnly, func(n int64) { tell(n, false) }); err != nil {
				cancel(fmt.Errorf("layer %s: %w", src.Descriptor.Digest, err))
				return
			}
			tell(src.Descriptor.Size, true)
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

// fetchLayer makes one layer complete. f is nil if the layer took the ordinary path.
func (c *controlServer) fetchLayer(ctx context.Context, f *cache.File, src *snapshotter.Source, img snapshotter.Image, cacheOnly bool, progress func(int64)) error {
	if cacheOnly {
		if f == nil {
			return nil // unpacked: all of it is here
		}
		if err := f.PrefetchAll(ctx); err != nil {
			return err
		}
		return f.Verify(ctx, src.DiffID)
	}
	store := c.containerd.ContentStore()
	if _, err := store.Info(ctx, src.Descriptor.Digest); err == nil {
		if f == nil {
			return nil
		}
		return c.fetchLayer(ctx, f, src, img, true, progress)
	}
	if f == nil {
		return errors.New("its blob is neither in containerd's content store nor read by remora; pull the image again")
	}
	desc := ocispec.Descriptor{MediaType: src.Descriptor.MediaType, Digest: src.Descriptor.Digest, Size: src.Descriptor.Size}
	return putBlob(ctx, store, desc, img.Repo, src.DiffID, func(w io.Writer) error {
		return f.Stream(ctx, src.DiffID, w, progress)
	})
}
