package snapshotter

import (
	"context"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots/storage"

	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/snapshotter/layers"
	"github.com/remora-storage/remora/snapshotter/start"
)

// base is what all parts of a Snapshotter stand on.
type base struct {
	root    string
	opts    Options
	log     *slog.Logger
	store   *storage.MetaStore
	images  Images
	layers  *layers.Layers
	starts  *start.Starts
	cache   *cache.Cache
	exports Mounter
	kernel  Kernel
	caps    Capabilities
	telling *telling
	changed atomic.Bool // a layer was pulled or mounted since keepBlobs has looked

	// life ends in Close; started waits for what runs until then.
	life    context.Context
	started sync.WaitGroup
}

// wire ties the parts of a Snapshotter together.
func (s *Snapshotter) wire(b *base) {
	s.base = b
	b.telling = &telling{base: b, waiting: make(chan Event, eventsWaiting)}
	s.bindings = &bindings{base: b, byID: map[string]*binding{}}
	s.breakage = &breakage{base: b, bindings: s.bindings, broken: map[string]string{}}
	s.mountings = &mountings{base: b, bindings: s.bindings}
	s.gating = &gating{base: b, bindings: s.bindings, mountings: s.mountings}
	s.mending = &mending{base: b, bindings: s.bindings, mountings: s.mountings}
	s.losses = &losses{log: b.log}
	s.claims = &claims{base: b, bindings: s.bindings, mountings: s.mountings, losses: s.losses}
	s.claims.asking = asking{metadata: b.opts.Metadata, open: map[string]int{}, known: map[string]map[string]known{}}
	s.mending.asking = &s.claims.asking
	s.releasing = &releasing{base: b, bindings: s.bindings, mountings: s.mountings, mending: s.mending, lostImages: map[string]bool{}}
	s.mountings.gating, s.mountings.mending, s.mountings.releasing = s.gating, s.mending, s.releasing
	s.gating.mending, s.mending.releasing = s.mending, s.releasing
	s.detaching = &detaching{base: b, bindings: s.bindings, mountings: s.mountings, gating: s.gating, answered: map[string]time.Time{}}
	s.recordings = &recordings{base: b, bindings: s.bindings, mountings: s.mountings, byID: map[string]*Recording{}}
	s.reports = &reports{base: b, bindings: s.bindings, breakage: s.breakage, losses: s.losses}
	s.doubting = &doubting{
		base: b, bindings: s.bindings, mountings: s.mountings, mending: s.mending, detaching: s.detaching, images: map[string]bool{},
	}
	s.mending.doubting = s.doubting
	s.chores = &chores{base: b, bindings: s.bindings, mountings: s.mountings, mending: s.mending}
}

func (g *base) snapshotsDir() string { return snapshotsOf(g.root) }

func (g *base) snapshotDir(id string) string { return filepath.Join(g.snapshotsDir(), id) }

func snapshotsOf(root string) string { return filepath.Join(root, "snapshots") }

func (g *base) gatesDir() string { return filepath.Join(g.root, "gates") }

func (g *base) upperPath(id string) string { return filepath.Join(g.snapshotDir(id), "fs") }

func (g *base) workPath(id string) string { return filepath.Join(g.snapshotDir(id), "work") }
