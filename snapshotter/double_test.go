package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/blockdev/autofs"
	"github.com/remora-storage/remora/blockdev/export"
	"github.com/remora-storage/remora/blockdev/mounts"
	"github.com/remora-storage/remora/blockdev/probe"
	"github.com/remora-storage/remora/cache"
)

// A double stands for the kernel: it is the Kernel and the Mounter of a Snapshotter. It has a table of
// mounts, and what is read through one of them comes from where the kernel would ask. It stays when a
// Snapshotter ends, as a kernel does.
type double struct {
	root    string
	outlive bool // a holder keeps the exports

	mu     sync.Mutex // guards the fields below
	table  []mounted
	others []elsewhere
	found  probe.Results
	kept   map[string]bool // what the holder has: "files", "trees"
	marks  map[string]bool // image files that the kernel asks about
	pinned map[uint64]*cache.File
	busy   map[string]bool // directories that are in use
	fails  map[string]error
	served int               // devices that are exported
	loops  map[string]string // files of loop devices
	gates  *doubleGates
}

// mounted is an entry of the table of mounts.
type mounted struct {
	mounts.Mount
	way blockdev.Backend // "" for what needs no process of ours
	id  uint64
	dev blockdev.Device // what the kernel asks; nil while nobody serves it

	bound bool   // it is another one's, at a second place
	plain string // the directory that it shows; "" for an image's
}

// elsewhere is a mount of another mount namespace.
type elsewhere struct {
	ns mounts.Namespace
	mounts.Mount
}

// newDouble returns a kernel that can do everything.
func newDouble(root string) *double {
	works := probe.Result{OK: true, Reason: "works"}
	all := map[blockdev.Backend]probe.Result{}
	for _, way := range blockdev.Backends {
		all[way] = works
	}
	return &double{
		root: root, found: probe.Results{Ways: all, Direct: works, IDMapped: maps.Clone(all)},
		kept: map[string]bool{}, marks: map[string]bool{}, pinned: map[uint64]*cache.File{}, busy: map[string]bool{}, fails: map[string]error{},
	}
}

// fail has an operation fail from now on; nil ends that.
func (k *double) fail(operation string, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.fails[operation] = err
}

// on returns what is mounted on a directory, the oldest first.
func (k *double) on(dir string) (all []mounted) {
	dir = filepath.Clean(dir)
	k.mu.Lock()
	defer k.mu.Unlock()
	for i, m := range k.table {
		if m.Dir != dir {
			continue
		}
		if m.dev == nil && m.way == blockdev.Precontent && !k.marks[filepath.Base(filepath.Dir(m.Source))] {
			// Nobody is asked any more: what is missing is zeros.
			if f, err := os.Open(m.Source); err == nil {
				m.dev = direct{f}
				k.table[i].dev = m.dev
			}
		}
		all = append(all, m)
	}
	return all
}

// mountOther adds a mount that is not a Snapshotter's doing.
func (k *double) mountOther(m mounts.Mount) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.table = append(k.table, mounted{Mount: m})
}

// unmountOther takes one away.
func (k *double) unmountOther(dir string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.table = slices.DeleteFunc(k.table, func(m mounted) bool { return m.Dir == dir })
}

// mountElsewhere adds a mount of another mount namespace.
func (k *double) mountElsewhere(ns mounts.Namespace, m mounts.Mount) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.others = append(k.others, elsewhere{ns, m})
}

// setBusy says whether something uses what is mounted on a directory.
func (k *double) setBusy(dir string, busy bool) {
	dir = filepath.Clean(dir)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.busy[dir] = busy
}

// kill ends the process that serves the mounts. Without a holder, what they need is gone.
func (k *double) kill() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.served = 0
	if !k.outlive {
		clear(k.kept)
		clear(k.marks)
	}
	for i, m := range k.table {
		if _, ok := m.dev.(direct); ok {
			continue
		}
		k.table[i].dev = nil
	}
}

// reboot ends it with all that is mounted.
func (k *double) reboot() {
	k.kill()
	k.mu.Lock()
	defer k.mu.Unlock()
	clear(k.kept)
	clear(k.marks)
	for len(k.table) > 0 {
		k.dropLocked(k.table[0].Dir)
	}
}

// close ends the kernel.
func (k *double) close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, m := range slices.Clone(k.table) {
		k.dropLocked(m.Dir)
	}
}

// The Kernel.

func (k *double) Probe(_ string, pinned blockdev.Backend, safe bool) (Capabilities, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return choose(k.found, pinned, safe), k.fails["probe"]
}

func (k *double) TryUpper(string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.fails["upper"]
}

func (k *double) MountImage(path, dir string, loop bool) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.fails["image"]; err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	source := path
	if loop {
		source = "/dev/loop" + filepath.Base(path)[:8]
	}
	k.table = append(k.table, mounted{Mount: mounts.Mount{Dir: dir, Type: "erofs", Source: source}, dev: direct{f}})
	return nil
}

func (k *double) Unmount(dir string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.fails["unmount"]; err != nil {
		return err
	}
	k.dropLocked(dir)
	return nil
}

func (k *double) LoopFile(dev string) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.loops[dev]
}

func (k *double) UnmountUnused(dir string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.busy[dir] {
		return unix.EBUSY
	}
	k.dropLocked(dir)
	return nil
}

func (k *double) Bind(from, to string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, m := range slices.Backward(k.table) {
		if m.Dir == from {
			m.Dir, m.bound = to, true
			k.table = append(k.table, m)
			return k.fails["bind"]
		}
	}
	k.table = append(k.table, mounted{Mount: mounts.Mount{Dir: to, Type: "ext4", Source: "/dev/root"}, plain: from})
	return k.fails["bind"]
}

// doubleGates are autofs mounts in the table.
type doubleGates struct {
	k      *double
	answer func(dir string) error
}

func (k *double) Gates(answer func(dir string) error) (Gates, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.fails["gates"]; err != nil {
		return nil, err
	}
	k.gates = &doubleGates{k, answer}
	return k.gates, nil
}

func (g *doubleGates) Mount(dir string) error {
	g.k.mu.Lock()
	defer g.k.mu.Unlock()
	if err := g.k.fails["gate"]; err != nil {
		return err
	}
	g.k.table = append(g.k.table, mounted{Mount: mounts.Mount{Dir: dir, Type: autofs.Type, Source: "remora"}})
	return nil
}

func (g *doubleGates) Quiet(mounts.Mount) error { return nil } // nobody waits: look is called when there is an answer

func (g *doubleGates) Close() error {
	g.k.mu.Lock()
	defer g.k.mu.Unlock()
	g.k.gates = nil
	return nil
}

// enter does what the kernel does with who mounts something on a directory: it goes to what is mounted there, or asks at the gate.
func (k *double) enter(dir string) error {
	for asked := false; ; asked = true {
		if _, err := os.Stat(dir); err != nil {
			return err
		}
		on := k.on(dir)
		k.mu.Lock()
		gates := k.gates
		k.mu.Unlock()
		switch {
		case len(on) == 0:
			return errors.New("nothing is there, and nobody says so")
		case on[len(on)-1].Type != autofs.Type:
			return nil
		case asked:
			return errors.New("let in, but nothing is there")
		case gates == nil:
			return unix.ENOENT
		}
		if err := gates.answer(dir); err != nil {
			return err
		}
	}
}

// countGates returns how many gates there are.
func (k *double) countGates() (n int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, m := range k.table {
		if m.Type == autofs.Type {
			n++
		}
	}
	return n
}

func (k *double) dropLocked(dir string) {
	k.table = slices.DeleteFunc(k.table, func(m mounted) bool {
		if m.Dir != dir {
			return false
		}
		if d, ok := m.dev.(direct); ok && !m.bound {
			d.f.Close()
		}
		return true
	})
}

func (k *double) Own() (all []mounts.Mount, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, m := range k.table {
		all = append(all, m.Mount)
	}
	return all, k.fails["own"]
}

func (k *double) Everywhere(use func(mounts.Namespace, mounts.Mount)) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, m := range k.table {
		use(mounts.Namespace{PID: "1", Own: true}, m.Mount)
	}
	for _, m := range k.others {
		use(m.ns, m.Mount)
	}
	return k.fails["everywhere"]
}

// The Mounter.

func (k *double) Outlive() bool { return k.outlive }

func (k *double) mount(way blockdev.Backend, id uint64, f *cache.File, dir string) error {
	return k.serve(way, id, f, dir)
}

func (k *double) serve(way blockdev.Backend, id uint64, dev blockdev.Device, dir string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.fails["mount"]; err != nil {
		return err
	}
	m := mounts.Mount{Dir: dir, Type: "erofs", Source: filepath.Join(k.filesDir(), fmt.Sprint(id))}
	switch way {
	case blockdev.Precontent:
		f := dev.(*cache.File)
		f.Pin()
		m.Source, k.marks[f.ID()], k.pinned[id] = f.Path(), true, f
	case blockdev.FuseTree:
		m.Type, m.Source, m.Root, k.kept["trees"] = treeType, "remora", fmt.Sprint("/", id), true
	case blockdev.FuseLoop:
		m.Source, k.kept["files"] = "/dev/loop"+fmt.Sprint(id), true
	default:
		k.kept["files"] = true
	}
	k.table = append(k.table, mounted{Mount: m, way: way, id: id, dev: dev})
	k.served++
	return nil
}

func (k *double) release(way blockdev.Backend, id uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.served--
	if way == blockdev.Precontent {
		k.pinned[id].Unpin()
		delete(k.pinned, id)
	}
}

func (k *double) expose(id uint64, f *cache.File) (path string, end func(), err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.fails["expose"]; err != nil {
		return "", nil, err
	}
	k.served++
	return filepath.Join(k.filesDir(), fmt.Sprint(id)), func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.served--
	}, nil
}

func (k *double) complete(f *cache.File) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if f.Complete() {
		delete(k.marks, f.ID())
	}
	return k.fails["complete"]
}

func (k *double) forget(id string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.marks, id)
	return k.fails["forget"]
}

func (k *double) filesDir() string { return filepath.Join(k.root, "fuse") }
func (k *double) treesDir() string { return filepath.Join(k.root, "trees") }

func (k *double) holds(m mounts.Mount) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return m.Dir == k.filesDir() && k.kept["files"] || m.Dir == k.treesDir() && k.kept["trees"]
}

func (k *double) adopt(m mounts.Mount, id uint64, f *cache.File) (blockdev.Backend, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.fails["adopt"]; err != nil {
		return "", err
	}
	way, served := blockdev.FuseFile, k.kept["files"]
	switch {
	case m.Type == "fuse.remora":
		way, served = blockdev.FuseTree, k.kept["trees"]
	case m.Type != "erofs":
		return "", errors.New("it is not a mount of ours")
	case strings.HasPrefix(m.Source, "/dev/loop"):
		way = blockdev.FuseLoop
	case filepath.Dir(m.Source) != k.filesDir() && f.Complete():
		delete(k.marks, f.ID())
		return "", k.fails["unmark"]
	case filepath.Dir(m.Source) != k.filesDir():
		way, served = blockdev.Precontent, k.marks[f.ID()]
	}
	if !served {
		return "", export.ErrLost
	}
	for i, m := range k.table {
		if m.id == id && m.way == way {
			k.table[i].dev = f
		}
	}
	if way == blockdev.Precontent {
		f.Pin()
		k.pinned[id] = f
	}
	k.served++
	return way, nil
}

func (k *double) start() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.fails["start"]
}

func (k *double) leave() error {
	k.kill()
	return nil
}

func (k *double) end() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	clear(k.kept)
	clear(k.marks)
	k.served = 0
	return k.fails["end"]
}

// direct is an image file that the kernel reads itself.
type direct struct{ f *os.File }

// Size is not asked for.
func (d direct) Size() int64    { return 0 }
func (d direct) BlockSize() int { return 1 }

func (d direct) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	n, err := d.f.ReadAt(p, off)
	if err == io.EOF {
		err = nil
	}
	return n, err
}
