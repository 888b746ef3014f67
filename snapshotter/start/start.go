package start

import (
	"context"
	"encoding/hex"
	"log/slog"
	"maps"
	"path/filepath"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/fs/erofs"
	"github.com/remora-storage/remora/fs/profile"
	"github.com/remora-storage/remora/internal/memory"
	"github.com/remora-storage/remora/snapshotter/layers"
)

// A start is the first start of an image: from the moment its layers become known, what its program
// will read is fetched, in the order in which it will be read.
//
// What that is says a profile: of the image as it was recorded here, or as it is published beside
// the image, or of another build of the repository as it was recorded here. Without one it is what
// the layers themselves say (the eStargz landmark), and without that what the program's entrypoint
// is known to need.
type start struct {
	s    *Starts
	img  layers.Image
	keys map[string]bool // of the layers
	// stop ends it before its time.
	stop context.CancelFunc

	changed chan struct{} // holds a token when files or the profile have changed
	opened  chan struct{} // closed when no layer waits to be opened any more

	mu         sync.Mutex // guards the fields below
	files      map[digest.Digest]*cache.File
	landmarks  map[digest.Digest][]uint32
	profile    *profile.Profile
	share      *memory.Share          // of the profile
	asked      bool                   // the profile is known, or that there is none
	waiting    map[digest.Digest]bool // layers that are not open yet
	ended      bool
	recordings []*cache.Recording
	dirty      bool // the list is to be made anew
	list       []cache.Piece
	at         int
	stale      bool // said that the profile is
}

const (
	startEnds   = 5 * time.Minute        // after which nothing is prefetched for it any more
	profileWait = 250 * time.Millisecond // for a published profile, once a layer is open
	// A profile of which less than this share fits the image is another image's.
	leastMatch = 0.1
)

// Starts are the first starts of images, and the profiles of this node.
type Starts struct {
	layers   *layers.Layers
	registry layers.Registry
	cache    *cache.Cache
	profiles profiles
	hooks    Hooks
	memory   *memory.Budget
	learn    bool
	log      *slog.Logger

	// life ends when Close is to come; started waits for what runs until then.
	life    context.Context
	started sync.WaitGroup

	mu  sync.Mutex        // guards all
	all map[string]*start // by Image.ID
}

// Hooks are what the owner of starts is asked.
type Hooks struct {
	// Known returns the images in the cache, of layers that have a snapshot, which an image's own layers may be read from.
	Known func(img layers.Image) map[digest.Digest]*cache.File
	// Open has all layers of an image opened that may be lazy and have no snapshot, and its start begun.
	Open func(img layers.Image)
}

// Options of Starts.
type Options struct {
	// Memory is shared by all that is decoded; nil for no bound.
	Memory *memory.Budget
	// Learn has the first starts of an image recorded and merged into its profile.
	Learn bool
	Log   *slog.Logger
}

// New returns the starts of a root, whose profiles are kept below it. What is under way ends when life does; Close waits for it.
func New(
	life context.Context, root string, c *cache.Cache, reg layers.Registry, l *layers.Layers, opts Options, hooks Hooks,
) *Starts {
	s := &Starts{
		layers: l, registry: reg, cache: c, hooks: hooks, memory: opts.Memory, learn: opts.Learn, log: opts.Log, life: life,
		profiles: profiles{dir: filepath.Join(root, profilesDir), log: opts.Log}, all: map[string]*start{},
	}
	s.profiles.clean()
	return s
}

// Close returns when nothing is under way any more; life has ended before.
func (s *Starts) Close() { s.started.Wait() }

// Begin starts the start of an image, once while its layers are new.
func (s *Starts) Begin(img layers.Image) {
	ctx, stop := context.WithTimeout(s.life, startEnds)
	st := &start{
		s: s, img: img, keys: s.layers.KeysOf(&img), stop: stop,
		changed: make(chan struct{}, 1), opened: make(chan struct{}), waiting: map[digest.Digest]bool{},
		files: map[digest.Digest]*cache.File{}, landmarks: map[digest.Digest][]uint32{},
	}
	for i := range img.Layers {
		if s.layers.Refuses(&img.Layers[i]) == nil {
			st.waiting[img.Layers[i].Descriptor.Digest] = true
		}
	}
	known := s.hooks.Known(img)
	expected := maps.Clone(st.waiting) // others change that from when they find the start
	s.mu.Lock()
	old := s.all[img.ID()]
	if old != nil && !old.over() && !old.gone() || len(known) >= len(expected) {
		s.mu.Unlock()
		stop()
		return
	}
	if old != nil {
		old.stop()
	}
	s.all[img.ID()] = st
	s.mu.Unlock()
	var beginnings []*layers.Ahead // before any layer is opened, so that its image is filled from there
	for i := range img.Layers {
		l := &img.Layers[i]
		if !expected[l.Descriptor.Digest] || known[l.Descriptor.Digest] != nil || s.layers.Cached(l) {
			continue
		}
		if a := s.layers.Aheads.Add(l); a != nil {
			beginnings = append(beginnings, a)
		}
	}
	for d, f := range known {
		st.add(d, f, nil, false)
	}
	s.started.Go(func() {
		defer stop()
		var asking sync.WaitGroup
		asking.Go(func() { s.layers.Aheads.Fetch(ctx, beginnings, st.opened) })
		asking.Go(func() { st.askProfile(ctx) })
		st.run(ctx)
		asking.Wait()
		st.dropAheads()
		st.end()
		s.layers.Indexes.Publish(img)
		st.learn(s.life)
	})
}

// end lets go of what only a start needs.
func (st *start) end() {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.ended = true
	st.profile, st.list, st.at = nil, nil, 0
	st.share.Release()
}

// dropAheads lets go of the beginnings of blobs that were fetched before it was known what they are.
func (st *start) dropAheads() {
	st.mu.Lock()
	defer st.mu.Unlock()
	for i := range st.img.Layers {
		l := &st.img.Layers[i]
		wasted, ok := st.s.layers.Aheads.Drop(l)
		if f := st.files[l.Descriptor.Digest]; f != nil && ok {
			f.AddFetched(wasted)
			st.s.layers.Sources.Add(f, l)
		}
	}
}

// gone reports whether the image was removed.
func (st *start) gone() bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	for _, f := range st.files {
		if f.Removed() {
			return true
		}
	}
	return false
}

// over reports whether the image may be started anew: what this start knew was removed.
func (st *start) over() bool {
	st.mu.Lock()
	ended, empty := st.ended, len(st.files) == 0
	st.mu.Unlock()
	return ended && (empty || st.gone())
}

// Starting reports whether the first start of an image is under way.
func (s *Starts) Starting(image string) bool {
	s.mu.Lock()
	st := s.all[image]
	s.mu.Unlock()
	if st == nil {
		return false
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	return !st.ended
}

// Sweep ends and forgets starts whose images are gone.
func (s *Starts) Sweep() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for m, st := range s.all {
		if st.gone() {
			st.stop()
		}
		if st.over() {
			delete(s.all, m)
		}
	}
}

// Built tells the starts of a layer's image that was made now.
func (s *Starts) Built(src *layers.Source, f *cache.File, landmark []uint32) {
	s.tell(src, f, landmark, true)
}

// Found tells the starts of a layer's image that was in the cache.
func (s *Starts) Found(src *layers.Source, f *cache.File) { s.tell(src, f, nil, false) }

func (s *Starts) tell(src *layers.Source, f *cache.File, landmark []uint32, fresh bool) {
	for _, st := range s.startsWith(src) {
		st.add(src.Descriptor.Digest, f, landmark, fresh)
	}
}

// startsWith returns the starts of images that have a layer from this source, and not from somebody else's under the same
// digest.
func (s *Starts) startsWith(src *layers.Source) (all []*start) {
	key := s.layers.KeyOf(src)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.all {
		if st.keys[key] {
			all = append(all, st)
		}
	}
	return all
}

func (st *start) add(d digest.Digest, f *cache.File, landmark []uint32, fresh bool) {
	st.mu.Lock()
	defer st.mu.Unlock()
	delete(st.waiting, d)
	if st.files[d] == f {
		return
	}
	st.files[d], st.landmarks[d] = f, landmark
	if fresh && st.s.learn {
		st.recordings = append(st.recordings, f.RecordUses())
	}
	st.kickLocked()
}

// Unreadable tells the starts of a layer that will not be read here.
func (s *Starts) Unreadable(src *layers.Source) {
	d := src.Descriptor.Digest
	for _, st := range s.startsWith(src) {
		st.mu.Lock()
		if st.waiting[d] {
			delete(st.waiting, d)
			st.kickLocked()
		}
		st.mu.Unlock()
	}
}

// kickLocked has the list made anew.
func (st *start) kickLocked() {
	st.dirty = true
	if len(st.waiting) == 0 {
		select {
		case <-st.opened:
		default:
			close(st.opened)
		}
	}
	select {
	case st.changed <- struct{}{}:
	default:
	}
}

// run prefetches until everything on the list is here and no layer is missing any more.
func (st *start) run(ctx context.Context) {
	ctx = cache.AskedBy(ctx, st.img.Repo)
	began := time.Now()
	for {
		select {
		case <-st.changed:
		case <-ctx.Done():
			return
		}
		st.awaitProfile(ctx)
		if err := st.s.cache.Prefetch(ctx, st.next); err != nil {
			st.s.log.Warn("prefetch ended early", "image", st.img.Ref, "err", err)
		}
		st.mu.Lock()
		done := len(st.waiting) == 0 && st.asked && !st.dirty
		unknown, pieces := len(st.list) == 0, st.at
		st.mu.Unlock()
		if done && unknown && !st.complete() {
			st.predict(ctx)
		}
		if done {
			st.s.log.Debug("prefetched", "image", st.img.Ref, "pieces", pieces, "took", time.Since(began).Round(time.Millisecond))
			return
		}
	}
}

// complete reports whether all layers that are read here are here whole.
func (st *start) complete() bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	for _, f := range st.files {
		if !f.Complete() {
			return false
		}
	}
	return true
}

// awaitProfile gives a published profile the time of a round trip or so, once there is a layer.
func (st *start) awaitProfile(ctx context.Context) {
	wait := time.NewTimer(profileWait)
	defer wait.Stop()
	for {
		st.mu.Lock()
		ready := st.asked || len(st.files) == 0
		st.mu.Unlock()
		if ready {
			return
		}
		select {
		case <-st.changed:
		case <-wait.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// next hands out what comes next, about n packed bytes of it.
func (st *start) next(n int64) (some []cache.Piece) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.dirty {
		st.list, st.at, st.dirty = st.makeListLocked(), 0, false // what is here or on its way costs nothing
	}
	for ; st.at < len(st.list) && n > 0; st.at++ {
		p := st.list[st.at]
		if p.File.Wants(p.Unit) {
			some = append(some, p)
			n -= p.File.UnitLen(p.Unit)
		}
	}
	return some
}

func (st *start) makeListLocked() []cache.Piece {
	if st.profile != nil {
		if list, ok := st.byProfileLocked(); ok {
			return list
		}
	}
	var list []cache.Piece
	for i := range st.img.Layers { // the lowest first: it has the loader and the C library
		d := st.img.Layers[i].Descriptor.Digest
		for _, u := range st.landmarks[d] {
			list = append(list, cache.Piece{File: st.files[d], Unit: u})
		}
	}
	return st.bounded(list)
}

// byProfileLocked turns the profile into units of the layers that are known.
func (st *start) byProfileLocked() (list []cache.Piece, ok bool) {
	var files []*cache.File // the topmost first
	for i := len(st.img.Layers) - 1; i >= 0; i-- {
		if f := st.files[st.img.Layers[i].Descriptor.Digest]; f != nil {
			files = append(files, f)
		}
	}
	trees := map[*cache.File]*erofs.Reader{}
	matched := 0
	for i := range st.profile.Entries {
		pieces := locate(&st.profile.Entries[i], files, trees, len(st.waiting) == 0)
		if len(pieces) > 0 {
			matched++
		}
		list = append(list, pieces...)
	}
	if len(st.waiting) == 0 && float64(matched) < leastMatch*float64(len(st.profile.Entries)) {
		if !st.stale {
			st.stale = true
			st.s.log.Warn("profile ignored: it is another image's", "image", st.img.Ref, "manifest", st.img.Target.Digest,
				"entries", len(st.profile.Entries), "found", matched)
		}
		return nil, false
	}
	return st.bounded(list), true
}

// locate finds an entry's units: by content in any layer, or else, if all layers are known, by path
// in the topmost that has it.
func locate(e *profile.Entry, files []*cache.File, trees map[*cache.File]*erofs.Reader, all bool) (pieces []cache.Piece) {
	var sum [32]byte
	if n, err := hex.Decode(sum[:], []byte(e.Digest.Encoded())); err == nil && n == len(sum) {
		for _, f := range files {
			if x, ok := f.Find(sum, e.Len); ok {
				return []cache.Piece{{File: f, Unit: x.Unit}}
			}
		}
	}
	for _, f := range files {
		if !all {
			break
		}
		if trees[f] == nil {
			var err error
			if trees[f], err = treeOf(f); err != nil {
				continue // no profile is worth failing for
			}
		}
		n, found, _, _, err := trees[f].Find(e.Path)
		if err != nil || !found {
			continue
		}
		if n.Mode&unix.S_IFMT == unix.S_IFREG && e.Off < n.Size {
			f.Extents(n.Data+e.Off, min(e.Len, n.Size-e.Off), func(x cache.Extent) bool {
				pieces = append(pieces, cache.Piece{File: f, Unit: x.Unit})
				return true
			})
		}
		return pieces
	}
	return nil
}

// bounded keeps a list from filling more than a quarter of the cache.
func (st *start) bounded(list []cache.Piece) []cache.Piece {
	_, limit := st.s.cache.Usage()
	return bound(list, limit)
}

func bound(list []cache.Piece, limit int64) []cache.Piece {
	if limit == 0 {
		return list
	}
	left := limit / 4
	counted := map[cache.Piece]bool{} // a unit may have very many extents, and be listed for each of them
	for i, p := range list {
		if counted[p] {
			continue
		}
		counted[p] = true
		if left -= p.File.UnitBytes(p.Unit); left < 0 {
			return list[:i]
		}
	}
	return list
}
