package volume

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/remora-storage/remora/remote/store"
)

const nameVersion = 1

type nameRecord struct {
	ID ID `json:"id"`
}

// Errors of Create and Remove that callers act on.
var (
	// ErrNameTaken says that a volume of that name exists, and is another one than was asked for.
	ErrNameTaken = errors.New("a volume of this name exists")
	// ErrHalfRemoved says that a Remove began and did not end.
	ErrHalfRemoved = errors.New("its removal was begun and has not ended: remove it again")
)

// A Spec is what a new volume is to be.
type Spec struct {
	Size   int64         // bytes, a multiple of Block
	Class  Class         // default Remote
	MaxAge time.Duration // default 5 s; whole seconds
}

const defaultMaxAge = 5 * time.Second

// Create makes a volume. One of the same name that is as asked for is returned, with made false.
func Create(ctx context.Context, st store.Store, name string, spec Spec) (h *Head, made bool, err error) {
	if spec.Class == "" {
		spec.Class = Remote
	}
	if spec.MaxAge == 0 {
		spec.MaxAge = defaultMaxAge
	}
	if err := CheckName(name); err != nil {
		return nil, false, err
	}
	if spec.Size < MinSize || spec.Size > MaxSize || spec.Size%Block != 0 {
		return nil, false, fmt.Errorf("volume of %d bytes: want %d to %d, in blocks of %d", spec.Size, int64(MinSize), int64(MaxSize), Block)
	}
	existing := func() (*Head, bool, error) {
		h, err := Lookup(ctx, st, name)
		if err == nil && (h.Size != spec.Size || h.Class != spec.Class) {
			err = fmt.Errorf("%s has %d bytes and class %s: %w", name, h.Size, h.Class, ErrNameTaken)
		}
		return h, false, err
	}
	if h, _, err := existing(); err == nil || !errors.Is(err, ErrNotFound) {
		return h, false, err
	}
	h = &Head{ID: NewID(), Name: name, Gen: 1, Nonce: NewID(), Size: spec.Size, Block: Block, Class: spec.Class,
		MaxAge: int64(spec.MaxAge / time.Second), Created: time.Now().UTC().Truncate(time.Second)}
	switch err := publish(ctx, st, h); {
	case errors.Is(err, ErrNameTaken):
		return existing()
	case err != nil:
		return nil, false, err
	}
	return h, true, nil
}

// publish stores the head of a new volume and gives it its name. ErrNameTaken if another volume has it: then nothing of
// the new one's head stays.
func publish(ctx context.Context, st store.Store, h *Head) error {
	p, err := h.encode()
	if err != nil {
		return err
	}
	// The head first: a name always leads to one. Nobody else knows its key, so storing it twice does no harm.
	if _, err := st.Put(ctx, headKey(h.ID), p); err != nil {
		return err
	}
	rec, err := seal("name", nameVersion, nameRecord{h.ID})
	if err != nil {
		return err
	}
	_, err = st.PutIfAbsent(ctx, nameKey(h.Name), rec)
	if !errors.Is(err, store.ErrExists) {
		return err
	}
	if id, lerr := lookupID(ctx, st, h.Name); lerr == nil && id == h.ID {
		return nil // an answer was lost
	}
	if err := quiet().until(ctx, "delete", func() error { return st.Delete(ctx, headKey(h.ID)) }); err != nil {
		return err
	}
	return fmt.Errorf("%s: %w", h.Name, ErrNameTaken)
}

func lookupID(ctx context.Context, st store.Store, name string) (ID, error) {
	if err := CheckName(name); err != nil {
		return ID{}, err
	}
	p, _, err := st.Get(ctx, nameKey(name), 0, -1)
	if errors.Is(err, store.ErrNoObject) {
		return ID{}, fmt.Errorf("%s in %s: %w", name, st, ErrNotFound)
	}
	if err != nil {
		return ID{}, err
	}
	var r nameRecord
	if err := unseal("name", nameVersion, p, &r); err != nil {
		return ID{}, fmt.Errorf("%s: %w", name, err)
	}
	return r.ID, nil
}

// Lookup returns the head of a volume by its name. ErrNotFound, ErrHalfRemoved.
func Lookup(ctx context.Context, st store.Store, name string) (*Head, error) {
	id, err := lookupID(ctx, st, name)
	if err != nil {
		return nil, err
	}
	h, _, err := readHead(ctx, st, id)
	if errors.Is(err, ErrNotFound) || err == nil && h.removing() { // a name leads to a head from the first
		return nil, fmt.Errorf("%s in %s: %w", name, st, ErrHalfRemoved)
	}
	return h, err
}

// List calls yield for each volume of a store, in the order of their names, with its head or why that cannot be read.
func List(ctx context.Context, st store.Store, yield func(name string, h *Head, err error)) error {
	var names []string
	prefix := nameKey("")
	if err := st.List(ctx, prefix, func(o store.Object) bool {
		names = append(names, strings.TrimPrefix(o.Key, prefix))
		return true
	}); err != nil {
		return err
	}
	for _, name := range names {
		h, err := Lookup(ctx, st, name)
		if errors.Is(err, ErrNotFound) {
			continue // removed meanwhile
		}
		yield(name, h, err)
	}
	return nil
}
