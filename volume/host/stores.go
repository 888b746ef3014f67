package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/remora-storage/remora/internal/backoff"
	"github.com/remora-storage/remora/remote/store"
	"github.com/remora-storage/remora/volume"
)

// hostStore is a store that this node uses. Several URLs may lead to it: one spelled in two ways, or one that another took the
// place of. It is known by the id in its mark, and a node has one lease in it.
type hostStore struct {
	store.Store
	id         volume.ID
	url        string // the first that led to it
	meter      *meter
	leaseMeter *meter // of the requests for the node's lease
	member     *volume.Member

	// of Host.mu:
	unsafe   error // what the last probe found; nil if nothing
	warnings int   // of the last look at its settings
}

// Unwrap returns the store inside, for store.As.
func (s *hostStore) Unwrap() store.Store { return s.Store }

// ErrCopy says that a store has the id of another one that this node uses, and is not it.
var ErrCopy = errors.New("it is a copy of that store: attach its volumes on a node that does not know the other one")

const (
	// patience is how long a store may take to say which one it is.
	patience = 5 * time.Second
	// provePatience is how long it may take to see whether two URLs lead to one store. After a reboot the longest lease of before has
	// to end, and a quarter more.
	provePatience = 90 * time.Second
)

// OpenStore returns a store by its URL as it is: nobody may have prepared it.
func (h *Host) OpenStore(url string) (store.Store, error) { return h.opts.OpenStore(url) }

// Store returns a store by its URL. volume.ErrNoStore, store.ErrAway, ErrCopy.
func (h *Host) Store(ctx context.Context, url string) (store.Store, error) {
	s, err := finder{h}.find(ctx, url)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// A finder finds stores by their URLs.
type finder struct{ h *Host }

func (f finder) find(ctx context.Context, url string) (*hostStore, error) {
	h := f.h
	if s := f.known(url); s != nil {
		return s, nil
	}
	opened, err := h.opts.OpenStore(url)
	if err != nil {
		return nil, err
	}
	asking, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	id, err := volume.StoreID(asking, opened)
	if err != nil && asking.Err() != nil {
		return nil, fmt.Errorf("%s does not say within %v which store it is: %w", url, patience, err)
	}
	if err != nil {
		return nil, err
	}
	for {
		other := f.other(url, id)
		if other != "" {
			if err := f.prove(ctx, url, opened, id, other); err != nil {
				return nil, err
			}
		}
		if s, err := f.enrol(url, opened, id, other); s != nil || err != nil {
			return s, err
		}
	}
}

func (f finder) known(url string) *hostStore {
	h := f.h
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.at[url]
}

// other returns another URL of a store that this node knows, one that it uses now if there is one; "" if there is none.
func (f finder) other(url string, id volume.ID) string {
	h := f.h
	h.mu.Lock()
	defer h.mu.Unlock()
	return f.otherLocked(url, id)
}

func (f finder) otherLocked(url string, id volume.ID) string {
	h := f.h
	if s := h.stores[id]; s != nil {
		return s.url
	}
	var others []string
	for u, i := range h.record.Stores {
		if i == id && u != url {
			others = append(others, u)
		}
	}
	if len(others) == 0 || h.record.Stores[url] == id {
		return "" // it was seen to be the same as the others
	}
	return slices.Min(others)
}

// prove fails with ErrCopy if what a URL leads to is a copy of the store that another one leads to. The store itself shows what
// this node writes into it by the other URL. Where that is no longer a store, the new one must show what this node wrote last.
func (f finder) prove(ctx context.Context, url string, opened store.Store, id volume.ID, other string) error {
	h := f.h
	ctx, cancel := context.WithTimeout(ctx, provePatience)
	defer cancel()
	was, err := f.find(ctx, other)
	shown := false
	switch {
	case err == nil && was.id == id:
		shown, err = was.member.Shown(ctx, opened)
	case err == nil, errors.Is(err, store.ErrAway), errors.Is(err, volume.ErrNoStore): // another store is there, or none
		shown, err = volume.LastShown(ctx, opened, h.id.Node, diaryOf(h.opts.Root, id))
	}
	switch {
	case err != nil:
		return fmt.Errorf("%s has the id of %s, and it cannot be seen whether it is the same store: %w", url, other, err)
	case !shown:
		return fmt.Errorf("%s has the id of %s, and not what this node wrote there last: %w", url, other, ErrCopy)
	}
	return nil
}

// enrol notes that a URL leads to a store, which was seen to be the one that other leads to. It returns nil if that is no
// longer all there is to be seen.
func (f finder) enrol(url string, opened store.Store, id volume.ID, other string) (*hostStore, error) {
	h := f.h
	h.mu.Lock()
	defer h.mu.Unlock()
	if s := h.at[url]; s != nil {
		return s, nil
	}
	if f.otherLocked(url, id) != other {
		return nil, nil
	}
	if was, ok := h.record.Stores[url]; ok && was != id {
		if slices.ContainsFunc(h.record.Attached, func(a Attached) bool { return a.Store == url }) {
			return nil, fmt.Errorf("another store is at %s (%s), and volumes of the one that was there (%s) are attached: %w", url, id, was,
				store.ErrAway)
		}
	}
	s := h.stores[id]
	if s == nil {
		forLease, err := h.opts.OpenStore(url) // connections of its own: none waits behind volumes' data
		if err != nil {
			return nil, err
		}
		m, lease := metered(opened), metered(forLease)
		host, _ := os.Hostname() // for people only
		s = &hostStore{
			Store: volume.Marked(m, id), id: id, url: url, meter: m, leaseMeter: lease,
			member: volume.NewMember(volume.Marked(lease, id), volume.MemberOptions{
				ID: h.id.Node, Incarnation: h.life, Boot: bootID(), Host: host, TTL: h.opts.TTL, Clock: bootTime, Diary: diaryOf(h.opts.Root, id),
				Log: h.opts.Log.With("store", url),
			}),
		}
		h.stores[id] = s
	}
	h.at[url] = s
	if h.record.Stores[url] == id {
		return s, nil
	}
	h.record.Stores[url] = id
	return s, h.saveLocked()
}

// diaryOf returns what a root knows of its node's lease in a store.
func diaryOf(root string, id volume.ID) *volume.DiaryFile {
	return volume.NewDiaryFile(filepath.Join(root, "leases", id.String()))
}

// await is find for volumes that are attached: it waits until their store is there, and says why it waits.
func (f finder) await(ctx context.Context, url string, waits func(error)) (*hostStore, error) {
	h := f.h
	pause := backoff.Backoff{First: 50 * time.Millisecond, Max: time.Second}
	if _, err := h.opts.OpenStore(url); err != nil {
		return nil, err // what the URL says is wrong
	}
	for {
		s, err := f.find(ctx, url)
		if err == nil || errors.Is(err, ErrCopy) || errors.Is(err, volume.ErrCorrupt) || errors.Is(err, volume.ErrVersion) {
			waits(nil)
			return s, err
		}
		waits(err)
		if serr := backoff.Sleep(ctx, pause.Next()); serr != nil {
			return nil, errors.Join(serr, err)
		}
	}
}

// Same reports whether two URLs lead to one store. What is known of them is not asked for again.
func (h *Host) Same(ctx context.Context, a, b string) (bool, error) {
	if a == b {
		return true, nil
	}
	ida, err := finder{h}.id(ctx, a)
	if err != nil {
		return false, err
	}
	idb, err := finder{h}.id(ctx, b)
	return ida == idb, err
}

func (f finder) id(ctx context.Context, url string) (volume.ID, error) {
	h := f.h
	h.mu.Lock()
	id, ok := h.record.Stores[url]
	h.mu.Unlock()
	if ok {
		return id, nil
	}
	s, err := f.find(ctx, url)
	if err != nil {
		return id, err
	}
	return s.id, nil
}
