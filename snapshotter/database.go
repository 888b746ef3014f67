package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/internal/durable"
	"github.com/remora-storage/remora/snapshotter/boltfile"
)

const databaseFile = "metadata.db"

// skippedIDs is how many ids of snapshots are left out after a database was lost: what the kernel has of some of them may
// outlive their directories, and no id is used again.
const skippedIDs = 10_000

// openDatabase opens the database of snapshots. One that is damaged is set aside, and one that is gone is noted; then there is
// an empty one, whose snapshots get ids that none had before.
func openDatabase(root string, log *slog.Logger) (*storage.MetaStore, error) {
	path := filepath.Join(root, databaseFile)
	last, err := lastID(root)
	if err != nil {
		return nil, err
	}
	err = checkDatabase(path)
	first := uint64(0)
	switch {
	case err == nil, errdefs.IsNotFound(err) && last == 0: // an earlier release makes no buckets before the first snapshot
		return storage.NewMetaStore(path)
	case errors.Is(err, fs.ErrNotExist) && last > 0:
		err = durable.Miss(path, databaseKind, log, fmt.Sprintf("there are directories of snapshots, to number %d", last))
		first = last + skippedIDs
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, errNothingWritten) && last == 0: // the first start, or it was killed
		err = nil
	case notRead(err):
		return nil, fmt.Errorf("%s: %w", path, err)
	default:
		err = durable.SetAside(path, databaseKind, log, err)
		first = last + skippedIDs
	}
	if err == nil {
		err = makeDatabase(path, first)
	}
	if err != nil {
		return nil, err
	}
	return storage.NewMetaStore(path)
}

// lastID returns the greatest id of a snapshot that has a directory, 0 if none has.
func lastID(root string) (last uint64, err error) {
	entries, err := os.ReadDir(snapshotsOf(root))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	for _, e := range entries {
		if id, err := strconv.ParseUint(e.Name(), 10, 32); err == nil {
			last = max(last, id)
		}
	}
	return last, err
}

// notRead reports whether a database could not be read, which says nothing of what is in it.
func notRead(err error) bool {
	var errno unix.Errno
	return errors.As(err, &errno) && !errors.Is(err, durable.ErrDamaged)
}

var errNothingWritten = errors.New("it is empty")

// checkDatabase says what is wrong with a database, without believing any of it; nil if nothing is.
func checkDatabase(path string) error {
	f, st, err := durable.OpenRegular(path)
	if err != nil {
		return err
	}
	defer f.Close() // only read
	if st.Size() == 0 {
		return errNothingWritten
	}
	if err := boltfile.Check(f, st.Size()); err != nil {
		return err
	}
	return checkSnapshots(path)
}

// checkSnapshots goes over all snapshots of a database whose pages are whole. A panic, or a fault where the file was cut
// meanwhile, is one more way in which it is damaged.
func checkSnapshots(path string) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	store, err := storage.NewMetaStore(path)
	if err != nil {
		return err
	}
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("reading it fails: %v", r) // and the transaction keeps the store open
			return
		}
		err = errors.Join(err, store.Close())
	}()
	return store.WithTransaction(context.Background(), false, func(ctx context.Context) error {
		ids, err := storage.IDMap(ctx)
		if err != nil {
			return err // without its buckets it is not of this package
		}
		all := map[string]snapshots.Info{}
		err = storage.WalkInfo(ctx, func(_ context.Context, info snapshots.Info) error {
			all[info.Name] = info
			return nil
		})
		if err == nil && len(ids) != len(all) {
			err = fmt.Errorf("%d snapshots have %d ids", len(all), len(ids))
		}
		if err == nil {
			err = checkParents(all)
		}
		return err
	})
}

// checkParents insists that each snapshot lies on committed ones, down to one that lies on none.
func checkParents(all map[string]snapshots.Info) error {
	whole := map[string]bool{"": true} // these lead to one without a parent
	for name, info := range all {
		var chain []string
		for at := name; !whole[at]; at = all[at].Parent {
			one, ok := all[at]
			switch {
			case !ok:
				return fmt.Errorf("snapshot %q lies on %q, which is not there", name, at)
			case at != name && one.Kind != snapshots.KindCommitted || one.Kind < snapshots.KindView || one.Kind > snapshots.KindCommitted:
				return fmt.Errorf("snapshot %q is of kind %v", at, one.Kind)
			case len(chain) > len(all):
				return fmt.Errorf("snapshot %q lies on itself", info.Name)
			}
			chain = append(chain, at)
		}
		for _, at := range chain {
			whole[at] = true
		}
	}
	return nil
}

// makeDatabase makes an empty database in which the next snapshot has the id first+1. It has the buckets that containerd's
// storage makes with the first snapshot, so that one without them is known to be something else.
func makeDatabase(path string, first uint64) error {
	db, err := bolt.Open(path, 0o600, nil)
	if err != nil {
		return err
	}
	err = db.Update(func(tx *bolt.Tx) error {
		top, err := tx.CreateBucketIfNotExists([]byte("v1"))
		if err != nil {
			return err
		}
		if _, err := top.CreateBucketIfNotExists([]byte("parents")); err != nil {
			return err
		}
		b, err := top.CreateBucketIfNotExists([]byte("snapshots"))
		if err != nil {
			return err
		}
		return b.SetSequence(first)
	})
	return errors.Join(err, db.Close())
}

// wasLost reports whether a database was lost, which an operator has still to deal with. Until then directories that are in no
// database are somebody's.
func wasLost(root string) (bool, error) {
	lost, err := durable.ListDamaged(root, databaseKind)
	return len(lost) > 0, err
}

// strayBindings adds bindings of layers that are in no database, since that was lost, and still mounted: containers use them.
func (s *Snapshotter) strayBindings(known map[string]string, earlier earlierMounts) ([]*binding, error) {
	lost, err := wasLost(s.root)
	if err != nil || !lost {
		return nil, err
	}
	var strays []*binding
	for dir := range earlier.layers {
		id := filepath.Base(filepath.Dir(dir))
		if _, ok := known[id]; ok {
			continue
		}
		path := filepath.Join(s.snapshotDir(id), bindingFile)
		saved, found, err := durable.LoadJSON(path, bindingKind, s.log, func(b *savedBinding) error { return b.check(b.Name) })
		if err != nil || found != durable.Whole {
			s.log.Error("a layer that is mounted is not known", "dir", dir, "err", err)
			continue
		}
		b := &binding{id: id, dir: s.snapshotDir(id), saved: saved}
		s.bindings.add(b)
		strays = append(strays, b)
	}
	return strays, nil
}

// dropDead forgets strays that could not be taken over: nobody asks for them, and containers that have them are named.
func (s *Snapshotter) dropDead(strays []*binding) {
	for _, b := range strays {
		if !b.mounted() {
			s.bindings.drop(b)
		}
	}
}
