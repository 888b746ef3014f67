package layers

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/golang/groupcache/lru"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/cache/blob"
	"github.com/remora-storage/remora/fs/layout"
	"github.com/remora-storage/remora/fs/scan"
	"github.com/remora-storage/remora/internal/fair"
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

const (
	// importTries is how often a layer is asked for whose bytes are wrong, each time elsewhere if there
	// are several places.
	importTries = 3
	// importRest is how long a registry is waited for at most that is left alone since it fails, as often. That it was not asked says
	// nothing of what it serves: who fails ranges may serve the whole.
	importRest = 2 * time.Second
)

// Imports are how layers are read whole.
type Imports struct {
	opts    *Options
	places  *Places
	proofs  *Proofs
	decoder *decoder
	indexes *Indexes
	granted *Grants
	cache   *cache.Cache
	tracer  *Tracer
	pool    *fair.Pool[fair.User] // bounds how many layers are imported
	log     *slog.Logger
	started *sync.WaitGroup

	refusals *refusals

	mu      sync.Mutex // guards refused
	refused *lru.Cache // refusedLayer, by granted: what may not be unpacked
}

var errWrongBlob = errors.New("the registry serves another blob under this digest")

// layer reads all of a layer: its data into the cache, its tree into the index.
func (i *Imports) layer(ctx context.Context, o *Opening, codec blob.Codec) (*Tree, error) {
	release, err := i.proofs.place(ctx, i.pool, o)
	if err != nil {
		return nil, err
	}
	defer release()
	began := time.Now()
	x, err := i.decoder.inMemory(ctx, o, importMemoryOf(codec), func(limits layout.Limits) (*Tree, error) {
		return i.tryImport(ctx, o, codec, limits)
	})
	i.tracer.Ended(began, Span{Kind: "import", Digest: o.src.Descriptor.Digest, Len: o.src.Descriptor.Size, Err: err})
	return x, err
}

func (i *Imports) tryImport(ctx context.Context, o *Opening, codec blob.Codec, limits layout.Limits) (*Tree, error) {
	whole := i.places.lacksRanges(ctx, &o.src)
	for try, rests := 0, 0; ; {
		im, err := i.cache.Import(ctx, o.key) // another repository's is another import: it may never end
		if err != nil {
			return nil, err
		}
		x, err := i.importOnce(ctx, o, codec, limits, im, try, whole)
		if err == nil {
			return x, nil
		}
		beyond := errors.Is(err, layout.ErrBeyond) || errors.Is(err, scan.ErrBomb)
		wrong := !beyond && (errors.Is(err, errWrongBlob) || errors.Is(err, layout.ErrInvalid))
		im.Stop(!wrong && !beyond && !o.gone.Load())
		if errors.Is(err, scan.ErrBomb) { // which is not unpacked either
			i.noteBeyond(&o.src, err)
		}
		again := try+1 < importTries && (errors.Is(err, errWrongBlob) || !i.places.Stored(ctx, &o.src)) // else its bytes are the layer's
		switch {
		case wrong && again:
			i.log.Warn("layer has wrong bytes, asking again", "digest", o.src.Descriptor.Digest, "image", o.src.Image, "err", err)
			try++
			whole = whole || try+1 == importTries // who spoils ranges may serve the whole
		case wrong || beyond:
			return nil, NotLazy("%w", err)
		case !whole && ctx.Err() == nil && (errors.Is(err, registry.ErrRange) || registry.Retryable(err) && !registry.Unasked(err)):
			i.log.Info("layer is asked for without ranges", "digest", o.src.Descriptor.Digest, "image", o.src.Image, "err", err)
			try, whole = try+1, true
		case rests < importTries && registry.Rest(ctx, err, importRest):
			rests++
		default:
			return nil, err
		}
	}
}

func (i *Imports) importOnce(
	ctx context.Context, o *Opening, codec blob.Codec, limits layout.Limits, im *cache.Import, try int, whole bool,
) (*Tree, error) {
	desc := o.src.Descriptor
	if im.Held > desc.Size {
		return nil, fmt.Errorf("%w: more of it was kept than it has", errWrongBlob)
	}
	o.got.Store(im.Held)
	if im.Held > 0 {
		i.log.Info("import goes on", "digest", desc.Digest, "image", o.src.Image, "bytes", im.Held, "of", desc.Size)
	}
	rest := i.restOf(ctx, &o.src, im.Held, try, whole)
	defer rest.Close()
	came, detected := int64(0), false
	prove := sync.OnceFunc(func() { i.proofs.proveRead(ctx, o) })
	tee := readerFunc(func(p []byte) (int, error) {
		n, err := rest.Read(p)
		im.Keep(p[:n])
		came += int64(n)
		o.got.Add(int64(n))
		if came > 0 && detected {
			prove()
		}
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
	if detected = true; came > 0 || im.Held == desc.Size { // bytes that were kept do not show that the rest is to be had
		prove()
	}
	layer, err := scan.Scan(ctx, packed, is, scan.Options{Data: im, DataStart: cache.DataStart, Limits: limits})
	if err != nil {
		return nil, err
	}
	if layer.Blob != desc.Digest {
		return nil, fmt.Errorf("%w: its digest is %s", errWrongBlob, layer.Blob)
	}
	if i.opts.ImportOf(o.src.Repo).KeepBlobs {
		i.keepBlob(ctx, o, im, layer.DiffID)
	}
	i.indexes.keep(&o.src, layer, &limits)
	return &Tree{layout: layer.Layout, imported: im, diffID: layer.DiffID, fetched: came}, nil
}

// restOf reads a layer's blob from off on, by several ranges side by side, or whole as containerd does.
func (i *Imports) restOf(ctx context.Context, s *Source, off int64, try int, whole bool) io.ReadCloser {
	src := i.places.whole(s)
	if !whole {
		return i.cache.Read(ctx, src, off, s.Descriptor.Size, try, !i.places.registry.ServesRanges(ctx, s.Repo.Host))
	}
	return i.cache.Stream(ctx, src, func(ctx context.Context) (io.ReadCloser, error) {
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

// orWhole is the answer of Grants.Ask, but where no part of a layer would show that its repository has it: then all of it does, by its
// digest.
func (i *Imports) orWhole(ctx context.Context, s *Source, asked error) error {
	if !errors.Is(asked, cache.ErrNotByParts) {
		return asked
	}
	release, err := i.pool.Acquire(ctx, userOf(s.Repo))
	if err != nil {
		return err
	}
	defer release()
	src, sum := i.places.blob(s), sha256.New() // not what containerd has
	r := i.cache.Stream(ctx, src, src.Whole)
	defer r.Close() // only read
	if _, err := io.Copy(sum, r); err != nil {
		return notServed(err)
	}
	if got := digest.NewDigest(digest.SHA256, sum); got != s.Descriptor.Digest {
		return notServed(fmt.Errorf("%w: its digest is %s", errWrongBlob, got))
	}
	i.granted.note(s, wholeOf(s))
	return nil
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// keepBlob puts the packed bytes into containerd's content store. That it fails is no reason to fail the
// import.
func (i *Imports) keepBlob(ctx context.Context, o *Opening, im *cache.Import, diffID digest.Digest) {
	r, n, ok := im.Whole()
	err := errors.New("there was no room for its packed bytes")
	if ok && i.opts.Blobs != nil {
		desc := ocispec.Descriptor{MediaType: o.src.Descriptor.MediaType, Digest: o.src.Descriptor.Digest, Size: n}
		err = i.opts.Blobs.KeepBlob(ctx, o.src.Namespace, desc, o.src.Repo, diffID, r)
	}
	if err != nil {
		i.log.Warn("blob not kept in containerd's content store", "digest", o.src.Descriptor.Digest, "image", o.src.Image, "err", err)
	}
}
