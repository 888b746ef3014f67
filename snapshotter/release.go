package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/snapshotter/layers"
)

// While containerd has an image whose claimed layer is nowhere any more, every pull of it ends in "already exists", and no container
// starts. So such an image is released: its names go, with those of the other images that have the layer, and containerd drops the
// snapshots. The next pull begins anew. So it is with a layer that turned out to be beyond what [limits] allow, also unpacked, wherever it
// is: containerd unpacks it then.

// releasing has images removed whose layers are nowhere any more.
type releasing struct {
	*base
	bindings  *bindings
	mountings *mountings
	mending   *mending

	lostMu     sync.Mutex      // guards the fields below
	lostImages map[string]bool // by name in the cache
	spells     []spell         // of the last hour
	unknown    error           // why those of an earlier life are not known; nil if they are

	released atomic.Uint64 // images
}

// Releases is how images are released. All namespaces of containerd are meant.
type Releases interface {
	// Using returns the images that have a layer of a chainID, or may have it.
	Using(ctx context.Context, chainID digest.Digest) ([]Use, error)
	// Release removes an image, with the snapshots that nothing else uses. It reports whether it did: the name may stand for something
	// else by now, or for nothing.
	Release(ctx context.Context, use *Use) (removed bool, err error)
}

// An ImageName is an image as containerd has it.
type ImageName struct {
	Namespace, Name string
	// Stays says why the image must not be removed: it is pinned, or no registry has all of it; "" if it may be.
	Stays string
}

func (n ImageName) String() string { return n.Namespace + "/" + n.Name }

// goneFor is Options.GoneFor if the options do not say otherwise.
const goneFor = 30 * time.Second

const (
	usersGo    = 10 * time.Second // how long a start that has failed may take to clean up
	usersCheck = 50 * time.Millisecond
	goneCheck  = time.Second // whether something can be released
	// What could not be released is looked at again after as long as it has been gone, within these.
	goneLeast, goneMost = 30 * time.Second, 10 * time.Minute
)

// A goneError says that no place that is known has a layer which can be shown: neither is it an outage, nor do credentials matter.
type goneError struct{ err error }

func (e *goneError) Error() string {
	if layers.IsBeyond(e.err) {
		return "it is beyond [limits]: " + e.err.Error()
	}
	return "it is no longer anywhere: " + e.err.Error()
}
func (e *goneError) Unwrap() error { return e.err }

// gone is what is known of a layer that is nowhere any more.
type gone struct {
	since time.Time // the first answer that said so
	next  time.Time // when it may be released
	why   string    // it is not yet; "" if nothing stands in the way
}

// describe says for status what is known, after why the layer failed, if it did.
func (g *gone) describe(failed string) string {
	said := fmt.Sprintf("what is missing has been nowhere since %s", g.since.Format(time.RFC3339))
	if failed != "" {
		said = failed
	}
	if g.why != "" {
		said += "; its images stay: " + g.why
	}
	return said
}

// noteAttempt notes whether an attempt to open a layer failed since it is nowhere any more.
func (r *releasing) noteAttempt(b *binding, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case errors.As(err, new(*goneError)):
		r.noteGoneLocked(b, err.Error())
	case err == nil:
		r.noteBackLocked(b)
	default:
		b.gone = nil // nobody knows
	}
}

func (r *releasing) noteGoneLocked(b *binding, why string) {
	if now := time.Now(); b.gone == nil {
		b.gone = &gone{since: now, next: now.Add(r.opts.GoneFor)}
	}
	if b.missed == nil {
		src := b.saved.Source
		b.missed = &src
		r.telling.image(EventBroken, &src, why)
	}
}

// noteBackLocked notes that a layer can be had.
func (r *releasing) noteBackLocked(b *binding) {
	if b.missed != nil {
		r.telling.image(EventMended, b.missed, "what was missing can be had again")
	}
	b.gone, b.missed = nil, nil
}

// lost notes that what an image in the cache misses is nowhere any more, as all places have answered a read.
func (r *releasing) lost(image string) {
	if r.opts.Releases == nil {
		return // nobody would ever empty the list
	}
	r.lostMu.Lock()
	defer r.lostMu.Unlock()
	r.lostImages[image] = true
}

// noteLost has the layers of lost images released like those that cannot be opened. It is apart from lost since a read must not wait for
// the locks of layers.
func (r *releasing) noteLost() {
	r.lostMu.Lock()
	lost := r.lostImages
	r.lostImages = map[string]bool{}
	r.lostMu.Unlock()
	if len(lost) == 0 {
		return
	}
	for _, b := range r.bindings.all() {
		b.mu.Lock()
		if lost[b.saved.CacheID] {
			r.noteGoneLocked(b, "a read met a part of it that is no longer anywhere")
		}
		b.mu.Unlock()
	}
}

// releaseGone has images released whose layers are nowhere any more, once that has been so for a while and nothing uses them, until
// ctx ends.
func (r *releasing) releaseGone(ctx context.Context) {
	tick := time.NewTicker(min(goneCheck, max(r.opts.GoneFor, time.Millisecond)))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		r.noteLost()
		for _, b := range r.bindings.all() {
			if !b.isGone(time.Now()) {
				continue
			}
			users, err := r.usersOf(ctx, b.name())
			if err == nil && len(users) > 0 {
				r.noteStays(b, usedBy(users), true)
				continue
			}
			var others []layers.Source
			if err == nil {
				others, err = r.mending.elsewhere(ctx, b)
			}
			if err == nil {
				err = r.stillGone(ctx, b, others)
			}
			if err == nil {
				err = r.release(ctx, b, others, false, func(ImageName) {})
			}
			if ctx.Err() != nil {
				return
			}
			r.noteStays(b, err, false)
		}
	}
}

// isGone reports whether a layer is known to be nowhere any more, and for so long that something is to be done.
func (b *binding) isGone(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.gone != nil && !now.Before(b.gone.next)
}

// isMissed reports whether it was told that a layer is nowhere any more, and not that it is back.
func (b *binding) isMissed() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.missed != nil
}

// noteStays notes why a layer that is nowhere any more stays for now, or that nothing keeps it, and when it is looked at again.
func (r *releasing) noteStays(b *binding, err error, used bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.gone == nil {
		return
	}
	now, why := time.Now(), ""
	if !used { // else it is looked at as soon as nothing uses it
		b.gone.next = now.Add(min(max(now.Sub(b.gone.since), goneLeast), goneMost))
	}
	if err != nil {
		why = err.Error()
	}
	if why != b.gone.why && why != "" && !used { // users may come and go each second
		r.log.Error("images of which a layer is no longer anywhere stay",
			"key", b.saved.Name, "digest", b.saved.Source.Descriptor.Digest, "err", err)
		r.telling.image(EventBroken, &b.saved.Source, "it is no longer anywhere, and its images stay: "+why)
	}
	b.gone.why = why
}

// stillGone returns an error if a layer is somewhere, or may be: what is known of it may be old by now. others are the places beyond its
// own.
func (r *releasing) stillGone(ctx context.Context, b *binding, others []layers.Source) (err error) {
	ctx, cancel := context.WithTimeout(ctx, usersGo+goneLeast)
	defer cancel()
	ours := b.source()
	var isGone bool
	if b.mounted() {
		err = r.layers.Places.AnyHas(ctx, append([]layers.Source{ours}, others...))
		isGone = layers.IsGone(err)
	} else {
		err = r.mountings.ensure(ctx, b)
		isGone = errors.As(err, new(*goneError))
	}
	if err == nil {
		b.mu.Lock()
		r.noteBackLocked(b)
		b.mu.Unlock()
		return fmt.Errorf("layer %s can be had again", ours.Descriptor.Digest)
	}
	if isGone {
		return nil
	}
	return err
}

// release removes the images that have a binding's layer, unless something uses it, or says what an operator is to do who wants to be
// asked. Those of a namespace that has a snapshot of its own are not the binding's: it may be in use, and they are released with it. others
// are the places, beyond its own, where the layer could have been. operator says that somebody has asked for it now. It tells of each
// image.
func (r *releasing) release(ctx context.Context, b *binding, others []layers.Source, operator bool, tell func(ImageName)) error {
	chains, err := r.bindings.chainsOf(ctx, []*binding{b})
	if err != nil {
		return err
	}
	if err := r.awaitNoUsers(ctx, b.name()); err != nil {
		return err
	}
	uses, err := r.opts.Releases.Using(ctx, chains[b])
	if err != nil {
		return fmt.Errorf("which images have layer %s: %w", chains[b], err)
	}
	apart, err := r.bindings.apartFrom(ctx, b, chains[b])
	if err != nil {
		return err
	}
	uses = slices.DeleteFunc(uses, func(use Use) bool { return apart[use.Namespace] })
	lost, err := r.lostOf(ctx, b, others, uses, operator)
	if err != nil {
		return err
	}
	if r.opts.ReleaseAsk && !operator && len(lost) > 0 {
		return fmt.Errorf("remove them by snapctl repair --release %s, and pull again", b.source().Image)
	}
	why := "a layer of it is no longer anywhere"
	if ours := b.source(); r.layers.Imports.Beyond(&ours) != nil {
		why = "a layer of it is beyond [limits], and was claimed before that was known"
	}
	for i := range lost {
		use := &lost[i]
		if err := r.noteRelease(use, operator); err != nil {
			return fmt.Errorf("image %s: %w", use, err)
		}
		removed, err := r.opts.Releases.Release(ctx, use)
		if err != nil {
			return fmt.Errorf("remove image %s: %w", use, err)
		}
		if !removed {
			continue
		}
		r.released.Add(1)
		r.telling.note(Event{EventReleased, use.Namespace, use.Name, b.source().Descriptor.Digest, why})
		r.log.Warn("image was removed from containerd: pull it again", "image", use.Name, "namespace", use.Namespace,
			"digest", b.source().Descriptor.Digest, "reason", why)
		tell(use.ImageName)
	}
	return nil
}

// awaitNoUsers returns when nothing is made of a snapshot. The start that has just failed has one for a moment.
func (r *releasing) awaitNoUsers(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, usersGo)
	defer cancel()
	tick := time.NewTicker(usersCheck)
	defer tick.Stop()
	for {
		users, err := r.usersOf(r.life, name)
		if err != nil || len(users) == 0 {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return usedBy(users)
		}
	}
}

func usedBy(users []string) error {
	return fmt.Errorf("snapshots are made of it: remove their containers (%s)", strings.Join(users, ", "))
}

// usersOf returns the active snapshots and views that are made of a snapshot.
func (r *releasing) usersOf(ctx context.Context, name string) (users []string, err error) {
	err = r.store.WithTransaction(ctx, false, func(ctx context.Context) error {
		all := map[string]snapshots.Info{}
		if err := storage.WalkInfo(ctx, func(_ context.Context, info snapshots.Info) error {
			all[info.Name] = info
			return nil
		}); err != nil {
			return err
		}
		for _, info := range all {
			if info.Kind == snapshots.KindCommitted {
				continue
			}
			for at := info.Parent; at != ""; at = all[at].Parent {
				if at == name {
					users = append(users, info.Name)
				}
			}
		}
		return nil
	})
	slices.Sort(users)
	return users, err
}
