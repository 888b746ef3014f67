package layers

import (
	"context"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/cache"
)

// FileBlob puts a layer's blob into containerd's content store. f is an image in the cache that was made of the blob; what the cache
// misses of it is filled on the way. If f is nil, the blob is downloaded.
func (i *Imports) FileBlob(ctx context.Context, f *cache.File, src *Source) error {
	if f == nil {
		return i.downloadBlob(ctx, src)
	}
	if err := i.orWhole(ctx, src, i.granted.Ask(ctx, f, src)); err != nil { // it may be another repository's that the cache has it from
		return err
	}
	streaming, cancel := context.WithCancel(ctx)
	defer cancel()
	r, w := io.Pipe()
	streamed := make(chan struct{})
	i.started.Go(func() {
		defer close(streamed)
		w.CloseWithError(cache.For(f, src.Repo).Stream(streaming, src.DiffID, w, nil))
	})
	err := i.fileBlob(ctx, src, r)
	cancel() // if the store has enough, or has failed
	r.CloseWithError(io.ErrClosedPipe)
	<-streamed
	return err
}

// downloadBlob is FileBlob of what the cache does not have.
func (i *Imports) downloadBlob(ctx context.Context, src *Source) error {
	release, err := i.pool.Acquire(ctx, userOf(src.Repo))
	if err != nil {
		return err
	}
	defer release()
	for try := 0; ; try++ {
		r := i.restOf(ctx, src, 0, try, i.places.lacksRanges(ctx, src))
		err = i.fileBlob(ctx, src, r)
		r.Close() // only read
		if !errdefs.IsFailedPrecondition(err) || try+1 == importTries {
			return err
		}
	}
}

func (i *Imports) fileBlob(ctx context.Context, src *Source, r io.Reader) error {
	desc := ocispec.Descriptor{MediaType: src.Descriptor.MediaType, Digest: src.Descriptor.Digest, Size: src.Descriptor.Size}
	if err := i.opts.Blobs.KeepBlob(ctx, src.Namespace, desc, src.Repo, src.DiffID, r); err != nil {
		return fmt.Errorf("keep its blob in containerd's content store: %w", err)
	}
	return nil
}
