package snapshotter

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"

	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"

	"github.com/remora-storage/remora/cache"
)

// Cleanup implements snapshots.Cleaner: it takes away what removed snapshots left.
func (s *Snapshotter) Cleanup(context.Context) error {
	s.mu.Lock()
	ids := s.garbage
	s.garbage = nil
	s.mu.Unlock()
	var errs []error
	for _, id := range ids {
		if err := s.reclaim(id); err != nil {
			errs = append(errs, err)
			s.mu.Lock()
			s.garbage = append(s.garbage, id)
			s.mu.Unlock()
		}
	}
	return errors.Join(errs...)
}

// reclaim unmounts and deletes one removed snapshot, and its layer's image with the last that
// used it.
func (s *Snapshotter) reclaim(id string) error {
	if b := s.binding(id); b != nil {
		b.mu.Lock()
		b.removed = true
		b.mu.Unlock()
		b.endAttempt()
		if err := s.unmount(b); err != nil {
			return err
		}
		s.mu.Lock()
		delete(s.bindings, id)
		s.mu.Unlock()
		if err := s.dropImage(b); err != nil {
			s.addBinding(b) // else the next try would forget the image
			return err
		}
	} else if err := s.kernel.Unmount(s.upperPath(id)); err != nil {
		return err
	}
	if err := os.RemoveAll(s.snapshotDir(id)); err != nil {
		return fmt.Errorf("remove snapshot %s: %w", id, err)
	}
	return nil
}

// dropImage removes a binding's image from the cache unless another binding needs it.
func (s *Snapshotter) dropImage(b *binding) error {
	id, src, key := b.cacheID(), b.source(), s.keyOf(b)
	wanted, used, same := false, false, false
	for _, other := range s.allBindings() {
		with := other.cacheID()
		wanted = wanted || (with == id || with == "") && s.keyOf(other) == key
		used = used || with == id
		same = same || with == id && other.source().Repo == src.Repo
	}
	if !wanted {
		s.layers.Forget(&src)
	}
	if id == "" || wanted || used {
		if used && !same {
			s.layers.Sources.Remove(id, src.Repo)
		}
		return nil
	}
	return s.removeImage(id)
}

// removeImage removes an image from the cache.
func (s *Snapshotter) removeImage(id string) error {
	s.layers.Sources.Forget(id)
	if err := s.exports.forget(id); err != nil {
		return err
	}
	if err := s.cache.Remove(id); err != nil && !errors.Is(err, cache.ErrNotFound) {
		return err
	}
	return nil
}

func (b *binding) cacheID() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.saved.CacheID
}

func sortBindings(all []*binding) {
	slices.SortFunc(all, func(a, b *binding) int {
		x, _ := strconv.ParseUint(a.id, 10, 64) // the store's ids are numbers
		y, _ := strconv.ParseUint(b.id, 10, 64)
		return cmp.Compare(x, y)
	})
}

// knownIDs maps the ids of all snapshots to their names. Its transaction is a writable one, so
// that no snapshot is in the making meanwhile.
func (s *Snapshotter) knownIDs(ctx context.Context) (known map[string]string, err error) {
	err = s.store.WithTransaction(ctx, true, func(ctx context.Context) error {
		known, err = storage.IDMap(ctx)
		if errdefs.IsNotFound(err) { // a new store
			return nil
		}
		return err
	})
	return known, err
}

// removeStray deletes directories of snapshots that the store does not know, and images that no
// snapshot uses. A directory that a container has mounted stays, and all of them do after a database was lost.
func (s *Snapshotter) removeStray(ctx context.Context) error {
	known, err := s.knownIDs(ctx)
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(s.snapshotsDir())
	if err != nil {
		return err
	}
	lost, err := wasLost(s.root)
	if err != nil {
		return err
	}
	used, err := s.inUse()
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if _, ok := known[e.Name()]; !ok && !lost && !used[e.Name()] {
			errs = append(errs, s.reclaim(e.Name()))
		}
	}
	shown, coming := map[string]bool{}, map[string]bool{}
	for _, b := range s.allBindings() {
		b.mu.Lock()
		shown[b.saved.CacheID] = true
		if b.file == nil { // its image may have come just before the end, or comes now under another name
			coming[b.saved.Source.BlobName()] = true
		}
		b.mu.Unlock()
	}
	ids, err := s.cache.IDs()
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	for _, id := range ids {
		if !shown[id] && !coming[cache.ParseName(id).Blob] {
			errs = append(errs, s.exports.forget(id), s.cache.Remove(id))
		}
	}
	return errors.Join(errs...)
}
