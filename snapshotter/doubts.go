package snapshotter

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/remora-storage/remora/blockdev/mounts"
	"github.com/remora-storage/remora/internal/backoff"
)

// A table may name the right layer and wrong digests, or wrong places: then some files of the image are errors, from whatever place their
// bytes come, though containerd would have unpacked the layer. So a layer whose bytes stay wrong is read whole, without its table. Where
// that has the digest of the blob, and the diffID, it is shown instead, once nothing uses what is shown now: a container that has that
// goes on with it.

// A doubt is that of a layer whose bytes are not what its table says. The binding's lock guards it.
type doubt struct {
	waits backoff.Backoff
	next  time.Time // when it is read whole again, after that has failed
	with  *filled   // what is to be shown instead; nil until it is here
}

// doubting has layers read whole whose tables lie.
type doubting struct {
	*base
	bindings  *bindings
	mountings *mountings
	mending   *mending
	detaching *detaching

	oneAtATime sync.Mutex // is held while a layer is mended; taken before all other locks

	mu     sync.Mutex      // guards images
	images map[string]bool // by name in the cache
}

const doubtWhy = "its table says other digests than its bytes have"

// note notes an image whose bytes are wrong. A read must not wait for more.
func (d *doubting) note(image string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.images[image] = true
}

// watch mends doubted layers until ctx ends.
func (d *doubting) watch(ctx context.Context) {
	tick := time.NewTicker(completeCheck)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		d.mu.Lock()
		images := d.images
		d.images = map[string]bool{}
		d.mu.Unlock()
		for _, b := range d.bindings.all() {
			b.mu.Lock()
			doubted, waits := b.doubt, b.doubt != nil && time.Now().Before(b.doubt.next)
			lies := images[b.saved.CacheID] && b.how != notMounted && !b.saved.Source.Whole
			b.mu.Unlock()
			if lies {
				doubted = d.doubt(b)
			}
			if doubted != nil && !waits {
				d.mend(ctx, b, doubted)
			}
		}
	}
}

// repair mends a layer whose table lies for somebody who waits. wrong is what shows that.
func (d *doubting) repair(ctx context.Context, b *binding, wrong error) error {
	doubted := d.doubt(b)
	d.mend(ctx, b, doubted)
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.doubt == nil:
		return nil
	case doubted.with == nil:
		return fmt.Errorf("%w, and it could not be read whole", wrong)
	}
	return fmt.Errorf("%w; it was read whole, and is shown once no container has it", wrong)
}

// doubt returns the doubt of a binding.
func (d *doubting) doubt(b *binding) *doubt {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.doubt == nil {
		b.doubt = &doubt{waits: backoff.Backoff{First: anewFirst, Max: anewMost}}
	}
	return b.doubt
}

// mend reads a doubted layer whole, unless that has been done, and shows it if nothing uses what is shown now.
func (d *doubting) mend(ctx context.Context, b *binding, doubted *doubt) {
	d.oneAtATime.Lock()
	defer d.oneAtATime.Unlock()
	if doubted.with == nil {
		with, err := d.mending.anew(ctx, b, doubtWhy)
		if err != nil {
			b.mu.Lock()
			doubted.next = time.Now().Add(doubted.waits.Next())
			b.mu.Unlock()
			d.log.Error("layer is wrong by its table, and cannot be read without it", "key", b.name(), "err", err)
			return
		}
		b.mu.Lock()
		doubted.with = &with
		b.mu.Unlock()
	}
	was := b.image()
	shown, err := d.show(b, *doubted.with)
	if err != nil {
		d.log.Warn("layer that is right is not shown yet", "key", b.name(), "err", err)
	}
	if !shown {
		return
	}
	d.mending.dropUnused(was)
	d.log.Warn("layer is shown as it is without its table, which lies", "key", b.name(), "digest", b.source().Descriptor.Digest,
		"image", b.source().Image)
	if err := d.mending.rebuildOn(b); err != nil {
		d.log.Warn("what was built on a layer is not mounted anew yet", "key", b.name(), "err", err)
	}
}

// show replaces what a binding shows, unless something uses that.
func (d *doubting) show(b *binding, with filled) (shown bool, err error) {
	d.mountings.mounting.Lock()
	defer d.mountings.mounting.Unlock()
	if used, err := d.detaching.uses(b); used || err != nil {
		return false, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.removed || b.saved.Quarantined != "" {
		b.doubt = nil
		return false, nil
	}
	if b.how != notMounted {
		if err := d.kernel.UnmountUnused(b.fsDir()); err != nil {
			return false, err
		}
		if err := d.mountings.unmountLocked(b); err != nil {
			return false, err
		}
	}
	return true, d.mending.fillLocked(b, with)
}

// uses reports whether something has a binding's layer mounted, or was told of late where it is. The caller lets nobody mount it.
func (d *detaching) uses(b *binding) (used bool, err error) {
	shows, err := d.shownBy(b)
	if err != nil {
		return true, err
	}
	err = d.kernel.Everywhere(func(n mounts.Namespace, m mounts.Mount) {
		active, lowers := d.overlayOf(m)
		d.seen(active)
		used = used || slices.Contains(lowers, b.id) || shows[shown(m)] && !(n.Own && strings.HasPrefix(m.Dir, d.root+"/"))
	})
	d.mu.Lock()
	defer d.mu.Unlock()
	d.forgetAnsweredLocked()
	return used || len(d.answered) > 0, err
}
