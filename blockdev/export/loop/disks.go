package loop

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/blockdev/export"
	"github.com/remora-storage/remora/blockdev/mounts"
	"github.com/remora-storage/remora/blockdev/openers"
)

// Disks is the way of disks: loop devices that stay, past the page cache of the file below, so that only the file system
// above keeps pages.
type Disks struct {
	Files

	mu    sync.Mutex // guards loops
	loops map[uint64]looped
}

// looped is an export's loop device.
type looped struct {
	path string
	dev  blockdev.Device // its bytes
}

var _ export.Blocks = (*Disks)(nil)

// NewDisks returns the way of loop devices on files.
func NewDisks(files Files) *Disks { return &Disks{Files: files, loops: map[uint64]looped{}} }

// Backend implements export.Exporter.
func (*Disks) Backend() blockdev.Backend { return "loop" }

// Export implements export.Exporter.
func (d *Disks) Export(id uint64, dev blockdev.Device, how export.How) (export.Path, error) {
	p, err := attach(d.Files, id, dev, how, blockdev.LoopOptions{Stays: true, Direct: true})
	if err == nil {
		d.know(id, looped{p.String(), dev})
	}
	return p, err
}

// attach sets a loop device up on an export's file.
func attach(files Files, id uint64, dev blockdev.Device, how export.How, opts blockdev.LoopOptions) (export.Path, error) {
	file, err := files.Export(id, dev, how)
	if err != nil {
		return nil, err
	}
	opts.Writable, opts.Sector = !how.ReadOnly, how.Sector
	l, err := blockdev.AttachLoopOn(file.String(), opts)
	if err != nil {
		return nil, errors.Join(err, files.Withdraw(context.Background(), id)) // nobody uses it: nothing to wait for
	}
	return device{l}, file.Release()
}

func (d *Disks) know(id uint64, l looped) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.loops[id] = l
}

// known returns an export's device without a look at the kernel's list, with an empty path if it is not known.
func (d *Disks) known(id uint64) looped {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.loops[id]
}

// Find implements export.Blocks.
func (d *Disks) Find(id uint64) (string, error) {
	if l := d.known(id); l.path != "" {
		return l.path, nil
	}
	return blockdev.FindLoop(d.File(id))
}

// Left implements export.Blocks.
func (d *Disks) Left() ([]export.Block, error) {
	all, err := blockdev.LoopFiles()
	if err != nil {
		return nil, err
	}
	var left []export.Block
	for _, l := range all {
		id, err := strconv.ParseUint(filepath.Base(l.File), 10, 64)
		if err != nil || d.File(id) != l.File {
			continue // it is on another file
		}
		size, err := sysfs(l.Dev, "size")
		ro, rerr := sysfs(l.Dev, "ro")
		sector, serr := sysfs(l.Dev, "queue/logical_block_size")
		if err := errors.Join(err, rerr, serr); errors.Is(err, fs.ErrNotExist) {
			continue // it has ended meanwhile
		} else if err != nil {
			return nil, err
		}
		left = append(left, export.Block{
			ID: id, Path: l.Dev, Size: size * sysfsSector, How: export.How{ReadOnly: ro != 0, Sector: int(sector)},
		})
	}
	slices.SortFunc(left, func(a, b export.Block) int { return cmp.Compare(a.ID, b.ID) })
	return left, nil
}

const sysfsSector = 512 // bytes of what /sys/block/*/size counts, whatever the device's sectors have

func sysfs(dev, name string) (int64, error) {
	p, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(dev), name))
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(p)), 10, 64)
}

// Adopt implements export.Exporter.
func (d *Disks) Adopt(id uint64, dev blockdev.Device) error {
	path, err := blockdev.FindLoop(d.File(id))
	if err == nil && path == "" {
		err = fmt.Errorf("no loop device on %s", d.File(id))
	}
	if err == nil {
		err = d.Files.Adopt(id, dev)
	}
	if err == nil {
		d.know(id, looped{path, dev})
	}
	return err
}

// Withdraw implements export.Exporter. What was written to the device has been handed down when it returns; a device that
// somebody else has ended already has been, too.
func (d *Disks) Withdraw(ctx context.Context, id uint64) error {
	if l := d.known(id); l.path != "" {
		if err := blockdev.DetachLoop(l.path, l.quiet); err != nil && !errors.Is(err, unix.ENXIO) {
			return err
		}
	}
	return d.forget(ctx, id)
}

// quiet has a device that no program has open answer flushes sooner, until end is called. Mounted it cannot be.
func (l looped) quiet() (end func()) {
	q, ok := l.dev.(export.Quieter)
	if !ok {
		return func() {}
	}
	return q.Quiet(func() bool {
		by, err := openers.Of(l.path)
		return err == nil && by.Others().None() // what hands down what was written is ours
	})
}

func (d *Disks) forget(ctx context.Context, id uint64) error {
	d.mu.Lock()
	delete(d.loops, id)
	d.mu.Unlock()
	return d.Files.Withdraw(ctx, id)
}

// Drop implements export.Blocks.
func (d *Disks) Drop(id uint64) error {
	path, err := d.Find(id)
	if err == nil && path != "" {
		err = blockdev.DropLoop(path)
	}
	if err != nil {
		return err
	}
	return d.forget(context.Background(), id) // it waits for nothing
}

// Grow implements export.Blocks.
func (d *Disks) Grow(id uint64) error {
	if _, err := os.Stat(d.File(id)); err != nil { // the kernel asks for its size
		return err
	}
	path, err := d.Find(id)
	if err != nil {
		return err
	}
	return blockdev.GrowLoop(path)
}

// Made implements export.Exporter: disks are mounted by others.
func (d *Disks) Made(m mounts.Mount) export.Made {
	if made := d.Files.Made(m); made == export.Connection {
		return made
	}
	return export.NotMade
}
