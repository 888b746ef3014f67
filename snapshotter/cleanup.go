package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"

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
	if b := s.bindings.get(id); b != nil {
		b.mu.Lock()
		b.removed = true
		doubted := b.doubt
		b.doubt = nil
		b.mu.Unlock()
		b.endAttempt()
		if err := s.mountings.unmount(b); err != nil {
			return err
		}
		s.bindings.drop(b)
		if err := s.mending.dropImage(b); err != nil {
			s.bindings.add(b) // else the next try would forget the image
			return err
		}
		if doubted != nil && doubted.with != nil {
			s.mending.dropUnused(doubted.with.file)
		}
	} else if err := s.kernel.Unmount(s.upperPath(id)); err != nil {
		return err
	}
	if err := os.RemoveAll(s.snapshotDir(id)); err != nil {
		return fmt.Errorf("remove snapshot %s: %w", id, err)
	}
	return nil
}

func (b *binding) cacheID() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.saved.CacheID
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
	used, err := s.breakage.inUse()
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
	for _, b := range s.bindings.all() {
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
