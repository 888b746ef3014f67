package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/fs/erofs"
	"github.com/remora-storage/remora/fs/layout"
)

// Lock takes a root directory for this process. It fails if another remorad has it.
func Lock(root string) (*os.File, error) {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(root, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("another remorad runs on %s; stop it, or choose another --root", root)
		}
		return nil, fmt.Errorf("lock %s: %w", root, err)
	}
	return f, nil
}

// New opens the snapshotter in root, which the caller has locked, and mounts again what was
// mounted before. Close must be called.
func New(root string, c *cache.Cache, registry Registry, images Images, opts Options) (_ *Snapshotter, err error) {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	s := &Snapshotter{
		root: root, opts: opts, log: opts.Log, images: images,
		bindings: map[string]*binding{}, broken: map[string]string{},
	}
	s.life, s.stop = context.WithCancel(context.Background())
	s.layers = &layers{
		registry: registry, cache: c, trust: opts.Trust, limits: opts.Limits, log: opts.Log,
		life: s.life, started: &s.started, openings: map[digest.Digest]*opening{}, slots: make(chan struct{}, openAtOnce),
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	fuseDir := filepath.Join(root, "fuse")
	left, err := mountsUnder(root)
	if err != nil {
		return nil, err
	}
	kept := s.clearMounts(left)
	for _, dir := range []string{s.snapshotsDir(), fuseDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	if err := s.prepareScratch(kept[s.snapshotsDir()]); err != nil {
		return nil, err
	}
	if s.caps, err = blockdev.Probe(root, probeImage(), opts.Backend, opts.Log); err != nil {
		return nil, fmt.Errorf("probe what this kernel can mount: %w", err)
	}
	s.log.Info("back end chosen", "backend", s.caps.Lazy, "reason", s.caps.LazyReason, "direct", s.caps.Direct, "not_direct", s.caps.Reason)
	if s.files, err = blockdev.ServeFiles(fuseDir, opts.Log); err != nil {
		s.log.Warn("no lazy layers", "err", err)
		s.caps.Lazy, s.caps.LazyReason = "", err.Error()
	}
	if _, err := os.Stat("/sys/module/overlay/parameters/index"); err == nil {
		s.extra = []string{"index=off"}
	}
	if s.store, err = storage.NewMetaStore(filepath.Join(root, "metadata.db")); err != nil {
		return nil, err
	}
	if err := s.restore(kept); err != nil {
		return nil, fmt.Errorf("restore %s: %w", root, err)
	}
	s.started.Go(func() { s.watch(s.life) })
	return s, nil
}

// Close stops all work and takes away the mounts that need this process. Layers that the kernel
// reads itself stay.
func (s *Snapshotter) Close() error {
	s.stop()
	s.started.Wait()
	var errs []error
	for _, b := range s.allBindings() {
		b.mu.Lock()
		if b.how == mountedLazy {
			errs = append(errs, blockdev.Unmount(b.fsDir()))
			b.how = notMounted
		}
		b.mu.Unlock()
	}
	if s.files != nil {
		errs = append(errs, s.files.Close())
	}
	errs = append(errs, s.releaseScratch())
	if s.store != nil {
		errs = append(errs, s.store.Close())
	}
	return errors.Join(errs...)
}

// probeImage is a tiny EROFS image with one directory.
func probeImage() []byte {
	b := layout.NewBuilder(layout.Limits{})
	_, _, err := b.Add(blockdev.ProbeName, layout.Inode{Mode: unix.S_IFDIR | 0o755})
	if err != nil {
		panic(err) // a constant layout
	}
	l, err := b.Finish(layout.Plain, nil, nil)
	if err != nil {
		panic(err)
	}
	plan, err := erofs.NewPlan(l, [16]byte{})
	if err != nil {
		panic(err)
	}
	var w memory
	if _, err := plan.WriteTo(&w); err != nil {
		panic(err)
	}
	return w
}

type memory []byte

func (m *memory) Write(p []byte) (int, error) {
	*m = append(*m, p...)
	return len(p), nil
}

var _ io.Writer = (*memory)(nil)

// restore loads bindings and mounts them: at once where the image is here, in the background
// where the registry must be asked. One that is damaged does not stop the others.
func (s *Snapshotter) restore(kept map[string]bool) error {
	ctx := s.life
	known, err := s.knownIDs(ctx)
	if err != nil {
		return err
	}
	for id, name := range known {
		dir := s.snapshotDir(id)
		saved, err := readBinding(dir)
		if errors.Is(err, os.ErrNotExist) {
			continue // an ordinary snapshot
		}
		if err != nil {
			s.log.Error("snapshot's record is damaged", "key", name, "err", err)
			saved = savedBinding{Version: bindingVersion, Name: name, Quarantined: err.Error()}
		}
		s.bindings[id] = &binding{id: id, dir: dir, saved: saved}
	}
	s.findBroken(kept)
	var wg sync.WaitGroup
	slots := make(chan struct{}, 8)
	for _, b := range s.allBindings() {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			s.restoreBinding(b, kept)
		})
	}
	wg.Wait()
	if err := s.removeStray(ctx); err != nil {
		s.log.Warn("strays of an earlier life not removed", "err", err)
	}
	return nil
}

func (s *Snapshotter) restoreBinding(b *binding, kept map[string]bool) {
	b.mu.Lock()
	saved := b.saved
	b.mu.Unlock()
	if saved.Quarantined != "" {
		return
	}
	f, err := s.layers.cache.File(saved.CacheID, s.layers.blob(&saved.Source))
	if saved.CacheID == "" || err != nil {
		s.startAttempt(b)
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.file = f
	if kept[b.fsDir()] && f.PinIfComplete() {
		b.how = mountedDirect
	} else if err := errors.Join(blockdev.Unmount(b.fsDir()), s.mountLocked(b)); err != nil {
		s.log.Error("layer not mounted", "key", saved.Name, "digest", saved.Source.Descriptor.Digest, "err", err)
		return // the next Mounts tries again
	}
	b.attempt = &attempt{done: make(chan struct{})}
	close(b.attempt.done)
}
