package snapshotter

import (
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
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/fs/erofs"
	"github.com/remora-storage/remora/fs/format/toc"
	"github.com/remora-storage/remora/fs/layout"
	"github.com/remora-storage/remora/remote"
)

// A Registry gives access to blobs by range.
type Registry interface {
	Blob(repo remote.Repository, dgst digest.Digest, size int64) *remote.Blob
}

const (
	openTimeout = 2 * time.Minute // for an index, all retries included
	openingKept = 2 * time.Minute // an index that nobody claimed
	// A layer that has just failed to open takes the ordinary path: claimed, it would fail when
	// it is mounted.
	failureHolds = 30 * time.Second
	tryAgain     = time.Duration(0)

	openAtOnce    = 16
	completeCheck = time.Second
)

// layers opens the indexes of remote layers, builds their images, and keeps both while they are
// of use.
type layers struct {
	registry Registry
	cache    *cache.Cache
	trust    Trust
	limits   layout.Limits
	policyOf func(remote.Repository) cache.Policy
	log      *slog.Logger
	tracer   tracer
	aheads   aheads
	// built is told of images that are new in the cache, with the units that the layer's author wants
	// prefetched.
	built func(layer digest.Digest, f *cache.File, landmark []uint32)
	// unreadable is told of layers that could not be opened.
	unreadable func(layer digest.Digest)

	// life ends when the snapshotter closes; started waits for what runs until then.
	life    context.Context
	started *sync.WaitGroup

	slots chan struct{} // bounds how many layers are opened at once, and with that memory

	mu       sync.Mutex // guards the fields below; taken after Snapshotter.mu
	openings map[digest.Digest]*opening
	active   int  // openings under way
	garbage  bool // something was opened since memory was given back
}

// An opening is one layer's index on its way here.
type opening struct {
	src  Source
	done chan struct{}
	// after done
	err   error
	index *index      // nil if the image is built already
	file  *cache.File // set if the image does not depend on the layers below
	ended time.Time
}

// plainID is the name in the cache of a layer's image that does not depend on the layers below.
func plainID(s *Source) string { return s.Descriptor.Digest.Encoded() }

// open starts opening a layer, or joins who does. An opening that failed less than failedFor
// ago is returned as it is.
func (l *layers) open(s Source, failedFor time.Duration) *opening {
	l.mu.Lock()
	defer l.mu.Unlock()
	if o := l.openings[s.Descriptor.Digest]; o != nil {
		select {
		case <-o.done:
			if o.err == nil || time.Since(o.ended) < failedFor {
				return o
			}
		default:
			return o
		}
	}
	o := &opening{src: s, done: make(chan struct{})}
	l.openings[s.Descriptor.Digest] = o
	l.active++
	l.started.Go(func() {
		defer close(o.done)
		defer l.opened()
		l.slots <- struct{}{}
		defer func() { <-l.slots }()
		ctx, cancel := context.WithTimeout(l.life, openTimeout)
		defer cancel()
		began := time.Now()
		o.err = l.fill(ctx, o)
		o.ended = time.Now()
		if o.err != nil {
			l.unreadable(s.Descriptor.Digest)
			l.log.Warn("layer not opened", "digest", s.Descriptor.Digest, "image", s.Image, "err", o.err)
			return
		}
		l.log.Info("layer opened", "digest", s.Descriptor.Digest, "image", s.Image, "took", time.Since(began).Round(time.Millisecond))
	})
	return o
}

// opened notes the end of an opening.
func (l *layers) opened() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.active--
	l.garbage = true
}

// fill reads the index, and builds the image unless it depends on the layers below.
func (l *layers) fill(ctx context.Context, o *opening) error {
	promised, err := l.trust.indexOf(&o.src)
	if err != nil {
		return err
	}
	blob := l.blob(&o.src)
	if f, err := l.file(plainID(&o.src), &o.src); err == nil {
		o.file = f
		return nil
	}
	counted := &countedBlob{Blob: blob.Blob}
	began := time.Now()
	x, err := openIndex(ctx, counted, promised, o.src.Descriptor, l.limits)
	l.tracer.end(began, Span{Kind: "index", Digest: o.src.Descriptor.Digest, Len: counted.n, Err: err})
	if err != nil {
		return err
	}
	if len(x.layout.Implicit) > 0 {
		o.index = x
		return nil
	}
	o.file, err = l.build(plainID(&o.src), &o.src, x)
	if o.file != nil {
		o.file.AddFetched(counted.n)
	}
	return err
}

// build writes a layer's image into the cache and tells who wants to know.
func (l *layers) build(id string, s *Source, index *index) (*cache.File, error) {
	var uuid [16]byte
	sum := sha256.Sum256([]byte(id))
	copy(uuid[:], sum[:])
	began := time.Now()
	plan, err := erofs.NewPlan(index.layout, uuid)
	if err != nil {
		return nil, notLazy("%w", err)
	}
	spec, err := plan.Spec(index.tail)
	if err != nil {
		return nil, notLazy("%w", err)
	}
	f, err := l.cache.Create(id, spec, l.aheads.source(s.Descriptor.Digest, l.blob(s)))
	l.tracer.end(began, Span{Kind: "image", Digest: s.Descriptor.Digest, Len: plan.MetaSize, Err: err})
	if errors.Is(err, cache.ErrNoRoom) {
		return nil, notLazy("%w", err)
	}
	if err != nil {
		return nil, err
	}
	l.setPolicy(f, s)
	l.built(s.Descriptor.Digest, f, index.layout.Prefetch)
	return f, nil
}

// buildOn builds the image of a layer with implicit directories, given what lies below it.
func (l *layers) buildOn(s *Source, index *index, below func(string) (layout.Attributes, bool, error)) (*cache.File, error) {
	taken := sha256.New()
	if err := index.layout.Fill(func(path string) (layout.Attributes, bool, error) {
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
	id := plainID(s) + "-" + hex.EncodeToString(taken.Sum(nil)[:8])
	if f, err := l.file(id, s); err == nil {
		return f, nil
	}
	return l.build(id, s, index)
}

// forget drops what is kept of an opening, so that its index can be collected.
func (l *layers) forget(d digest.Digest) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.openings, d)
	l.garbage = true
}

// sweep drops openings that nobody came for, and gives back the memory that decoding indexes
// took, which is many times what stays.
func (l *layers) sweep() {
	l.mu.Lock()
	idle := l.garbage && l.active == 0
	if idle {
		l.garbage = false
	}
	l.dropOldLocked()
	l.mu.Unlock()
	if idle {
		debug.FreeOSMemory()
	}
}

func (l *layers) dropOldLocked() {
	for d, o := range l.openings {
		select {
		case <-o.done:
			if time.Since(o.ended) > openingKept {
				delete(l.openings, d)
			}
		default:
		}
	}
}

// file opens a layer's image in the cache.
func (l *layers) file(id string, s *Source) (*cache.File, error) {
	f, err := l.cache.File(id, l.blob(s))
	if err == nil {
		l.setPolicy(f, s)
	}
	return f, err
}

// cached reports whether a layer's image is in the cache.
func (l *layers) cached(s *Source) bool {
	f, err := l.file(plainID(s), s)
	return err == nil && f != nil
}

func (l *layers) setPolicy(f *cache.File, s *Source) {
	if l.policyOf != nil {
		f.SetPolicy(l.policyOf(s.Repo))
	}
}

// layerBlob is a layer's blob as the cache wants it.
type layerBlob struct {
	*remote.Blob
	place string
}

// Place implements cache.Placed: requests to one registry are counted together.
func (b layerBlob) Place() string { return b.place }

func (l *layers) blob(s *Source) layerBlob {
	return layerBlob{l.registry.Blob(s.Repo, s.Descriptor.Digest, s.Descriptor.Size), s.Repo.Host}
}

// countedBlob is a layer's blob as the front end wants it.
type countedBlob struct {
	*remote.Blob
	n int64
}

func (b *countedBlob) Open(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	b.n += n
	return b.Blob.Open(ctx, off, n, 0)
}

var _ toc.Blob = (*countedBlob)(nil)

func describe(s *Source) string { return fmt.Sprintf("layer %s of %s", s.Descriptor.Digest, s.Image) }
