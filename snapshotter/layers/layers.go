package layers

import (
	"context"
	"errors"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/internal/fair"
	"github.com/remora-storage/remora/remote/registry"
)

const (
	openingKept = 2 * time.Minute // an index that nobody claimed

	// Of all registries, of one alone, and of one repository alone.
	openAtOnce, openAtOnceOfOne, openAtOnceWithin       = 48, 32, 16
	importAtOnce, importAtOnceOfOne, importAtOnceWithin = 36, 24, 12
)

// Layers opens the indexes of remote layers, builds their images, and keeps both while they are
// of use.
type Layers struct {
	promises // how each of them is read
	refusals *refusals

	Places  *Places
	Proofs  *Proofs
	Imports *Imports
	Indexes *Indexes
	Sources *Sources
	Aheads  *Aheads
	Granted *Grants
	Tracer  *Tracer

	cache   *cache.Cache
	hooks   Hooks
	log     *slog.Logger
	decoder *decoder
	slots   *fair.Pool[fair.User] // bounds how many indexes are read at once, and with that memory

	// life ends when Close is to come; started waits for what runs until then.
	life    context.Context
	started sync.WaitGroup

	building singleflight.Group // by the image's name
	fillMu   sync.Mutex         // one image that depends on the layers below is built at a time

	mu       sync.Mutex          // guards the fields below; taken after those of who calls
	openings map[string]*Opening // by KeyOf
	active   int                 // openings under way
	idle     time.Time           // when there was none any more
	garbage  bool                // something was opened since memory was given back
}

// Refuses says why containerd is to unpack a layer; nil if it is read here. The error wraps ErrNotLazy.
func (l *Layers) Refuses(s *Source) error {
	if err := l.promises.refuses(s); err != nil {
		return err
	}
	return l.refusals.of(s)
}

// Open starts opening a layer, or joins who does. An opening that failed a moment ago is returned as it is.
func (l *Layers) Open(s Source) *Opening { return l.open(s, l.KeyOf(&s), false, failureHolds) }

// OpenAgain is Open for somebody who cannot do without: what has failed is tried again.
func (l *Layers) OpenAgain(s Source) *Opening { return l.open(s, l.KeyOf(&s), false, 0) }

// open starts opening a layer, or joins who does. An opening that failed less than failedFor
// ago is returned as it is. whole has the layer read whole, whatever table its manifest names.
func (l *Layers) open(s Source, key string, whole bool, failedFor time.Duration) *Opening {
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
	o := &Opening{src: s, key: key, whole: whole, done: make(chan struct{}), stop: cancel, proof: newProof()}
	l.openings[key] = o
	l.active++
	l.started.Go(func() {
		defer close(o.done)
		defer l.opened()
		defer cancel()
		began := time.Now()
		ctx, spare := registry.Sparing(ctx) // who answers a range with the whole blob has begun to send what is imported
		defer spare.Close()
		o.err = l.fill(registry.TellAsked(ctx, o.proof.ask), o)
		o.ended = time.Now()
		if o.err != nil {
			l.Proofs.failures.note(s.Repo, o.err)
			if !whole { // that it cannot be read whole says nothing of its table
				l.refusals.note(&s, o.err)
			}
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

// Image opens a layer and returns its image. Where that depends on the layers below it returns the layer's tree instead, for BuildOn. It
// waits for an opening that is under way, and starts one anew that has failed.
func (l *Layers) Image(ctx context.Context, s *Source) (*cache.File, *Tree, error) {
	return l.image(ctx, s, l.KeyOf(s), false)
}

// WholeImage is Image of a layer that is read whole, so that nobody's table decides what it shows.
func (l *Layers) WholeImage(ctx context.Context, s *Source) (*cache.File, *Tree, error) {
	return l.image(ctx, s, l.wholeKeyOf(s), true)
}

func (l *Layers) image(ctx context.Context, s *Source, key string, whole bool) (*cache.File, *Tree, error) {
	for range 3 {
		o := l.open(*s, key, whole, 0)
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

// Forget drops what is kept of a layer's openings, so that its index can be collected.
func (l *Layers) Forget(s *Source) {
	keys := []string{l.KeyOf(s), l.wholeKeyOf(s)}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, key := range keys {
		if o := l.openings[key]; o != nil {
			o.gone.Store(true)
			l.dropLocked(o)
		}
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
	f, err := l.cache.File(id, l.Places.blob(s))
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

// Abandon ends a layer's opening that nobody waits for, unless it is proven by now or has ended.
func (l *Layers) Abandon(s *Source) {
	key := l.KeyOf(s)
	l.mu.Lock()
	defer l.mu.Unlock()
	if o := l.openings[key]; o != nil && !o.hasEnded() && !o.proof.isShown() {
		l.dropLocked(o)
	}
}
