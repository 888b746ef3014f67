package layers

import (
	"context"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/golang/groupcache/lru"
	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/fs/format"
	"github.com/remora-storage/remora/fs/layout"
	"github.com/remora-storage/remora/internal/fair"
	"github.com/remora-storage/remora/internal/memory"
	"github.com/remora-storage/remora/remote/registry"
)

// Options say how layers are read. The zero value works.
type Options struct {
	// Formats are those that layers may have. What none of them vouches for is imported.
	Formats []format.Format
	Trust   Trust
	Limits  layout.Limits
	// TrustOf says what is proven of a repository's layers before they are used; nil takes the zero policy for all.
	TrustOf func(registry.Repository) TrustPolicy
	// Memory is shared by all that is decoded; nil for no bound.
	Memory *memory.Budget
	// PolicyOf says what becomes of reads while a repository does not answer; nil takes the
	// cache's own policy for all.
	PolicyOf func(registry.Repository) cache.Policy
	// ImportOf says how a repository's layers are imported; nil takes the zero policy for all.
	ImportOf func(registry.Repository) ImportPolicy
	// ProofWait is how long a Prepare waits until a layer is proven; 0 for ten measured round trips, but no more than a second.
	ProofWait time.Duration
	// IndexOf says what becomes of the indexes of a repository's layers; nil takes the zero policy for all.
	IndexOf func(registry.Repository) IndexPolicy
	// Blobs are those in containerd's content store; nil for none.
	Blobs Blobs
	// Log is told what becomes of layers; nil for nobody.
	Log *slog.Logger
}

// Hooks are what the owner of layers is told and asked. They must return soon, but for Places; any may be nil.
type Hooks struct {
	// Built is told of images that are new in the cache, with the units that the layer's author wants prefetched.
	Built func(s *Source, f *cache.File, landmark []uint32)
	// Unclaimed is told of layers that were imported a while ago, whether somebody came for them or not.
	Unclaimed func(s *Source, f *cache.File)
	// Places returns where the blob of an image in the cache may be, beyond the repositories that it is read from.
	Places func(ctx context.Context, image string) []Source
	// Lost is told of images of which no place has what a read wants. It is called in that read, so it must not wait.
	Lost func(image string)
	// Doubted is told of images whose table has other digests than the bytes, from wherever they come. It is called in a read, too.
	Doubted func(image string)
	// Unreadable is told of layers that could not be opened.
	Unreadable func(s *Source)
}

// New returns the layers of a root, whose indexes are kept below it. What is under way ends when life does; Close waits for it.
func New(life context.Context, root string, c *cache.Cache, reg Registry, opts Options, hooks Hooks) *Layers {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.TrustOf == nil {
		opts.TrustOf = func(registry.Repository) TrustPolicy { return TrustPolicy{} }
	}
	if opts.ImportOf == nil {
		opts.ImportOf = func(registry.Repository) ImportPolicy { return ImportPolicy{} }
	}
	if opts.IndexOf == nil {
		opts.IndexOf = func(registry.Repository) IndexPolicy { return IndexPolicy{} }
	}
	if hooks.Built == nil {
		hooks.Built = func(*Source, *cache.File, []uint32) {}
	}
	if hooks.Unclaimed == nil {
		hooks.Unclaimed = func(*Source, *cache.File) {}
	}
	if hooks.Places == nil {
		hooks.Places = func(context.Context, string) []Source { return nil }
	}
	if hooks.Lost == nil {
		hooks.Lost = func(string) {}
	}
	if hooks.Doubted == nil {
		hooks.Doubted = func(string) {}
	}
	if hooks.Unreadable == nil {
		hooks.Unreadable = func(*Source) {}
	}
	l := &Layers{
		promises: promises{&opts}, Tracer: new(Tracer), cache: c, hooks: hooks, log: opts.Log, life: life,
		slots: fair.NewTieredPool(openAtOnce, openAtOnceOfOne, openAtOnceWithin), openings: map[string]*Opening{},
	}
	l.refusals = openRefusals(root, &opts)
	how := &l.promises
	l.Places = &Places{registry: reg, blobs: opts.Blobs, memory: opts.Memory}
	l.Proofs = &Proofs{places: l.Places, wait: opts.ProofWait, life: l.life, started: &l.started}
	l.decoder = &decoder{memory: opts.Memory, limits: opts.Limits, proofs: l.Proofs}
	l.Aheads = &Aheads{
		promises: how, places: l.Places, memory: opts.Memory, tracer: l.Tracer, all: map[string]*Ahead{},
		shares: fair.Tiers{Limit: maxAheadBytes, Most: maxAheadOfOne, Within: maxAheadWithin},
	}
	l.Sources = &Sources{
		promises: how, places: l.Places, aheads: l.Aheads, more: hooks.Places, lost: hooks.Lost, doubted: hooks.Doubted,
		all: map[string]*repositories{},
	}
	l.Granted = &Grants{opts: &opts, places: l.Places, sources: l.Sources, cache: c}
	c.CopyOnly(l.Granted.MayCopy)
	l.Indexes = &Indexes{
		dir: filepath.Join(root, indexesDir), opts: &opts, promises: how, places: l.Places, proofs: l.Proofs, decoder: l.decoder,
		granted: l.Granted, tracer: l.Tracer, cached: l.Cached, log: opts.Log, life: life, started: &l.started,
		published: map[string]*publication{}, making: map[digest.Digest]chan struct{}{},
	}
	l.Imports = &Imports{
		opts: &opts, places: l.Places, proofs: l.Proofs, decoder: l.decoder, indexes: l.Indexes, granted: l.Granted, cache: c, tracer: l.Tracer,
		pool: fair.NewTieredPool(importAtOnce, importAtOnceOfOne, importAtOnceWithin), log: opts.Log, started: &l.started,
		refusals: l.refusals, refused: lru.New(unpackRefusedKept),
	}
	l.Indexes.clean()
	return l
}

// Close returns when nothing is under way any more; life has ended before.
func (l *Layers) Close() {
	l.started.Wait()
	l.Indexes.Sweep(func(string) bool { return false })
}
