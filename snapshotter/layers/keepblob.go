package layers

import (
	"context"
	"io"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/cache"
)

// FileBlob puts a layer's blob into containerd's content store. What the cache misses of the layer is filled on the way.
func (i *Imports) FileBlob(ctx context.Context, f *cache.File, src *Source) error {
	streaming, cancel := context.WithCancel(ctx)
	defer cancel()
	r, w := io.Pipe()
	streamed := make(chan struct{})
	i.started.Go(func() {
		defer close(streamed)
		w.CloseWithError(f.Stream(streaming, src.DiffID, w, nil))
	})
	desc := ocispec.Descriptor{MediaType: src.Descriptor.MediaType, Digest: src.Descriptor.Digest, Size: src.Descriptor.Size}
	err := i.opts.Blobs.KeepBlob(ctx, src.Namespace, desc, src.Repo, src.DiffID, r)
	cancel() // if the store has enough, or has failed
	r.CloseWithError(io.ErrClosedPipe)
	<-streamed
	return err
}
