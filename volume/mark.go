package volume

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/remora-storage/remora/remote/store"
)

// A store has one object that says that it is for volumes, that its conditional writes were tried, and which store it is,
// whatever URLs lead to it.
const (
	storeKey     = store.MarkKey
	storeVersion = 1
)

type storeMark struct {
	ID      ID        `json:"id"`
	Created time.Time `json:"created"`
}

// ErrNoStore says that a store was never prepared for volumes.
var ErrNoStore = errors.New("the store was not prepared for volumes")

// Init prepares a store for volumes, and makes it, unless it is prepared. probe is asked first whether the store is safe.
func Init(ctx context.Context, st store.Store, probe func(context.Context) error) (made bool, err error) {
	if m, ok := store.As[store.Maker](st); ok {
		if err := m.Make(); err != nil {
			return false, fmt.Errorf("make %s: %w", st, err)
		}
	}
	switch _, err := StoreID(ctx, st); {
	case err == nil:
		return false, nil
	case !errors.Is(err, ErrNoStore):
		return false, err
	}
	if err := probe(ctx); err != nil {
		return false, err
	}
	p, err := seal("store", storeVersion, storeMark{ID: NewID(), Created: time.Now().UTC().Truncate(time.Second)})
	if err != nil {
		return false, err
	}
	_, err = st.PutIfAbsent(ctx, storeKey, p)
	if errors.Is(err, store.ErrExists) {
		_, err = StoreID(ctx, st)
		return false, err
	}
	return err == nil, err
}

// StoreID returns which store it is. ErrNoStore unless Init was called for it.
func StoreID(ctx context.Context, st store.Store) (ID, error) {
	p, _, err := st.Get(ctx, storeKey, 0, -1)
	if errors.Is(err, store.ErrNoObject) {
		return ID{}, fmt.Errorf("%s: %w", st, ErrNoStore)
	}
	if err != nil {
		return ID{}, err
	}
	var m storeMark
	if err := unseal("store", storeVersion, p, &m); err != nil {
		return ID{}, fmt.Errorf("%s: %w", st, err)
	}
	return m.ID, nil
}

// Marked returns a store that was seen to be that of an id. Where it has not got an object while it has not got its mark
// either, it is away: an empty directory is in its place, or another server. ErrNoObject is what is so of the store itself.
func Marked(st store.Store, id ID) store.Store { return marked{store.Around{Store: st}, id} }

type marked struct {
	store.Around
	id ID
}

// Get implements store.Store.
func (m marked) Get(ctx context.Context, key string, off, n int64) (p []byte, o store.Object, err error) {
	err = m.sure(ctx, key, func() (err error) {
		p, o, err = m.Store.Get(ctx, key, off, n)
		return err
	})
	return p, o, err
}

// Head implements store.Store.
func (m marked) Head(ctx context.Context, key string) (o store.Object, err error) {
	err = m.sure(ctx, key, func() (err error) {
		o, err = m.Store.Head(ctx, key)
		return err
	})
	return o, err
}

// sure asks again for what is missing once the mark was seen: the store may have come back between.
func (m marked) sure(ctx context.Context, key string, ask func() error) error {
	err := ask()
	if !errors.Is(err, store.ErrNoObject) {
		return err
	}
	id, merr := StoreID(ctx, m.Store)
	switch {
	case errors.Is(merr, ErrNoStore):
		return fmt.Errorf("get %s: %s has no object %s: %w", key, m, storeKey, store.ErrAway)
	case merr != nil:
		return merr
	case id != m.id:
		return fmt.Errorf("get %s: another store is at %s (%s, not %s): %w", key, m, id, m.id, store.ErrAway)
	}
	return ask()
}
