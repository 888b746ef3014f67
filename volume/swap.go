package volume

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/remora-storage/remora/internal/backoff"
	"github.com/remora-storage/remora/remote/store"
)

// ErrNotFound says that a store has no such volume.
var ErrNotFound = errors.New("no such volume")

// readHead returns a volume's head and its version.
func readHead(ctx context.Context, st store.Store, id ID) (*Head, string, error) {
	p, o, err := st.Get(ctx, headKey(id), 0, -1)
	if errors.Is(err, store.ErrNoObject) {
		return nil, "", fmt.Errorf("volume %s: %w", id, ErrNotFound)
	}
	if err != nil {
		return nil, "", err
	}
	h, err := decodeHead(p)
	if err != nil {
		return nil, "", fmt.Errorf("volume %s: %w", id, err)
	}
	if h.ID != id {
		return nil, "", fmt.Errorf("volume %s: head: %w: it is that of %s", id, ErrCorrupt, h.ID)
	}
	return h, o.Version, nil
}

// swapHead replaces the head old, of a given version, by next, and returns the version of what is there then and whether
// next was written. It does not return before that is certain, or ctx ends: an answer that is lost leaves open whether
// the head was replaced, and whether it will be. Only seeing next or what followed it, or a later swap from the same
// version that succeeds, closes that.
func swapHead(
	ctx context.Context, st store.Store, old, next *Head, version string, wait waiter,
) (current *Head, at string, swapped bool, err error) {
	if err := next.succeeds(old); err != nil {
		return nil, "", false, err
	}
	p, err := next.encode()
	if err != nil {
		return nil, "", false, err
	}
	err = wait.until(ctx, "write the head", func() error {
		o, err := st.PutIfMatch(ctx, headKey(next.ID), p, version)
		if err == nil {
			current, at, swapped = next, o.Version, true
			return nil
		}
		if !errors.Is(err, store.ErrChanged) {
			return err // the same bytes from the same version once more: at most one of them is carried out
		}
		h, v, err := readHead(ctx, st, next.ID)
		if err != nil {
			return err
		}
		current, at, swapped = h, v, h.wrote(next.Nonce)
		return nil
	})
	return current, at, swapped, err
}

// A waiter repeats what fails for a reason that may pass.
type waiter struct {
	log *slog.Logger
	// waits is told why something waits, and nil when it does not any more. It may be nil.
	waits func(what string, err error)
	most  time.Duration    // between two tries; 0 for the default
	ends  func(error) bool // which errors end it; nil for those that stay
}

// quiet returns a waiter that tells nobody.
func quiet() waiter { return waiter{log: slog.New(slog.DiscardHandler)} }

const (
	firstPause = 50 * time.Millisecond
	longPause  = 5 * time.Second
	noAnswer   = 3 * time.Second // after which a request is said to wait
)

// until calls try until it succeeds, ctx ends, or it fails in a way that no repetition helps.
func (w waiter) until(ctx context.Context, what string, try func() error) error {
	waits := backoff.Backoff{First: firstPause, Max: cmp.Or(w.most, longPause)}
	ends := w.ends
	if ends == nil {
		ends = hopeless
	}
	var since time.Time
	for {
		slow, err := w.watched(what, try)
		if err == nil || ends(err) {
			if slow || !since.IsZero() {
				w.tell(what, nil)
			}
			if !since.IsZero() && err == nil {
				w.log.Info("the store answers again", "op", what, "after", time.Since(since).Round(time.Millisecond))
			}
			return err
		}
		if ctx.Err() != nil {
			w.tell(what, nil)
			return fmt.Errorf("%s: %w (%w)", what, context.Cause(ctx), err)
		}
		if since.IsZero() {
			since = time.Now()
		} else if waits.Longest() {
			w.log.Warn("the store does not do what it must; trying again", "op", what, "err", err)
		}
		w.tell(what, err)
		_ = backoff.Sleep(ctx, waits.Next()) // if ctx has ended, the next try shows how
	}
}

// errNoAnswer is what is told of a store that lets requests hang.
var errNoAnswer = fmt.Errorf("the store has not answered for %v", noAnswer)

// watched calls try, and tells meanwhile if that takes long. slow says that it did.
func (w waiter) watched(what string, try func() error) (slow bool, err error) {
	var mu sync.Mutex // guards the variables below
	ended := false
	t := time.AfterFunc(noAnswer, func() {
		mu.Lock()
		defer mu.Unlock()
		if !ended {
			slow = true
			w.tell(what, errNoAnswer)
		}
	})
	err = try()
	t.Stop()
	mu.Lock()
	defer mu.Unlock()
	ended = true
	return slow, err
}

// setWaiting notes why something waits, or that it no longer does.
func setWaiting(all map[string]waitState, what string, err error) {
	if err == nil {
		delete(all, what)
		return
	}
	w, ok := all[what]
	if !ok {
		w.since = time.Now()
	}
	w.err = err
	all[what] = w
}

func (w waiter) tell(what string, err error) {
	if w.waits != nil {
		w.waits(what, err)
	}
}

// hopeless tells the errors that stay from those that pass: a store that is full, out of reach, or wants other
// credentials may have room, answer or get them. Nor is anything known of one that is away.
func hopeless(err error) bool {
	for _, e := range []error{
		ErrCorrupt, ErrVersion, ErrNotFound, ErrFenced, ErrOwned, ErrJournal,
		store.ErrNoObject, store.ErrExists, store.ErrUnsafe, store.ErrNested,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
