package snapshotter

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/blockdev/mounts"
	"github.com/remora-storage/remora/blockdev/probe"
	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/cache/blob"
	"github.com/remora-storage/remora/fs/erofs"
	"github.com/remora-storage/remora/fs/layout"
	"github.com/remora-storage/remora/internal/durable"
	"github.com/remora-storage/remora/snapshotter/layers"
	"github.com/remora-storage/remora/snapshotter/start"
)

// Lock takes a root directory for this process. It fails if another remorad has it.
func Lock(root string) (*os.File, error) {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, err
	}
	f, err := blockdev.LockFile(filepath.Join(root, "lock"))
	if errors.Is(err, blockdev.ErrLocked) {
		return nil, fmt.Errorf("another remorad runs on %s; stop it, or choose another --root", root)
	}
	return f, err
}

// New opens the snapshotter in root, which the caller has locked, and mounts again what was
// mounted before. Close must be called.
func New(root string, c *cache.Cache, reg layers.Registry, images Images, opts Options) (_ *Snapshotter, err error) {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.Layers.Log == nil {
		opts.Layers.Log = opts.Log
	}
	if opts.Exports == nil {
		if opts.Exports, err = OpenExports(root, nil, nil, nil, opts.Log); err != nil {
			return nil, err
		}
	}
	if opts.Kernel == nil {
		opts.Kernel = machine{opts.Log}
	}
	if opts.GoneFor == 0 {
		opts.GoneFor = goneFor
	}
	if opts.ImportWait == 0 {
		opts.ImportWait = importWait
	}
	s := &Snapshotter{
		root: root, opts: opts, log: opts.Log, images: images, exports: opts.Exports, kernel: opts.Kernel,
		cache:    c,
		bindings: map[string]*binding{}, answered: map[string]time.Time{}, broken: map[string]string{},
		recordings: map[string]*Recording{}, lostImages: map[string]bool{},
	}
	s.life, s.stop = context.WithCancel(context.Background())
	s.layers = layers.New(s.life, root, c, reg, opts.Layers, layers.Hooks{
		Built:      func(src *layers.Source, f *cache.File, landmark []uint32) { s.starts.Built(src, f, landmark) },
		Unreadable: func(src *layers.Source) { s.starts.Unreadable(src) },
		Unclaimed:  s.unclaimed, Places: s.placesOf, Lost: s.lost,
	})
	first := start.Options{Memory: opts.Layers.Memory, Learn: opts.Learn, Log: opts.Log}
	s.starts = start.New(s.life, root, c, reg, s.layers, first, start.Hooks{Known: s.filesOf, Open: s.startAll})
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	left, err := s.kernel.Own()
	if err != nil {
		return nil, err
	}
	left = slices.DeleteFunc(left, func(m mounts.Mount) bool {
		return !strings.HasPrefix(m.Dir, root+"/") || slices.Contains(opts.NotOurs, m.Dir)
	})
	earlier := s.sortMounts(left)
	if err := os.MkdirAll(s.snapshotsDir(), 0o700); err != nil {
		return nil, err
	}
	if err := s.prepareScratch(earlier.scratch); err != nil {
		return nil, err
	}
	removeProbes(root)
	if s.caps, err = s.kernel.Probe(root, opts.Backend, s.exports.Outlive() && !opts.Pod); err != nil {
		return nil, err
	}
	s.log.Info("back end chosen", "backend", s.caps.Lazy, "reason", s.caps.LazyReason, "direct", s.caps.Direct, "not_direct", s.caps.Reason)
	if _, err := os.Stat("/sys/module/overlay/parameters/index"); err == nil {
		s.extra = []string{"index=off"}
	}
	s.openGates()
	if s.store, err = openDatabase(root, opts.Log); err != nil {
		return nil, err
	}
	if err := s.restore(earlier); err != nil {
		return nil, fmt.Errorf("restore %s: %w", root, err)
	}
	s.started.Go(func() { s.watch(s.life) })
	s.started.Go(func() { s.completeLayers(s.life) })
	s.started.Go(func() { s.keepBlobs(s.life) })
	if s.opts.Releases != nil {
		s.started.Go(func() { s.releaseGone(s.life) })
	}
	return s, nil
}

// removeProbes deletes what probes that were killed have left. Nothing of it is mounted any more.
func removeProbes(root string) {
	left, err := filepath.Glob(filepath.Join(root, "probe-*"))
	if err != nil {
		return // the pattern is right
	}
	for _, dir := range left {
		_ = os.RemoveAll(dir) // else the next start tries again
	}
}

// sweep deletes what replacements of files that a power cut ended have left in a directory, which need not exist.
func (s *Snapshotter) sweep(dir string) {
	if err := durable.Sweep(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		s.log.Warn("files that were never finished stay", "dir", dir, "err", err)
	}
}

// Close stops all work. Where a holder keeps them, mounts stay, and whoever reads what they miss
// waits for the next process; otherwise those that need this process are taken away. Layers that
// the kernel reads itself stay in any case.
func (s *Snapshotter) Close() error {
	s.stop()
	s.started.Wait()
	s.starts.Close()
	s.layers.Close()
	errs := []error{s.endRecordings(), s.closeGates()}
	if s.exports.Outlive() {
		if n := s.countLazy(); n > 0 {
			s.log.Info("mounts stay: reads of what is missing wait until remorad starts again (snapctl detach --all ends the mounts)", "layers", n)
		}
		errs = append(errs, s.exports.leave())
	} else {
		for _, b := range s.allBindings() {
			if b.isLazy() {
				errs = append(errs, s.unmount(b))
			}
		}
		errs = append(errs, s.exports.end(), s.releaseScratch())
	}
	if s.store != nil {
		errs = append(errs, s.store.Close())
	}
	return errors.Join(errs...)
}

// probeImage is a tiny EROFS image with a directory and a file of one block.
func probeImage() []byte {
	b := layout.NewBuilder(layout.Limits{})
	_, _, err := b.Add(probe.DirName, layout.Inode{Mode: unix.S_IFDIR | 0o755})
	if err != nil {
		panic(err) // a constant layout
	}
	file, _, err := b.Add(probe.FileName, layout.Inode{Mode: unix.S_IFREG | 0o644, Size: erofs.BlockSize})
	if err == nil {
		err = b.AddExtent(file, layout.Extent{Len: erofs.BlockSize})
	}
	if err != nil {
		panic(err)
	}
	l, err := b.Finish(blob.Plain, []blob.Unit{{Len: erofs.BlockSize}}, func(u uint32) uint32 { return u })
	if err != nil {
		panic(err)
	}
	plan, err := erofs.NewPlan(l, [16]byte{})
	if err != nil {
		panic(err)
	}
	var w imageBytes
	if _, err := plan.WriteTo(&w); err != nil {
		panic(err)
	}
	return append(w, bytes.Repeat([]byte{probe.FileByte}, erofs.BlockSize)...)
}

type imageBytes []byte

func (m *imageBytes) Write(p []byte) (int, error) {
	*m = append(*m, p...)
	return len(p), nil
}

var _ io.Writer = (*imageBytes)(nil)

// restore loads bindings and mounts them: at once where the image is here, in the background
// where the registry must be asked. One that is damaged does not stop the others.
func (s *Snapshotter) restore(earlier earlierMounts) error {
	ctx := s.life
	known, err := s.knownIDs(ctx)
	if err != nil {
		return err
	}
	for id, name := range known {
		dir := s.snapshotDir(id)
		saved, remote := loadBinding(dir, name, s.log)
		if !remote {
			continue
		}
		s.sweep(dir)
		s.bindings[id] = &binding{id: id, dir: dir, saved: saved}
	}
	strays, err := s.strayBindings(known, earlier)
	if err != nil {
		return err
	}
	// First what is mounted: the kernel is served again as soon as all of that is known.
	eachOf(s.allBindings(), func(b *binding) { s.adoptBinding(b, earlier.layers[b.fsDir()]) })
	s.findBroken()
	s.dropDead(strays)
	if err := s.exports.start(); err != nil {
		return fmt.Errorf("take over what is mounted: %w", err)
	}
	s.renewGates(earlier.gates)
	eachOf(s.allBindings(), s.restoreBinding)
	if err := s.removeStray(ctx); err != nil {
		s.log.Warn("strays of an earlier life not removed", "err", err)
	}
	return nil
}

const restoreAtOnce = 8

func eachOf(all []*binding, do func(*binding)) {
	var running errgroup.Group
	running.SetLimit(restoreAtOnce)
	for _, b := range all {
		running.Go(func() error { do(b); return nil })
	}
	_ = running.Wait() // none of them fails
}

// openImage opens a binding's image if it is in the cache.
func (s *Snapshotter) openImage(b *binding) *cache.File {
	b.mu.Lock()
	saved := b.saved
	b.mu.Unlock()
	if saved.Quarantined != "" || saved.CacheID == "" {
		return nil
	}
	s.layers.Granted.Note(&saved.Source) // by an earlier life
	f, err := s.layers.File(saved.CacheID, &saved.Source)
	if err != nil {
		s.log.Warn("image not in the cache", "digest", saved.Source.Descriptor.Digest, "err", err)
		return nil
	}
	return s.layers.Sources.Add(f, &saved.Source)
}

// adoptBinding takes over what an earlier process has mounted on a binding's directory, the oldest
// first, or takes it away if it cannot be served any more.
func (s *Snapshotter) adoptBinding(b *binding, left []mounts.Mount) {
	if b.isUnpacked() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if len(left) > 0 {
			b.how = mountedUnpacked
			s.finishAttemptLocked(b)
		}
		return
	}
	f := s.openImage(b)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.file = f
	if len(left) == 0 {
		return
	}
	dead := ""
	if f == nil {
		dead = cmp.Or(b.saved.Quarantined, "its image is no longer in the cache")
	}
	for _, m := range left {
		if dead == "" {
			dead = s.adoptMountLocked(b, m)
		}
	}
	if dead == "" {
		s.finishAttemptLocked(b)
		return
	}
	b.dead = dead
	if err := s.unmountLocked(b); err != nil {
		s.log.Warn("mount of an earlier life stays", "dir", b.fsDir(), "err", err)
	}
}

// adoptMountLocked takes one mount over. It returns why that is not possible.
func (s *Snapshotter) adoptMountLocked(b *binding, m mounts.Mount) (dead string) {
	way, err := s.exports.adopt(m, b.number(), b.file)
	if err != nil {
		return err.Error()
	}
	if way == "" {
		b.file.Pin()
		b.pinned++
		b.how = mountedDirect
		return ""
	}
	b.how, b.ways = mountedLazy, append(b.ways, way)
	return ""
}

// restoreBinding mounts a binding's layer unless it is mounted: at once if its image is here, in
// the background otherwise.
func (s *Snapshotter) restoreBinding(b *binding) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.saved.Quarantined != "", b.how != notMounted:
		return
	case b.file == nil:
		s.startAttemptLocked(b)
		return
	}
	if err := s.mountLocked(b); err != nil {
		s.log.Error("layer not mounted", "key", b.saved.Name, "digest", b.saved.Source.Descriptor.Digest, "err", err)
		return // the next Mounts tries again
	}
	s.finishAttemptLocked(b)
}

// finishAttemptLocked notes that the binding is mounted.
func (s *Snapshotter) finishAttemptLocked(b *binding) {
	b.attempt = &attempt{done: make(chan struct{})}
	close(b.attempt.done)
}
