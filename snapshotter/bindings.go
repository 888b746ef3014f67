package snapshotter

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"sync"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/snapshotter/layers"
)

// bindings are all of them, by their snapshots.
type bindings struct {
	*base

	mu   sync.Mutex // guards byID
	byID map[string]*binding
}

// get returns the binding of a snapshot, or nil.
func (x *bindings) get(id string) *binding {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.byID[id]
}

func (x *bindings) add(b *binding) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.byID[b.id] = b
}

// drop undoes add.
func (x *bindings) drop(b *binding) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.byID[b.id] == b { // else another snapshot has the id now
		delete(x.byID, b.id)
	}
}

// all returns them in the order in which their snapshots were made.
func (x *bindings) all() []*binding {
	x.mu.Lock()
	defer x.mu.Unlock()
	all := make([]*binding, 0, len(x.byID))
	for _, b := range x.byID {
		all = append(all, b)
	}
	sortBindings(all)
	return all
}

// of returns those of snapshots, in the order of their ids.
func (x *bindings) of(ids []string) (all []*binding) {
	for _, id := range ids {
		if b := x.get(id); b != nil {
			all = append(all, b)
		}
	}
	return all
}

// firstWith returns the binding that accounts for an image: the oldest of those that share it.
func (x *bindings) firstWith(f *cache.File) *binding {
	for _, b := range x.all() {
		b.mu.Lock()
		same := b.file == f
		b.mu.Unlock()
		if same {
			return b
		}
	}
	return nil
}

// keys returns the keys of layers that have a snapshot, and whether nothing of them is missing.
func (x *bindings) keys() map[string]bool {
	bound := map[string]bool{}
	for _, b := range x.all() {
		key := x.keyOf(b)
		bound[key] = bound[key] || b.isHere()
	}
	return bound
}

// keyOf is promises.KeyOf of a binding's source.
func (x *bindings) keyOf(b *binding) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.key == "" {
		b.key = x.layers.KeyOf(&b.saved.Source)
	}
	return b.key
}

// filesOf returns the images in the cache, of layers that have a snapshot, which an image's own layers may be read from.
func (x *bindings) filesOf(img layers.Image) map[digest.Digest]*cache.File {
	keys := x.layers.KeysOf(&img)
	known := map[digest.Digest]*cache.File{}
	for _, b := range x.all() {
		src := b.source()
		i := slices.IndexFunc(img.Layers, func(l layers.Source) bool { return l.Descriptor.Digest == src.Descriptor.Digest })
		if f := b.image(); f != nil && i >= 0 && (layers.Proven(f, &img.Layers[i]) || keys[x.keyOf(b)]) {
			known[src.Descriptor.Digest] = f
		}
	}
	return known
}

// chainsOf returns the chainIDs that snapshots were claimed for.
func (x *bindings) chainsOf(ctx context.Context, all []*binding) (map[*binding]digest.Digest, error) {
	chains := map[*binding]digest.Digest{}
	err := x.store.WithTransaction(ctx, false, func(ctx context.Context) error {
		for _, b := range all {
			_, info, _, err := storage.GetInfo(ctx, b.name())
			if err != nil {
				return err
			}
			chains[b] = digest.Digest(info.Labels[snapshots.LabelSnapshotRef])
		}
		return nil
	})
	return chains, err
}

// apartFrom returns the other namespaces that have snapshots of their own for the chainID of a binding's.
func (x *bindings) apartFrom(ctx context.Context, b *binding, chainID digest.Digest) (map[string]bool, error) {
	apart, ours := map[string]bool{}, b.source().Namespace
	for _, other := range x.all() {
		namespace := other.source().Namespace
		if namespace == ours || namespace == "" || apart[namespace] {
			continue
		}
		chains, err := x.chainsOf(ctx, []*binding{other})
		if errdefs.IsNotFound(err) {
			continue // it was removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		apart[namespace] = chains[other] == chainID
	}
	return apart, nil
}

func sortBindings(all []*binding) {
	slices.SortFunc(all, func(a, b *binding) int {
		x, _ := strconv.ParseUint(a.id, 10, 64) // the store's ids are numbers
		y, _ := strconv.ParseUint(b.id, 10, 64)
		return cmp.Compare(x, y)
	})
}
