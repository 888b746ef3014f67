package snapshotter

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/blockdev/fusedev"
	"github.com/remora-storage/remora/blockdev/fusefile"
	"github.com/remora-storage/remora/blockdev/holder"
	"github.com/remora-storage/remora/blockdev/mounts"
	"github.com/remora-storage/remora/blockdev/precontent"
	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/fs/fuse"
)

// Exports are what mounts of incomplete layers depend on: FUSE connections and the fanotify group.
// A keeper in another process keeps them alive while this one is not there.
type Exports struct {
	root     string
	keeper   holder.Keeper
	local    *holder.Local // the keeper, if it is in this process
	instance string
	log      *slog.Logger

	mu      sync.Mutex // guards the fields below
	files   *fusefile.Files
	trees   *fuse.Trees
	treeFS  *fusedev.Conn
	group   *precontent.Group
	started bool
}

// What the keeper has is named after the instance, a random number that a root gets with its
// database: of another instance, node numbers mean something else.
const (
	instanceFile = "instance"
	filesItem    = "fuse-files/"
	treesItem    = "fuse-trees/"
)

// OpenExports takes over what a keeper has kept for the root, and drops what nobody can use. A nil
// keeper keeps nothing beyond this process.
func OpenExports(root string, keeper holder.Keeper, kept map[string][]*os.File, log *slog.Logger) (_ *Exports, err error) {
	e := &Exports{root: root, keeper: keeper, log: log}
	if keeper == nil {
		e.local = holder.NewLocal()
		e.keeper = e.local
	}
	if e.instance, err = instanceOf(root); err != nil {
		return nil, err
	}
	defer func() { e.dropRest(kept) }()
	take := func(item string) []*os.File {
		files := kept[item]
		delete(kept, item)
		return files
	}
	mounted, err := fuseMounts(root)
	if err != nil {
		return nil, err
	}
	if files := take(filesItem + e.instance); files != nil && !mounted[e.filesDir()] {
		kept[filesItem+e.instance] = files // somebody has unmounted it
	} else if files != nil {
		if e.files, err = fusefile.Adopt(e.filesDir(), files, fusefile.Options{Log: log}); err != nil {
			log.Warn("FUSE files not taken over", "err", err)
		}
	}
	if files := take(treesItem + e.instance); files != nil && !mounted[e.treesDir()] {
		kept[treesItem+e.instance] = files
	} else if files != nil {
		if e.treeFS, err = fusedev.Adopt(e.treesDir(), files, e.treeOptions()); err != nil {
			log.Warn("FUSE trees not taken over", "err", err)
		} else {
			e.trees = fuse.NewTrees(log)
		}
	}
	if e.group, err = precontent.Adopt(e.keeper, e.instance, kept, log); err != nil {
		log.Warn("pre-content events not taken over", "err", err)
	}
	return e, nil
}

// fuseMounts lists where FUSE is mounted under a root.
func fuseMounts(root string) (map[string]bool, error) {
	all, err := mounts.Under(root)
	at := map[string]bool{}
	for _, m := range all {
		if m.Type == "fuse.remora" {
			at[m.Dir] = true
		}
	}
	return at, err
}

// dropRest has the keeper forget what belongs to nobody.
func (e *Exports) dropRest(kept map[string][]*os.File) {
	for item, files := range kept {
		if err := e.keeper.Drop(item); err != nil {
			e.log.Warn("the holder keeps what nobody needs", "item", item, "err", err)
		}
		for _, f := range files {
			f.Close() // only a reference
		}
	}
}

// instanceOf returns the root's instance, a new one if the root has no database.
func instanceOf(root string) (string, error) {
	path := filepath.Join(root, instanceFile)
	if _, err := os.Stat(filepath.Join(root, databaseFile)); err == nil {
		if p, err := os.ReadFile(path); err == nil && len(p) > 0 {
			return string(p), nil
		}
	}
	var p [8]byte
	if _, err := rand.Read(p[:]); err != nil {
		return "", err
	}
	id := hex.EncodeToString(p[:])
	return id, os.WriteFile(path, []byte(id), 0o600)
}

func (e *Exports) filesDir() string { return filepath.Join(e.root, "fuse") }
func (e *Exports) treesDir() string { return filepath.Join(e.root, "trees") }

func (e *Exports) treeOptions() fusedev.Options { return fusedev.Options{AnyUser: true, Log: e.log} }

// Held returns the descriptor of an image file that the kernel reports reads of, if an earlier
// process left one.
func (e *Exports) Held(id string) *os.File {
	if e.group == nil {
		return nil
	}
	return e.group.Held(id)
}

// marked reports whether the kernel asks this process, or its holder, for what an image misses.
func (e *Exports) marked(id string) bool { return e.group != nil && e.group.Taken(id) }

// Outlive reports whether mounts outlive this process.
func (e *Exports) Outlive() bool { return e.local == nil }

// adopted reports what was taken over.
func (e *Exports) adopted() (files, trees bool) { return e.files != nil, e.trees != nil }

// start serves what was taken over. All bindings have been told of before.
func (e *Exports) start() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.started = true
	var errs []error
	if e.files != nil {
		errs = append(errs, e.files.Start())
	}
	if e.treeFS != nil {
		errs = append(errs, e.treeFS.Start(e.trees))
	}
	if e.group != nil {
		errs = append(errs, e.group.Start())
	}
	return errors.Join(errs...)
}

// theFiles returns the directory of FUSE-served files, mounting it if need be.
func (e *Exports) theFiles() (*fusefile.Files, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.files != nil {
		return e.files, nil
	}
	if err := blockdev.FreshDir(e.filesDir()); err != nil {
		return nil, err
	}
	f, err := fusefile.Mount(e.filesDir(), fusefile.Options{Log: e.log})
	if err != nil {
		return nil, err
	}
	if err := e.keeper.Put(filesItem+e.instance, f.Kept()...); err != nil {
		return nil, errors.Join(fmt.Errorf("give the FUSE connection to the holder: %w", err), f.Unmount())
	}
	e.files = f
	return f, nil
}

// theTrees returns the FUSE-served trees, mounting them if need be.
func (e *Exports) theTrees() (*fuse.Trees, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.trees != nil {
		return e.trees, nil
	}
	if err := blockdev.FreshDir(e.treesDir()); err != nil {
		return nil, err
	}
	conn, err := fusedev.Mount(e.treesDir(), e.treeOptions())
	if err != nil {
		return nil, err
	}
	trees := fuse.NewTrees(e.log)
	if err := conn.Start(trees); err != nil {
		return nil, errors.Join(err, conn.Unmount())
	}
	if err := e.keeper.Put(treesItem+e.instance, conn.Files()...); err != nil {
		return nil, errors.Join(fmt.Errorf("give the FUSE connection to the holder: %w", err), conn.Unmount())
	}
	e.trees, e.treeFS = trees, conn
	return trees, nil
}

// theGroup returns the fanotify group, making it if need be.
func (e *Exports) theGroup() (*precontent.Group, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.group != nil {
		return e.group, nil
	}
	g, err := precontent.New(e.keeper, e.instance, e.log)
	if err != nil {
		return nil, err
	}
	if err := g.Start(); err != nil {
		return nil, errors.Join(err, g.Close())
	}
	e.group = g
	return g, nil
}

// Numbers by which an export is known to the kernel: made of the snapshot's, which is never used
// again.
func nodeOf(id uint64) uint64   { return id + fusefile.FirstNode }
func numberOf(id uint64) uint32 { return uint32(id) }

// mount mounts an incomplete layer.
func (e *Exports) mount(way blockdev.Backend, id uint64, f *cache.File, dir string) error {
	switch way {
	case blockdev.FuseFile, blockdev.FuseLoop, blockdev.FuseTree:
		return e.serve(way, id, f, f, dir)
	case blockdev.Precontent:
		group, err := e.theGroup()
		if err != nil {
			return err
		}
		f.Pin()
		if err = group.Mark(f.ID(), f); err == nil {
			err = blockdev.MountLazyEROFS(f.Path(), dir)
		}
		if err != nil {
			f.Unpin() // the mark stays with the file
		}
		return err
	}
	return fmt.Errorf("back end %q is not known", way)
}

// serve mounts what a device serves of a layer by FUSE: the layer's image itself, or who passes its
// reads on.
func (e *Exports) serve(way blockdev.Backend, id uint64, f *cache.File, dev blockdev.Device, dir string) error {
	if way == blockdev.FuseTree {
		trees, err := e.theTrees()
		if err != nil {
			return err
		}
		if err := trees.Add(numberOf(id), f.Image(), f.MetaSize(), dev); err != nil {
			return err
		}
		if err := bindTree(e.treesDir(), numberOf(id), dir); err != nil {
			trees.Remove(numberOf(id))
			return err
		}
		return nil
	}
	files, err := e.theFiles()
	if err != nil {
		return err
	}
	path := files.Export(nodeOf(id), dev)
	mount := blockdev.MountLazyEROFS
	if way == blockdev.FuseLoop {
		mount = blockdev.MountLoop
	}
	if err := mount(path, dir); err != nil {
		files.Withdraw(nodeOf(id))
		return err
	}
	return nil
}

// expose makes a file of an image's bytes; end takes it away.
func (e *Exports) expose(id uint64, f *cache.File) (path string, end func(), err error) {
	files, err := e.theFiles()
	if err != nil {
		return "", nil, err
	}
	return files.Export(nodeOf(id), f), func() { files.Withdraw(nodeOf(id)) }, nil
}

// bindTree shows a tree in a directory.
func bindTree(trees string, number uint32, dir string) error {
	source := filepath.Join(trees, strconv.FormatUint(uint64(number), 10))
	if err := unix.Mount(source, dir, "", unix.MS_BIND, ""); err != nil {
		return &os.PathError{Op: "bind " + source + " on", Path: dir, Err: err}
	}
	return nil
}

// adopt connects a layer that an earlier process mounted with its image.
func (e *Exports) adopt(way blockdev.Backend, id uint64, f *cache.File) error {
	switch way {
	case blockdev.FuseFile, blockdev.FuseLoop:
		e.files.Export(nodeOf(id), f)
	case blockdev.FuseTree:
		return e.trees.Add(numberOf(id), f.Image(), f.MetaSize(), f)
	case blockdev.Precontent:
		f.Pin()
		return e.group.Know(f.ID(), f)
	}
	return nil
}

// release undoes mount, after the unmounting.
func (e *Exports) release(way blockdev.Backend, id uint64, f *cache.File) {
	e.mu.Lock()
	files, trees := e.files, e.trees
	e.mu.Unlock()
	switch way {
	case blockdev.FuseFile, blockdev.FuseLoop:
		if files != nil {
			files.Withdraw(nodeOf(id))
		}
	case blockdev.FuseTree:
		if trees != nil {
			trees.Remove(numberOf(id))
		}
	case blockdev.Precontent:
		f.Unpin() // marked it stays: it may still be open somewhere
	}
}

// complete lets the kernel read a complete image without asking.
func (e *Exports) complete(f *cache.File) error {
	e.mu.Lock()
	group := e.group
	e.mu.Unlock()
	if group == nil || !f.Complete() || !group.Knows(f.ID()) {
		return nil
	}
	// A process that comes after this one must know that nothing is missing, since it finds no mark.
	if err := f.Commit(); err != nil {
		return err
	}
	return group.Unmark(f.ID(), f)
}

// unmark takes the mark away that an earlier process left on an image which was complete already.
func (e *Exports) unmark(f *cache.File) error {
	if !e.marked(f.ID()) {
		return nil
	}
	return e.group.Unmark(f.ID(), f)
}

// forget drops an image that is about to be removed.
func (e *Exports) forget(id string) error {
	e.mu.Lock()
	group := e.group
	e.mu.Unlock()
	if group == nil {
		return nil
	}
	return group.Forget(id)
}

// leave stops serving. What is mounted waits for the next process.
func (e *Exports) leave() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	var errs []error
	if e.started {
		if e.files != nil {
			errs = append(errs, e.files.Stop())
		}
		if e.treeFS != nil {
			errs = append(errs, e.treeFS.Stop())
		}
		if e.group != nil {
			errs = append(errs, e.group.Stop())
		}
	}
	return errors.Join(errs...)
}

// end takes everything away, for good. Nothing that needs it is mounted any more, or it fails.
func (e *Exports) end() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	var errs []error
	if e.files != nil {
		errs = append(errs, e.keeper.Drop(filesItem+e.instance), e.files.Unmount())
	}
	if e.treeFS != nil {
		errs = append(errs, e.keeper.Drop(treesItem+e.instance), e.treeFS.Unmount())
	}
	if e.group != nil {
		errs = append(errs, e.group.Close())
	}
	e.files, e.trees, e.treeFS, e.group = nil, nil, nil, nil
	if e.local != nil {
		errs = append(errs, e.local.Close())
		e.local = holder.NewLocal()
		e.keeper = e.local
	}
	return errors.Join(errs...)
}

// wayOf says by which back end a mount was made: Precontent also where an image file that is complete
// is mounted as it is, and "" where that is by a loop device. ok is false for what is not a layer's.
func (e *Exports) wayOf(m mounts.Mount) (way blockdev.Backend, ok bool) {
	switch {
	case m.Type == "fuse.remora":
		return blockdev.FuseTree, true
	case m.Type != "erofs":
		return "", false
	case filepath.Dir(m.Source) == e.filesDir():
		return blockdev.FuseFile, true
	case strings.HasPrefix(m.Source, filepath.Join(e.root, "cache")+"/"):
		return blockdev.Precontent, true // or direct: the image is complete then
	case strings.HasPrefix(m.Source, "/dev/loop"):
		back, err := os.ReadFile("/sys/block/" + filepath.Base(m.Source) + "/loop/backing_file")
		if err == nil && filepath.Dir(strings.TrimSpace(string(back))) == e.filesDir() {
			return blockdev.FuseLoop, true
		}
		if err == nil && strings.HasPrefix(string(back), filepath.Join(e.root, "cache")+"/") {
			return "", true // complete, by a loop device
		}
	}
	return "", false
}
