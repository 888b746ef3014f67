package snapshotter

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/continuity/fs"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/remote/registry"
	"github.com/remora-storage/remora/snapshotter/layers"
)

// Options of a Snapshotter. The zero value works.
type Options struct {
	// Layers say how layers are read.
	Layers layers.Options
	// Backend is the only way to mount incomplete layers; "" for the best. BackendOf says so
	// for single repositories; nil for none.
	Backend   blockdev.Backend
	BackendOf func(registry.Repository) blockdev.Backend
	// ImportWait bounds how long a Prepare waits for a layer that is imported; 0 for the default.
	ImportWait time.Duration
	// Metadata is what containerd has noted of its snapshots; nil if nobody is to be asked, and then none that was lost is made anew.
	Metadata Metadata
	// Releases removes images of which a layer is nowhere any more; nil for never.
	Releases Releases
	// ReleaseAsk leaves that to the operator; see Repair.
	ReleaseAsk bool
	// Tell is told of events, one at a time; nil for nobody.
	Tell func(ctx context.Context, e Event) error
	// GoneFor is how long a layer must have been nowhere before that; 0 for the default.
	GoneFor time.Duration
	// Learn has the first starts of an image recorded and merged into its profile.
	Learn bool
	// KeepBlobs says that Layers.ImportOf has the blobs of some repositories kept in containerd's content store.
	KeepBlobs bool
	// Background says when incomplete layers are completed.
	Background Background
	// Exports are what OpenExports returned; with nil, nothing incomplete can be mounted.
	Exports Mounter
	// Kernel is the machine; nil for the one that this process runs on.
	Kernel Kernel
	// Pod says that whatever ends this process may end the holder too.
	Pod bool
	// NotOurs are directories under the root on which, or below which, others mount something.
	NotOurs []string
	// MapsMounts says why containerd, as it runs now, shows a container in a user namespace nothing that is mounted on its layers. It
	// returns nil if containerd shows that, and so does a nil MapsMounts.
	MapsMounts func(ctx context.Context) error
	Log        *slog.Logger
}

// A Snapshotter is containerd's interface of that name. New makes one.
type Snapshotter struct {
	*base
	// What others than containerd ask for is promoted from these.
	*claims
	*detaching
	*mending
	*recordings
	*reports

	bindings  *bindings
	mountings *mountings
	gating    *gating
	releasing *releasing
	breakage  *breakage
	chores    *chores
	doubting  *doubting
	losses    *losses

	stop  context.CancelFunc
	extra []string // options of every overlay mount

	mu      sync.Mutex // guards garbage
	garbage []string   // directories of removed snapshots
}

var _ snapshots.Cleaner = (*Snapshotter)(nil)

var suffix atomic.Uint64

// uniqueSuffix tells the keys of concurrent claims apart.
func uniqueSuffix() string {
	return strconv.FormatInt(time.Now().UnixNano(), 36) + "-" + strconv.FormatUint(suffix.Add(1), 36)
}

// Stat implements snapshots.Snapshotter.
func (s *Snapshotter) Stat(ctx context.Context, key string) (info snapshots.Info, err error) {
	look := func() error {
		return s.store.WithTransaction(ctx, false, func(ctx context.Context) error {
			_, info, _, err = storage.GetInfo(ctx, key)
			return err
		})
	}
	if !s.claims.asking.isOpen(ctx) {
		err = s.claims.orRecover(ctx, key, look)
		return info, err
	}
	err = look()
	if lost := errdefs.IsNotFound(err); err == nil || lost {
		return answered(key, info, lost), nil
	}
	return info, err
}

// Update implements snapshots.Snapshotter.
func (s *Snapshotter) Update(ctx context.Context, info snapshots.Info, fieldpaths ...string) (updated snapshots.Info, err error) {
	err = s.store.WithTransaction(ctx, true, func(ctx context.Context) error {
		updated, err = storage.UpdateInfo(ctx, info, fieldpaths...)
		return err
	})
	return updated, err
}

// Usage implements snapshots.Snapshotter: the bytes and inodes that a snapshot holds on disk
// now. A remote layer's are those of its image in the cache, counted for one of the snapshots
// that share it.
func (s *Snapshotter) Usage(ctx context.Context, key string) (usage snapshots.Usage, err error) {
	var id string
	var info snapshots.Info
	if err := s.store.WithTransaction(ctx, false, func(ctx context.Context) error {
		id, info, usage, err = storage.GetInfo(ctx, key)
		return err
	}); err != nil {
		return snapshots.Usage{}, err
	}
	if info.Kind == snapshots.KindActive {
		du, err := fs.DiskUsage(ctx, s.upperPath(id))
		if err != nil {
			return snapshots.Usage{}, fmt.Errorf("usage of %s: %w", key, err)
		}
		return snapshots.Usage(du), nil
	}
	if b := s.bindings.get(id); b != nil {
		return s.bindingUsage(b), nil
	}
	return usage, nil
}

const inodesOfImage = 5 // its directory and the files in it

func (s *Snapshotter) bindingUsage(b *binding) snapshots.Usage {
	b.mu.Lock()
	f, unpacked := b.file, b.saved.Unpacked
	b.mu.Unlock()
	if unpacked != nil {
		return snapshots.Usage{Size: unpacked.Bytes, Inodes: unpacked.Inodes}
	}
	if f == nil || s.bindings.firstWith(f) != b {
		return snapshots.Usage{}
	}
	return snapshots.Usage{Size: f.Disk(), Inodes: inodesOfImage}
}

// Prepare implements snapshots.Snapshotter. For a layer that is supplied here it answers
// "already exists".
func (s *Snapshotter) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	var info snapshots.Info
	for _, opt := range opts {
		if err := opt(&info); err != nil {
			return nil, err
		}
	}
	chainID, isLayer := info.Labels[snapshots.LabelSnapshotRef]
	if isLayer {
		s.changed.Store(true)
		err := s.claims.orRecover(ctx, parent, func() error { return s.claims.claim(ctx, chainID, parent, info.Labels) })
		if err == nil {
			return nil, fmt.Errorf("prepare %s on %q: layer %s is supplied remotely: %w", key, parent, chainID, errdefs.ErrAlreadyExists)
		}
		if !errors.Is(err, layers.ErrNotLazy) {
			return nil, fmt.Errorf("prepare %s on %q: %w", key, parent, err)
		}
		s.log.Info("layer takes the ordinary path", "key", key, "reason", err)
	}
	return s.create(ctx, snapshots.KindActive, key, parent, isLayer, opts)
}

// View implements snapshots.Snapshotter. Who comes to a gate in what it returns waits until a contested layer is settled.
func (s *Snapshotter) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return s.create(ctx, snapshots.KindView, key, parent, false, opts)
}

// ungatedWait bounds how long a View, and the Prepare of a layer that containerd unpacks, wait for remote layers below where the
// kernel has no gates: nobody may ask for their mounts again, and other calls of containerd may wait behind them as behind a proof.
const ungatedWait = time.Second

var errUngated = errors.New("not all layers below are here yet, and this kernel has no autofs to let clients wait for them: " +
	"do it again once `snapctl status` says that they are mounted")

// ensureUngated is ensureAll of what somebody mounts who does not ask again.
func (s *Snapshotter) ensureUngated(ctx context.Context, ids []string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, cmp.Or(s.opts.Layers.ProofWait, ungatedWait), errUngated)
	defer cancel()
	return s.ensureAll(ctx, ids)
}

// create makes an active snapshot or a view.
func (s *Snapshotter) create(
	ctx context.Context, kind snapshots.Kind, key, parent string, unpack bool, opts []snapshots.Opt,
) (_ []mount.Mount, err error) {
	var snap storage.Snapshot
	var info snapshots.Info
	begin := func(ctx context.Context) (err error) {
		if snap, err = storage.CreateSnapshot(ctx, kind, key, parent, opts...); err != nil {
			return err
		}
		defer func() { err = removeUnlessMade(s.snapshotDir(snap.ID), err) }()
		if _, info, _, err = storage.GetInfo(ctx, key); err != nil {
			return err
		}
		return s.makeDirs(snap, info.Labels)
	}
	if err := s.claims.orRecover(ctx, parent, func() error { return s.store.WithTransaction(ctx, true, begin) }); err != nil {
		return nil, err
	}
	if ungated := s.gating.gates == nil; ungated && (unpack || kind == snapshots.KindView) { // a container asks for its mounts
		err = s.ensureUngated(ctx, snap.ParentIDs)
	} else { // which reads nothing: containerd may let nobody in until this returns
		err = s.mending.contest(ctx, s.bindings.of(snap.ParentIDs))
	}
	if err == nil {
		err = mapsLayers(ctx, info.Labels, len(s.bindings.of(snap.ParentIDs)), s.opts.MapsMounts)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("prepare %s on %q: %w", key, parent, err), s.Remove(ctx, key))
	}
	gates := map[string]string{}
	for _, b := range s.bindings.of(snap.ParentIDs) {
		if gates[b.id], err = s.gating.gate(b); err != nil {
			return nil, errors.Join(fmt.Errorf("prepare %s on %q: %w", key, parent, err), s.Remove(ctx, key))
		}
	}
	return s.mounts(snap, info.Labels, gates), nil
}

// removeUnlessMade removes the directory of a snapshot that err keeps from being made, and returns err. It is
// called inside the transaction: after that, another snapshot may have the same id and directory.
func removeUnlessMade(dir string, err error) error {
	if err == nil {
		return nil
	}
	return errors.Join(err, os.RemoveAll(dir))
}

// makeDirs makes a snapshot's directories. As in containerd's overlay snapshotter the root
// belongs to whom the parent's belongs to, or to the root user of a user namespace. That of a layer belongs to root, whether the layer is
// mounted yet or not: containerd ignores what an archive says of its root, and so do we.
func (s *Snapshotter) makeDirs(snap storage.Snapshot, labels map[string]string) error {
	dir := s.snapshotDir(snap.ID)
	if err := os.RemoveAll(dir); err != nil { // of a transaction that was rolled back by a crash
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	upper := filepath.Join(dir, "fs")
	if err := os.Mkdir(upper, 0o755); err != nil {
		return err
	}
	if err := os.Chmod(upper, 0o755); err != nil { // whatever the umask
		return err
	}
	if snap.Kind == snapshots.KindActive {
		if err := os.Mkdir(filepath.Join(dir, "work"), 0o711); err != nil {
			return err
		}
	}
	if uid, gid, mapped, err := mappedRoot(labels); mapped || err != nil {
		return errors.Join(err, os.Lchown(upper, uid, gid))
	}
	if len(snap.ParentIDs) == 0 {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Stat(s.upperPath(snap.ParentIDs[0]), &st); err != nil {
		return &os.PathError{Op: "stat", Path: s.upperPath(snap.ParentIDs[0]), Err: err}
	}
	return os.Lchown(upper, int(st.Uid), int(st.Gid))
}

// Mounts implements snapshots.Snapshotter. It returns when all layers below are mounted.
func (s *Snapshotter) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	var snap storage.Snapshot
	var info snapshots.Info
	if err := s.store.WithTransaction(ctx, false, func(ctx context.Context) (err error) {
		if snap, err = storage.GetSnapshot(ctx, key); err != nil {
			return err
		}
		_, info, _, err = storage.GetInfo(ctx, key)
		return err
	}); err != nil {
		return nil, err
	}
	if err := mapsLayers(ctx, info.Labels, len(s.bindings.of(snap.ParentIDs)), s.opts.MapsMounts); err != nil {
		return nil, fmt.Errorf("mounts of %s: %w", key, err)
	}
	for {
		if err := s.ensureAll(ctx, snap.ParentIDs); err != nil {
			return nil, fmt.Errorf("mounts of %s: %w", key, err)
		}
		if s.detaching.answer(snap) {
			break
		}
	}
	s.breakage.forgetEnded()
	return s.mounts(snap, info.Labels, nil), nil
}

// ensureAll waits until all remote layers among the snapshots are mounted.
func (s *Snapshotter) ensureAll(ctx context.Context, ids []string) error {
	all := s.bindings.of(ids)
	for _, b := range all {
		s.mountings.startAttempt(b)
	}
	if err := s.mending.settle(ctx, all); err != nil {
		return err
	}
	for _, b := range all {
		if err := s.mountings.ensure(ctx, b); err != nil {
			return err
		}
	}
	return nil
}

// Commit implements snapshots.Snapshotter.
func (s *Snapshotter) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	defer s.changed.Store(true)
	return s.store.WithTransaction(ctx, true, func(ctx context.Context) error {
		id, _, _, err := storage.GetInfo(ctx, key)
		if err != nil {
			return err
		}
		du, err := fs.DiskUsage(ctx, s.upperPath(id))
		if err != nil {
			return fmt.Errorf("commit %s: %w", key, err)
		}
		if _, err := storage.CommitActive(ctx, key, name, snapshots.Usage(du), opts...); err != nil {
			return fmt.Errorf("commit %s as %s: %w", key, name, err)
		}
		return nil
	})
}

// Remove implements snapshots.Snapshotter. It returns at once; the space is reclaimed after.
func (s *Snapshotter) Remove(ctx context.Context, key string) error {
	var id string
	if err := s.store.WithTransaction(ctx, true, func(ctx context.Context) (err error) {
		id, _, err = storage.Remove(ctx, key)
		return err
	}); err != nil {
		return fmt.Errorf("remove %s: %w", key, err)
	}
	s.mu.Lock()
	s.garbage = append(s.garbage, id)
	s.mu.Unlock()
	s.breakage.forget(id)
	s.detaching.forget(id)
	s.started.Go(func() {
		if err := s.Cleanup(s.life); err != nil {
			s.log.Warn("space not reclaimed, will try again", "err", err)
		}
	})
	return nil
}

// Walk implements snapshots.Snapshotter.
func (s *Snapshotter) Walk(ctx context.Context, fn snapshots.WalkFunc, filters ...string) error {
	if namespace, ok := namespaces.Namespace(ctx); ok && len(filters) > 0 { // without filters everything is wanted
		all := fn
		fn = func(ctx context.Context, info snapshots.Info) error {
			if s.claims.answers.hides(namespace, &info) {
				return nil
			}
			return all(ctx, info)
		}
	}
	return s.store.WithTransaction(ctx, false, func(ctx context.Context) error {
		return storage.WalkInfo(ctx, fn, filters...)
	})
}

// mounts returns how a snapshot is mounted. gates are the layers' directories by id (gating.gate), for those who do not ask again.
func (s *Snapshotter) mounts(snap storage.Snapshot, labels, gates map[string]string) []mount.Mount {
	lowerDir := func(id string) string {
		if gates[id] != "" && labels[RecordLabel] == "" { // a recording has mounts of its own
			return gates[id]
		}
		return s.recordings.lowerDir(id, labels)
	}
	mapping := idMapping(labels)
	if len(snap.ParentIDs) == 0 || snap.Kind == snapshots.KindView && len(snap.ParentIDs) == 1 {
		source, access := s.upperPath(snap.ID), "rw"
		if snap.Kind == snapshots.KindView {
			access = "ro"
			if len(snap.ParentIDs) == 1 {
				source = lowerDir(snap.ParentIDs[0])
			}
		}
		return []mount.Mount{{Type: "bind", Source: source, Options: append(mapping, access, "rbind")}}
	}
	options, source := mapping, s.snapshotsDir() // by which it is known (overlayOf)
	if snap.Kind == snapshots.KindActive {
		source = "overlay"
		options = append(options, "workdir="+s.workPath(snap.ID), "upperdir="+s.upperPath(snap.ID))
	}
	lower := "lowerdir="
	for i, id := range snap.ParentIDs {
		if i > 0 {
			lower += ":"
		}
		lower += lowerDir(id)
	}
	return []mount.Mount{{Type: "overlay", Source: source, Options: append(append(options, lower), s.extra...)}}
}
