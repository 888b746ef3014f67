package volume

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/remora-storage/remora/remote/store"
)

// Usage is what a volume takes in its store.
type Usage struct {
	Objects int64 `json:"objects"`
	Bytes   int64 `json:"bytes"`
}

// StoreUsage adds up a volume's objects.
func StoreUsage(ctx context.Context, st store.Store, id ID) (u Usage, err error) {
	err = st.List(ctx, volumePrefix(id), func(o store.Object) bool {
		u.Objects++
		u.Bytes += o.Size
		return true
	})
	return u, err
}

// ErrAttached says that something cannot be done to a volume that a node owns.
var ErrAttached = errors.New("the volume is attached")

// Removed says what Remove has deleted, or would.
type Removed struct {
	ID ID
	Usage
}

// Removal returns what Remove would delete.
func Removal(ctx context.Context, st store.Store, name string) (r Removed, err error) {
	id, _, _, err := removable(ctx, st, name)
	if err == nil {
		r.ID = id
		r.Usage, err = StoreUsage(ctx, st, id)
	}
	return r, err
}

// removable finds a volume that may be removed. Its head is nil if that is gone or cannot be read.
func removable(ctx context.Context, st store.Store, name string) (id ID, h *Head, version string, err error) {
	if id, err = lookupID(ctx, st, name); err != nil {
		return id, nil, "", err
	}
	h, version, err = readHead(ctx, st, id)
	switch {
	case errors.Is(err, ErrNotFound), errors.Is(err, ErrCorrupt):
		return id, nil, "", nil
	case err == nil && h.Owner != nil:
		err = fmt.Errorf("%s: %w by node %s: detach it first", name, ErrAttached, h.Owner.Node)
	}
	return id, h, version, err
}

// Remove deletes a volume that nobody owns, with everything in it. One that is killed on the way is to be called
// again: the name goes last, and the head before it.
func Remove(ctx context.Context, st store.Store, name string) (r Removed, err error) {
	id, h, version, err := removable(ctx, st, name)
	if err != nil {
		return r, err
	}
	r.ID = id
	if h != nil {
		// From here on whoever attaches has to see that the head has changed.
		next := h.clone()
		next.next()
		next.Epoch++
		next.Name, next.Root, next.Tail, next.Segment, next.Write = "", nil, nil, 0, 0
		if _, _, swapped, err := swapHead(ctx, st, h, next, version, quiet()); err != nil {
			return r, err
		} else if !swapped {
			return r, fmt.Errorf("%s: %w meanwhile", name, ErrAttached)
		}
	}
	if r.Usage, err = removeObjects(ctx, st, id); err != nil {
		return r, err
	}
	return r, st.Delete(ctx, nameKey(name))
}

// removeObjects deletes all that belongs to a volume, its head last.
func removeObjects(ctx context.Context, st store.Store, id ID) (u Usage, err error) {
	var keys []string
	if err := st.List(ctx, volumePrefix(id), func(o store.Object) bool {
		if o.Key != headKey(id) {
			keys = append(keys, o.Key)
		}
		u.Objects++
		u.Bytes += o.Size
		return true
	}); err != nil {
		return u, err
	}
	for _, key := range append(keys, headKey(id)) {
		if err := st.Delete(ctx, key); err != nil {
			return u, err
		}
	}
	return u, nil
}

// Sweep deletes objects of a volume's prefix that nothing uses and nothing will: what an upload left that was never
// committed, or what a collection did not get to. Only the owner may: it knows every segment that is on its way.
func (v *Volume) Sweep(ctx context.Context) (u Usage, err error) {
	v.mu.RLock()
	h, root, making := v.head, v.root, v.making
	v.mu.RUnlock()
	prefix := volumePrefix(v.id)
	var all []store.Object
	if err := v.opts.Store.List(ctx, prefix, func(o store.Object) bool {
		all = append(all, o)
		return true
	}); err != nil {
		return u, err
	}
	used, err := usedKeys(ctx, v.nodes, h, root)
	if err != nil {
		return u, err
	}
	for _, o := range all {
		key := strings.TrimPrefix(o.Key, prefix)
		dead := false
		if r, ok := parseSegmentKey(key); ok {
			// Of an older epoch, or numbered when it was decided what counts: whatever is to count has a head already.
			dead = r.Epoch < h.Epoch || r.Seq <= h.Segment
		} else if k, ok := parsePackKey(key); ok {
			dead = k.gen <= h.Gen && !making
		}
		if !dead || used[o.Key] {
			continue
		}
		if err := v.opts.Store.Delete(ctx, o.Key); err != nil {
			return u, err
		}
		u.Objects++
		u.Bytes += o.Size
	}
	return u, nil
}
