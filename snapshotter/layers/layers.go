package layers

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/singleflight"

	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/cache/blob"
	"github.com/remora-storage/remora/fs/erofs"
	"github.com/remora-storage/remora/fs/format/toc"
	"github.com/remora-storage/remora/fs/layout"
	"github.com/remora-storage/remora/internal/fair"
	"github.com/remora-storage/remora/remote/registry"
)

// A Registry gives access to blobs. Some are Manifests and Artifacts, too.
type Registry interface {
	// Blob returns a blob of a repository: a layer's, or a small one. It makes no request. The descriptor's URLs are places
	// that have it, too.
	Blob(repo registry.Repository, desc ocispec.Descriptor) Blob
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

const (
	openTimeout = 2 * time.Minute // for an index, all retries included
	openingKept = 2 * time.Minute // an index that nobody claimed
	// A layer that has just failed to open takes the ordinary path: claimed, it would fail when
	// it is mounted.
	failureHolds = 30 * time.Second

	// Of all registries, and of one alone.
	openAtOnce, openAtOnceOfOne     = 48, 16
	importAtOnce, importAtOnceOfOne = 36, 12
)

// Layers opens the indexes of remote layers, builds their images, and keeps both while they are
// of use.
type Layers struct {
	registry Registry
	cache    *cache.Cache
	opts     Options
	hooks    Hooks
	log      *slog.Logger
	tracer   tracer
	aheads   aheads

	// life ends when Close is to come; started waits for what runs until then.
	life    context.Context
	started sync.WaitGroup

	building singleflight.Group // by the image's name
	fillMu   sync.Mutex         // one image that depends on the layers below is built at a time

	// What registries share, by their hosts.
	slots    *fair.Pool[string] // bounds how many indexes are read at once, and with that memory
	imports  *fair.Pool[string] // and how many layers are imported
	granted  grants
	failures failures
	indexes  *indexes

	mu       sync.Mutex          // guards the fields below; taken after those of who calls
	openings map[string]*Opening // by keyOf
	sources  map[string]*sources // of images in the cache, by their names
	active   int                 // openings under way
	idle     time.Time           // when there was none any more
	garbage  bool                // something was opened since memory was given back
}

// An Opening is one layer's index on its way here.
type Opening struct {
	src   Source
	key   string
	done  chan struct{}
	stop  context.CancelFunc // ends it before its time
	proof *proof
	got   atomic.Int64 // packed bytes of an import so far
	gone  atomic.Bool  // the image was removed: what arrived is not kept
	// after done
	err   error
	index *Tree       // nil if the image is built already; it may hold data
	file  *cache.File // set if the image does not depend on the layers below
	ended time.Time
}

// Source returns where the layer is.
func (o *Opening) Source() Source { return o.src }

// Done is closed when the opening has ended.
func (o *Opening) Done() <-chan struct{} { return o.done }

// Err returns why the opening failed, once it is done; nil if it did not.
func (o *Opening) Err() error { return o.err }

// Came returns how many packed bytes of a layer that is imported are here.
func (o *Opening) Came() int64 { return o.got.Load() }

// Open starts opening a layer, or joins who does. An opening that failed a moment ago is returned as it is.
func (l *Layers) Open(s Source) *Opening { return l.open(s, failureHolds) }

// OpenAgain is Open for somebody who cannot do without: what has failed is tried again.
func (l *Layers) OpenAgain(s Source) *Opening { return l.open(s, 0) }

// open starts opening a layer, or joins who does. An opening that failed less than failedFor
// ago is returned as it is.
func (l *Layers) open(s Source, failedFor time.Duration) *Opening {
	key := l.KeyOf(&s)
	l.mu.Lock()
	defer l.mu.Unlock()
	if o := l.openings[key]; o != nil {
		select {
		case <-o.done:
			if o.err == nil || time.Since(o.ended) < failedFor {
				return o
			}
		default:
			return o
		}
	}
	ctx, cancel := context.WithCancel(l.life)
	o := &Opening{src: s, key: key, done: make(chan struct{}), stop: cancel, proof: newProof()}
	l.openings[key] = o
	l.active++
	l.started.Go(func() {
		defer close(o.done)
		defer l.opened()
		defer cancel()
		began := time.Now()
		o.err = l.fill(ctx, o)
		o.ended = time.Now()
		if o.err != nil {
			l.failures.note(s.Repo, o.err)
			l.hooks.Unreadable(&s)
			l.log.Warn("layer not opened", "digest", s.Descriptor.Digest, "image", s.Image, "err", o.err)
			return
		}
		l.log.Info("layer opened", "digest", s.Descriptor.Digest, "image", s.Image, "took", time.Since(began).Round(time.Millisecond))
	})
	return o
}

// opened notes the end of an opening.
func (l *Layers) opened() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.active--; l.active == 0 {
		l.idle = time.Now()
	}
	l.garbage = true
}

// fill reads the layer, its index or all of it, and builds the image unless it depends on the layers
// below.
func (l *Layers) fill(ctx context.Context, o *Opening) error {
	promised, err := l.promiseOf(&o.src)
	if err != nil {
		return err
	}
	if f := l.cachedImage(&o.src, "", promised.tableOf(&o.src)); f != nil {
		if err := l.grant(ctx, &o.src); err != nil {
			return err
		}
		o.file = l.Shared(f, &o.src)
		return nil
	}
	x, err := l.read(ctx, o, promised)
	if err != nil {
		return err
	}
	l.granted.note(&o.src)
	if len(x.layout.Implicit) > 0 {
		o.index = x
		return nil
	}
	o.file, err = l.build(&o.src, x, "")
	return err
}

// read reads a layer's index, and if there is none that can be used, all of the layer.
func (l *Layers) read(ctx context.Context, o *Opening, p promise) (*Tree, error) {
	// What containerd has is not fetched, and a host that serves no ranges is not asked for them.
	stored := p.noImport == "" && l.Stored(ctx, &o.src)
	rangeless := p.noImport == "" && l.failures.rangeless(o.src.Repo.Host)
	if p.format != formatImport && !rangeless && !stored {
		x, err := l.readIndex(ctx, o, p)
		l.failures.noteRange(o.src.Repo.Host, err)
		if err == nil || !errors.Is(err, ErrNotLazy) || p.noImport != "" {
			return x, err
		}
		l.log.Warn("layer is imported: its index cannot be used", "digest", o.src.Descriptor.Digest, "image", o.src.Image, "err", err)
		return l.importLayer(ctx, o, p.codec)
	}
	if !p.eager && !rangeless && !stored {
		x, err := l.byMadeIndex(ctx, o)
		if x != nil {
			return x, nil
		}
		if err != nil {
			l.log.Warn("layer is imported: the index that was made of it cannot be used",
				"digest", o.src.Descriptor.Digest, "image", o.src.Image, "err", err)
		}
	}
	return l.importLayer(ctx, o, p.codec)
}

func (l *Layers) readIndex(ctx context.Context, o *Opening, p promise) (*Tree, error) {
	release, err := l.place(ctx, l.slots, o)
	if err != nil {
		return nil, err
	}
	defer release()
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	counted := &countedBlob{Blob: l.blob(&o.src), served: func() { l.prove(o) }}
	began := time.Now()
	x, err := l.inMemory(ctx, o, indexMemory, func(limits layout.Limits) (*Tree, error) {
		return openIndex(registry.BeforeBulk(ctx), counted, p, &o.src, limits)
	})
	l.tracer.end(began, Span{Kind: "index", Digest: o.src.Descriptor.Digest, Len: counted.n, Err: err})
	return x, err
}

// build writes a layer's image into the cache and tells who wants to know. below is part of the image's name.
func (l *Layers) build(s *Source, index *Tree, below string) (_ *cache.File, err error) {
	im, by := index.take(), index.by
	if im == nil && by == "" {
		by = madeHere // the data went into an image on other layers, and the rest comes by parts
	}
	name := cache.Name{Blob: s.BlobName(), Voucher: cache.Whole, Below: below}
	if by != "" {
		name.Voucher = cache.ByTable(by)
	}
	id := name.String()
	defer func() {
		index.share.Release()
		if im != nil {
			im.Stop(false) // no image can be made of it, or somebody else has
		}
	}()
	var uuid [16]byte
	sum := sha256.Sum256([]byte(id))
	copy(uuid[:], sum[:])
	began := time.Now()
	plan, err := erofs.NewPlan(index.layout, uuid)
	if err != nil {
		return nil, NotLazy("%w", err)
	}
	spec, err := plan.Spec(index.tail)
	if err != nil {
		return nil, NotLazy("%w", err)
	}
	if im == nil && index.layout.Codec == blob.Whole {
		return nil, errors.New("its data went into another image, and it cannot be read by parts")
	}
	v, err, _ := l.building.Do(id, func() (any, error) {
		if f, err := l.File(id, s); err == nil { // an opening from another repository has made it
			return f, nil
		}
		if im == nil {
			return l.cache.Create(id, spec, l.blob(s))
		}
		all := im
		im = nil
		return all.Finish(id, spec, index.diffID, l.blob(s))
	})
	l.tracer.end(began, Span{Kind: "image", Digest: s.Descriptor.Digest, Len: plan.MetaSize, Err: err})
	if errors.Is(err, cache.ErrNoRoom) {
		return nil, NotLazy("%w", err)
	}
	if err != nil {
		return nil, err
	}
	f := l.Shared(v.(*cache.File), s)
	f.AddFetched(index.fetched)
	l.setPolicy(f, s)
	l.hooks.Built(s, f, index.layout.Prefetch)
	return f, nil
}

// Image opens a layer and returns its image. Where that depends on the layers below it returns the layer's tree instead, for BuildOn. It
// waits for an opening that is under way, and starts one anew that has failed.
func (l *Layers) Image(ctx context.Context, s *Source) (*cache.File, *Tree, error) {
	for range 3 {
		o := l.OpenAgain(*s)
		select {
		case <-o.done:
		case <-ctx.Done():
			return nil, nil, context.Cause(ctx)
		}
		if o.err != nil || o.file == nil {
			return nil, o.index, o.err
		}
		// The image may have gone with the last snapshot that used it.
		if f, err := l.File(o.file.ID(), s); err == nil {
			return f, nil, nil
		}
		l.Forget(s)
	}
	return nil, nil, errors.New("its image is removed again and again")
}

// BuildOn builds the image of a layer whose tree has implicit directories, given what lies below it: the attributes of a directory by
// its path, and whether there is one.
func (l *Layers) BuildOn(s *Source, tree *Tree, below func(string) (layout.Attributes, bool, error)) (*cache.File, error) {
	l.fillMu.Lock() // Fill changes the tree, which others may share
	defer l.fillMu.Unlock()
	f, err := l.fillAndBuild(s, tree, below)
	if err == nil {
		// The tree is large and another base for the same layer is rare.
		l.Forget(s)
	}
	return f, err
}

func (l *Layers) fillAndBuild(s *Source, index *Tree, below func(string) (layout.Attributes, bool, error)) (*cache.File, error) {
	taken := sha256.New()
	if err := index.layout.Fill(l.opts.Limits, func(path string) (layout.Attributes, bool, error) {
		a, found, err := below(path)
		if found {
			enc, err := json.Marshal(struct {
				Path string
				A    layout.Attributes
			}{path, a})
			if err != nil {
				return a, false, err
			}
			taken.Write(enc)
		}
		return a, found, err
	}); err != nil {
		return nil, err
	}
	name := hex.EncodeToString(taken.Sum(nil)[:8])
	if f := l.cachedImage(s, name, cmp.Or(index.by, madeHere)); f != nil { // that it may be read shows the index
		return l.Shared(f, s), nil
	}
	return l.build(s, index, name)
}

// Forget drops what is kept of an opening, so that its index can be collected.
func (l *Layers) Forget(s *Source) {
	key := l.KeyOf(s)
	l.mu.Lock()
	defer l.mu.Unlock()
	if o := l.openings[key]; o != nil {
		o.gone.Store(true)
		l.dropLocked(o)
	}
	l.garbage = true
}

// dropLocked lets go of an opening. One under way ends; data that no image was made of goes.
func (l *Layers) dropLocked(o *Opening) {
	delete(l.openings, o.key)
	o.stop()
	l.started.Go(func() {
		<-o.done
		if o.index == nil {
			return
		}
		o.index.share.Release()
		if im := o.index.take(); im != nil {
			im.Stop(!o.gone.Load())
		}
	})
}

// Sweep drops openings that nobody came for, and gives back the memory that decoding indexes
// took, which is many times what stays.
func (l *Layers) Sweep() {
	l.mu.Lock()
	idle := l.garbage && l.active == 0
	if idle {
		l.garbage = false
	}
	dropped := l.dropOldLocked()
	l.mu.Unlock()
	for _, o := range dropped {
		l.hooks.Unclaimed(&o.src, o.file)
	}
	if idle {
		debug.FreeOSMemory()
	}
}

// dropOldLocked drops openings, and returns those whose layers were imported.
func (l *Layers) dropOldLocked() (unclaimed []*Opening) {
	for _, o := range l.openings {
		select {
		case <-o.done:
			imported := o.got.Load() > 0
			if time.Since(o.ended) <= openingKept || imported && (l.active > 0 || time.Since(l.idle) <= openingKept) {
				continue // who pulls the image may wait for its other layers
			}
			l.dropLocked(o)
			if imported && o.file != nil {
				unclaimed = append(unclaimed, o)
			}
		default:
		}
	}
	return unclaimed
}

// File opens a layer's image in the cache.
func (l *Layers) File(id string, s *Source) (*cache.File, error) {
	f, err := l.cache.File(id, l.blob(s))
	if err == nil {
		l.setPolicy(f, s)
	}
	return f, err
}

// Cached reports whether a layer's image is in the cache.
func (l *Layers) Cached(s *Source) bool {
	p, err := l.promiseOf(s)
	return err == nil && l.cachedImage(s, "", p.tableOf(s)) != nil
}

func (l *Layers) setPolicy(f *cache.File, s *Source) {
	if l.opts.PolicyOf != nil {
		f.SetPolicy(l.opts.PolicyOf(s.Repo))
	}
}

func (l *Layers) blob(s *Source) Blob { return l.registry.Blob(s.Repo, s.Descriptor) }

// countedBlob is a layer's blob as the front end wants it.
type countedBlob struct {
	Blob
	n      int64
	served func() // is called once the blob was served by range
}

func (b *countedBlob) Open(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	b.n += n
	r, err := b.Blob.Open(ctx, off, n, 0)
	if err == nil {
		b.served()
	}
	return r, err
}

var _ toc.Blob = (*countedBlob)(nil)

// Describe names the layer in errors.
func (s *Source) Describe() string {
	return fmt.Sprintf("layer %s of %s", s.Descriptor.Digest, s.Image)
}
