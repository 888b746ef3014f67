package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/remora-storage/remora/cache"
	controlv1 "github.com/remora-storage/remora/cmd/control/v1"
	"github.com/remora-storage/remora/snapshotter/layers"
)

const progressEvery = 200 * time.Millisecond

// Fetch makes every layer complete, two at a time, and puts the blobs into containerd's content
// store.
func (i *imagesService) Fetch(req *controlv1.FetchRequest, stream grpc.ServerStreamingServer[controlv1.FetchResponse]) error {
	ctx := namespaces.WithNamespace(stream.Context(), req.GetNamespace())
	files, img, err := i.sn.Layers(ctx, digest.Digest(req.GetManifest()), req.GetRef())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var mu sync.Mutex // for stream
	var fetching errgroup.Group
	fetching.SetLimit(2)
	for n := range img.Layers {
		src := &img.Layers[n]
		f := files[src.Descriptor.Digest]
		fetching.Go(func() error {
			last := time.Time{}
			tell := func(n int64, done bool) {
				if !done && time.Since(last) < progressEvery {
					return
				}
				last = time.Now()
				mu.Lock()
				defer mu.Unlock()
				if err := stream.Send(&controlv1.FetchResponse{Layer: &controlv1.LayerProgress{
					Digest: src.Descriptor.Digest.String(), Bytes: n, Total: src.Descriptor.Size, Done: done,
				}}); err != nil {
					cancel(err)
				}
			}
			if err := i.fetchLayer(ctx, f, src, img, req.GetCacheOnly(), func(n int64) { tell(n, false) }); err != nil {
				cancel(fmt.Errorf("layer %s: %w", src.Descriptor.Digest, err))
				return nil // the others end by that
			}
			tell(src.Descriptor.Size, true)
			return nil
		})
	}
	return errors.Join(fetching.Wait(), context.Cause(ctx))
}

// fetchLayer makes one layer complete. f is nil if the layer took the ordinary path.
func (i *imagesService) fetchLayer(
	ctx context.Context, f *cache.File, src *layers.Source, img layers.Image, cacheOnly bool, progress func(int64),
) error {
	if cacheOnly {
		if f == nil {
			return nil // unpacked: all of it is here
		}
		f = cache.For(f, src.Repo)
		if err := f.PrefetchAll(ctx); err != nil {
			return err
		}
		return f.Verify(ctx, src.DiffID)
	}
	store := i.containerd.ContentStore()
	if _, err := store.Info(ctx, src.Descriptor.Digest); err == nil {
		if f == nil {
			return nil
		}
		return i.fetchLayer(ctx, f, src, img, true, progress)
	}
	if f == nil {
		return i.sn.DownloadBlob(ctx, src)
	}
	desc := ocispec.Descriptor{MediaType: src.Descriptor.MediaType, Digest: src.Descriptor.Digest, Size: src.Descriptor.Size}
	return putBlob(ctx, store, desc, img.Repo, src.DiffID, func(w io.Writer) error {
		return cache.For(f, src.Repo).Stream(ctx, src.DiffID, w, progress)
	})
}
