package layers

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/cache/blob"
	"github.com/remora-storage/remora/fs/layout"
	"github.com/remora-storage/remora/fs/scan"
	"github.com/remora-storage/remora/remote/registry"
)

// ImportMode says when a layer is read whole.
type ImportMode string

// The modes. The zero value is ImportLazy.
const (
	ImportLazy     ImportMode = "lazy"     // if there is no index by which it can be read by parts
	ImportEager    ImportMode = "eager"    // always
	ImportOrdinary ImportMode = "ordinary" // never, nor by parts: containerd unpacks it
)

// ImportPolicy is what holds for a repository.
type ImportPolicy struct {
	Mode ImportMode
	// KeepBlobs puts layers' blobs into containerd's content store: of imports on the way, of others in the background.
	KeepBlobs bool
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

const (
	// importTries is how often a layer is asked for whose bytes are wrong, each time elsewhere if there
	// are several places.
	importTries = 3
	storeWait   = time.Second // for containerd to say whether it has a blob
)

var errWrongBlob = errors.New("the registry serves another blob under this digest")

// importLayer reads all of a layer: its data into the cache, its tree into the index.
func (l *Layers) importLayer(ctx context.Context, o *Opening, codec blob.Codec) (*Tree, error) {
	release, err := l.place(ctx, l.imports, o)
	if err != nil {
		return nil, err
	}
	defer release()
	began := time.Now()
	x, err := l.inMemory(ctx, o, importMemoryOf(codec), func(limits layout.Limits) (*Tree, error) {
		return l.tryImport(ctx, o, codec, limits)
	})
	l.tracer.end(began, Span{Kind: "import", Digest: o.src.Descriptor.Digest, Len: o.src.Descriptor.Size, Err: err})
	return x, err
}

func (l *Layers) tryImport(ctx context.Context, o *Opening, codec blob.Codec, limits layout.Limits) (*Tree, error) {
	whole := l.failures.rangeless(o.src.Repo.Host)
	for try := 0; ; try++ {
		im, err := l.cache.Import(ctx, o.key) // another repository's is another import: it may never end
		if err != nil {
			return nil, err
		}
		x, err := l.importOnce(ctx, o, codec, limits, im, try, whole)
		if err == nil {
			return x, nil
		}
		beyond := errors.Is(err, layout.ErrBeyond) || errors.Is(err, scan.ErrBomb)
		wrong := !beyond && (errors.Is(err, errWrongBlob) || errors.Is(err, layout.ErrInvalid))
		im.Stop(!wrong && !beyond && !o.gone.Load())
		switch {
		case wrong && try+1 < importTries:
			l.log.Warn("layer has wrong bytes, asking again", "digest", o.src.Descriptor.Digest, "image", o.src.Image, "err", err)
			whole = whole || try+2 == importTries // who spoils ranges may serve the whole
		case wrong || beyond:
			return nil, NotLazy("%w", err)
		case !whole && ctx.Err() == nil && (errors.Is(err, registry.ErrRange) || registry.Retryable(err)):
			l.failures.noteRange(o.src.Repo.Host, err)
			l.log.Info("layer is asked for without ranges", "digest", o.src.Descriptor.Digest, "image", o.src.Image, "err", err)
			whole = true
		default:
			return nil, err
		}
	}
}

func (l *Layers) importOnce(
	ctx context.Context, o *Opening, codec blob.Codec, limits layout.Limits, im *cache.Import, try int, whole bool,
) (*Tree, error) {
	desc := o.src.Descriptor
	if im.Held > desc.Size {
		return nil, fmt.Errorf("%w: more of it was kept than it has", errWrongBlob)
	}
	o.got.Store(im.Held)
	if im.Held > 0 {
		l.log.Info("import goes on", "digest", desc.Digest, "image", o.src.Image, "bytes", im.Held, "of", desc.Size)
	}
	rest := l.restOf(ctx, &o.src, im.Held, try, whole)
	defer rest.Close()
	came := int64(0)
	tee := readerFunc(func(p []byte) (int, error) {
		n, err := rest.Read(p)
		im.Keep(p[:n])
		came += int64(n)
		o.got.Add(int64(n))
		return n, err
	})
	packed := bufio.NewReaderSize(io.MultiReader(im.Packed(), tee), scan.HeadSize)
	is, err := scan.Detect(desc.MediaType, packed)
	if err != nil {
		return nil, err
	}
	if more := importMemoryOf(is) - importMemoryOf(codec); more > 0 {
		if err := limits.Ask(more); err != nil {
			return nil, err
		}
	}
	l.prove(o)
	layer, err := scan.Scan(ctx, packed, is, scan.Options{Data: im, DataStart: cache.DataStart, Limits: limits})
	if err != nil {
		return nil, err
	}
	if layer.Blob != desc.Digest {
		return nil, fmt.Errorf("%w: its digest is %s", errWrongBlob, layer.Blob)
	}
	if l.opts.ImportOf(o.src.Repo).KeepBlobs {
		l.keepBlob(ctx, o, im, layer.DiffID)
	}
	l.keepIndex(&o.src, layer)
	return &Tree{layout: layer.Layout, imported: im, diffID: layer.DiffID, fetched: came}, nil
}

// restOf reads a layer's blob from off on, by several ranges side by side, or whole as containerd does.
func (l *Layers) restOf(ctx context.Context, s *Source, off int64, try int, whole bool) io.ReadCloser {
	src := l.importSource(s)
	if !whole {
		return l.cache.Read(ctx, src, off, s.Descriptor.Size, try)
	}
	return l.cache.Stream(ctx, src, func(ctx context.Context) (io.ReadCloser, error) {
		r, err := src.Whole(ctx)
		if err != nil {
			return nil, err
		}
		if _, err := io.CopyN(io.Discard, r, off); err != nil {
			return nil, errors.Join(err, r.Close())
		}
		return r, nil
	})
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// keepBlob puts the packed bytes into containerd's content store. That it fails is no reason to fail the
// import.
func (l *Layers) keepBlob(ctx context.Context, o *Opening, im *cache.Import, diffID digest.Digest) {
	r, n, ok := im.Whole()
	err := errors.New("there was no room for its packed bytes")
	if ok && l.opts.Blobs != nil {
		desc := ocispec.Descriptor{MediaType: o.src.Descriptor.MediaType, Digest: o.src.Descriptor.Digest, Size: n}
		err = l.opts.Blobs.KeepBlob(ctx, o.src.Namespace, desc, o.src.Repo, diffID, r)
	}
	if err != nil {
		l.log.Warn("blob not kept in containerd's content store", "digest", o.src.Descriptor.Digest, "image", o.src.Image, "err", err)
	}
}

// importSource returns where a whole layer is read from: containerd's content store if it has the blob,
// or gets it meanwhile, and the registry otherwise.
func (l *Layers) importSource(s *Source) Blob {
	if l.opts.Blobs == nil || s.Namespace == "" {
		return l.blob(s)
	}
	return &storedBlob{Blob: l.blob(s), blobs: l.opts.Blobs, namespace: s.Namespace, digest: s.Descriptor.Digest}
}

// Stored reports whether containerd's content store has a layer's blob: then an import moves nothing.
func (l *Layers) Stored(ctx context.Context, s *Source) bool {
	if l.opts.Blobs == nil || s.Namespace == "" {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, storeWait)
	defer cancel()
	r, err := l.opts.Blobs.Blob(ctx, s.Namespace, s.Descriptor.Digest)
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
}

// Open implements cache.Source.
func (b *storedBlob) Open(ctx context.Context, off, n int64, try int) (io.ReadCloser, error) {
	if try == 0 {
		r, err := b.blobs.Blob(ctx, b.namespace, b.digest) // which reads with this context, too
		if err == nil {
			if r.Size() == b.Size() {
				return struct {
					io.Reader
					io.Closer
				}{io.NewSectionReader(r, off, n), r}, nil
			}
			r.Close() // only read
		}
	}
	return b.Blob.Open(ctx, off, n, try)
}
