package snapshotter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

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
	s := &Snapshotter{}
	s.wire(&base{root: root, opts: opts, log: opts.Log, images: images, exports: opts.Exports, kernel: opts.Kernel, cache: c})
	s.life, s.stop = context.WithCancel(context.Background())
	s.layers = layers.New(s.life, root, c, reg, opts.Layers, layers.Hooks{
		Built:      func(src *layers.Source, f *cache.File, landmark []uint32) { s.starts.Built(src, f, landmark) },
		Unreadable: func(src *layers.Source) { s.starts.Unreadable(src) },
		Unclaimed:  s.mending.unclaimed, Places: s.mending.placesOf, Lost: s.releasing.lost,
		Doubted: s.doubting.note,
	})
	first := start.Options{Memory: opts.Layers.Memory, Learn: opts.Learn, Log: opts.Log}
	s.starts = start.New(s.life, root, c, reg, s.layers, first, start.Hooks{Known: s.bindings.filesOf, Open: s.claims.startAll})
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
		return !strings.HasPrefix(m.Dir, root+"/") ||
			slices.ContainsFunc(opts.NotOurs, func(dir string) bool { return m.Dir == dir || strings.HasPrefix(m.Dir, dir+"/") })
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
	s.gating.open()
	if s.store, err = openDatabase(root, opts.Log); err != nil {
		return nil, err
	}
	if err := s.restore(earlier); err != nil {
		return nil, fmt.Errorf("restore %s: %w", root, err)
	}
	s.started.Go(func() { s.telling.run(s.life) })
	s.started.Go(func() { s.chores.watch(s.life) })
	s.started.Go(func() { s.doubting.watch(s.life) })
	s.started.Go(func() { s.chores.completeLayers(s.life) })
	s.started.Go(func() { s.chores.keepBlobs(s.life) })
	if s.opts.Releases != nil {
		s.releasing.load()
		s.started.Go(func() { s.releasing.releaseGone(s.life) })
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
	errs := []error{s.recordings.end(), s.gating.close()}
	if s.exports.Outlive() {
		if n := s.mountings.countLazy(); n > 0 {
			s.log.Info("mounts stay: reads of what is missing wait until remorad starts again (snapctl detach --all ends the mounts)", "layers", n)
		}
		errs = append(errs, s.exports.leave())
	} else {
		for _, b := range s.bindings.all() {
			if b.isLazy() {
				errs = append(errs, s.mountings.unmount(b))
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
		s.bindings.add(&binding{id: id, dir: dir, saved: saved})
	}
	strays, err := s.strayBindings(known, earlier)
	if err != nil {
		return err
	}
	// First what is mounted: the kernel is served again as soon as all of that is known.
	eachOf(s.bindings.all(), func(b *binding) { s.mountings.adoptBinding(b, earlier.layers[b.fsDir()]) })
	s.breakage.find()
	s.dropDead(strays)
	if err := s.exports.start(); err != nil {
		return fmt.Errorf("take over what is mounted: %w", err)
	}
	s.gating.renew(earlier.gates)
	eachOf(s.bindings.all(), s.mountings.restoreBinding)
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
