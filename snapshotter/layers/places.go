package layers

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/cache/blob"
	"github.com/remora-storage/remora/fs/scan"
	"github.com/remora-storage/remora/internal/memory"
	"github.com/remora-storage/remora/remote/registry"
)

// Places are where the bytes of layers are: registries, and containerd's content store.
type Places struct {
	registry Registry
	blobs    Blobs          // may be nil
	memory   *memory.Budget // nil for no end
}

// A Registry gives access to blobs. Some are Manifests and Artifacts, too.
type Registry interface {
	// Blob returns a blob of a repository: a layer's, or a small one. It makes no request. The descriptor's URLs are places
	// that have it, too.
	Blob(repo registry.Repository, desc ocispec.Descriptor) Blob
	// Present reports by its error whether a registry is one now, rather than a host that answers 404 to everything.
	Present(ctx context.Context, registry string) error
	// ServesRanges reports whether the host that a registry asks first has lately served a range.
	ServesRanges(ctx context.Context, registry string) bool
	// LacksRanges reports whether no host of a registry serves ranges, as far as each has lately shown.
	LacksRanges(ctx context.Context, registry string) bool
	// Forgive has hosts asked again that are left alone since they failed.
	Forgive()
	// Manifest returns a manifest, that a tag or a digest names, with its descriptor.
	Manifest(ctx context.Context, repo registry.Repository, reference string) (ocispec.Descriptor, []byte, error)
}

// A Blob is bytes that are read by range, wherever they are: a Source of the cache that knows where its bytes come from, and
// how long the way is.
type Blob interface {
	cache.Source
	cache.Placed
	cache.Measured
	// ReadAt fills p from off or fails.
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)
	// Size returns the blob's size in bytes, as its descriptor has it.
	Size() int64
	// Whole returns a reader of the whole blob, where no ranges are served, too.
	Whole(ctx context.Context) (io.ReadCloser, error)
}

// blob returns a layer's blob in its repository; that of a layer which came from no registry is in containerd's content store.
func (p *Places) blob(s *Source) Blob {
	if s.FromRegistry() {
		return p.registry.Blob(s.Repo, s.Descriptor)
	}
	return p.stored(s, nowhere{s.Descriptor})
}

// Blobs are the blobs in containerd's content store, in a namespace.
type Blobs interface {
	// Blob opens a blob, or fails.
	Blob(ctx context.Context, namespace string, d digest.Digest) (content.ReaderAt, error)
	// From reports whether a blob is there that containerd had from a repository.
	From(ctx context.Context, namespace string, d digest.Digest, repo registry.Repository) bool
	// KeepBlob adds a layer's blob.
	KeepBlob(ctx context.Context, namespace string, desc ocispec.Descriptor, repo registry.Repository, diffID digest.Digest, r io.Reader) error
}

// lacksRanges reports whether a layer's registry is known to serve no ranges.
func (p *Places) lacksRanges(ctx context.Context, s *Source) bool {
	return s.FromRegistry() && p.registry.LacksRanges(ctx, s.Repo.Host)
}

const storeWait = time.Second // for containerd to say whether it has a blob

// whole returns where a whole layer is read from: containerd's content store if it has the blob,
// or gets it meanwhile, and the registry otherwise.
func (p *Places) whole(s *Source) Blob {
	return p.stored(s, p.blob(s))
}

// stored is a layer's blob in the content store, and another one where it is not there.
func (p *Places) stored(s *Source, other Blob) Blob {
	if p.blobs == nil || s.Namespace == "" {
		return other
	}
	return &storedBlob{
		Blob: other, blobs: p.blobs, namespace: s.Namespace, digest: s.Descriptor.Digest, alone: !s.FromRegistry(),
	}
}

// Stored reports whether containerd's content store has a layer's blob: then an import moves nothing.
func (p *Places) Stored(ctx context.Context, s *Source) bool {
	if p.blobs == nil || s.Namespace == "" {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, storeWait)
	defer cancel()
	r, err := p.blobs.Blob(ctx, s.Namespace, s.Descriptor.Digest)
	if err != nil {
		return false
	}
	return r.Close() == nil && r.Size() == s.Descriptor.Size
}

// storedBlob is a layer's blob that may be in containerd's content store.
type storedBlob struct {
	Blob
	blobs     Blobs
	namespace string
	digest    digest.Digest
	alone     bool // it came from no registry
}

// Open implements cache.Source.
func (b *storedBlob) Open(ctx context.Context, off, n int64, try int) (io.ReadCloser, error) {
	if try == 0 || b.alone {
		if r, err := b.openStored(ctx, off, n); err == nil || b.alone {
			return r, err
		}
	}
	return b.Blob.Open(ctx, off, n, try)
}

// Whole implements Blob.
func (b *storedBlob) Whole(ctx context.Context) (io.ReadCloser, error) {
	if r, err := b.openStored(ctx, 0, b.Size()); err == nil || b.alone {
		return r, err
	}
	return b.Blob.Whole(ctx)
}

// openStored is Open of what containerd has.
func (b *storedBlob) openStored(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	r, err := b.blobs.Blob(ctx, b.namespace, b.digest) // which reads with this context, too
	if err == nil && r.Size() != b.Size() {
		err = errors.Join(errWrongBlob, r.Close())
	}
	if err != nil {
		return nil, fmt.Errorf("it came from no registry, and containerd's content store does not have it: %w", err)
	}
	return struct {
		io.Reader
		io.Closer
	}{io.NewSectionReader(r, off, n), r}, nil
}

// nowhere is the blob of a layer that came from no registry, where the content store does not have it.
type nowhere struct{ desc ocispec.Descriptor }

func (n nowhere) err() error {
	return fmt.Errorf("read %s: it came from no registry, and containerd's content store does not have it", n.desc.Digest)
}

func (n nowhere) Open(context.Context, int64, int64, int) (io.ReadCloser, error) { return nil, n.err() }
func (n nowhere) ReadAt(context.Context, []byte, int64) (int, error)             { return 0, n.err() }
func (n nowhere) Whole(context.Context) (io.ReadCloser, error)                   { return nil, n.err() }
func (n nowhere) Size() int64                                                    { return n.desc.Size }
func (n nowhere) Place() (host, user string)                                     { return "", "" }
func (n nowhere) Link() (latency time.Duration, rate int64)                      { return 0, 0 }

// firstBytes fails unless a layer begins as what it is taken for.
func (p *Places) firstBytes(ctx context.Context, s *Source) error {
	r, err := p.whole(s).Open(registry.BeforeBulk(ctx), 0, min(scan.HeadSize, s.Descriptor.Size), 0)
	if err != nil {
		return err
	}
	defer r.Close() // only read
	_, err = scan.Detect(s.Descriptor.MediaType, bufio.NewReaderSize(r, scan.HeadSize))
	return err
}

// TryRange reads a byte of a layer.
func (p *Places) TryRange(ctx context.Context, s *Source) error {
	r, err := p.blob(s).Open(ctx, s.Descriptor.Size-1, 1, 0)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, r)
	return errors.Join(err, r.Close())
}

// Remote is a registry as layers are read from it.
type Remote struct{ *registry.Registry }

// Blob implements Registry.
func (r Remote) Blob(repo registry.Repository, desc ocispec.Descriptor) Blob {
	return r.Registry.Blob(repo, desc.Digest, desc.Size).WithURLs(registry.ForeignURLs(desc))
}

// AnyHas returns nil if one of some layers has its blob where it is now, and otherwise an error of which IsGone says whether all places
// have answered that they have it no longer.
func (p *Places) AnyHas(ctx context.Context, all []Source) error {
	var errs []error
	for i := range all {
		if p.Stored(ctx, &all[i]) {
			return nil
		}
		err := p.TryRange(ctx, &all[i])
		if err == nil || errors.Is(err, registry.ErrRange) { // it serves all of it
			return nil
		}
		if !IsGone(err) {
			return err
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// storedUnit is what of a blob in the content store is compared with a repository's, in bytes.
const storedUnit = 64 << 10

// contentOfBlob describes a layer's blob that r reads.
func contentOfBlob(r io.ReaderAt, size int64) *cache.Content {
	unit := func(u int) blob.Unit {
		off := int64(u) * storedUnit
		return blob.Unit{Off: off, Len: min(storedUnit, size-off)}
	}
	return &cache.Content{
		Codec: blob.Plain, Units: int((size + storedUnit - 1) / storedUnit),
		Unit:  unit,
		Bytes: func(u int) int64 { return unit(u).Len },
		Part: func(u int) (cache.Part, error) {
			at := unit(u)
			p := make([]byte, at.Len)
			if _, err := r.ReadAt(p, at.Off); err != nil && err != io.EOF {
				return cache.Part{}, err
			}
			return cache.Part{Unit: at, Extents: []cache.Extent{{Len: uint32(at.Len), Digest: sha256.Sum256(p)}}}, nil
		},
	}
}
