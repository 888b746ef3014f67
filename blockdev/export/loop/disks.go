package loop

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
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
	files Files // of what is exported
	log   *slog.Logger

	mu      sync.Mutex // guards the fields below
	earlier []Files    // of what earlier versions exported, until it ends: nothing new comes here
	at      map[uint64]place
	started bool // all that there is of earlier versions is in at
}

// A place is where an export is.
type place struct {
	path  string // of the loop device
	files Files
	dev   blockdev.Device // its bytes
}

var _ export.Blocks = (*Disks)(nil)

// NewDisks returns the way of loop devices on files. earlier are the ways by which earlier versions have exported files: what is
// there is taken over, and each of them ends with its last device.
func NewDisks(log *slog.Logger, files Files, earlier ...Files) *Disks {
	return &Disks{files: files, earlier: earlier, log: log, at: map[uint64]place{}}
}

// Backend implements export.Exporter.
func (*Disks) Backend() blockdev.Backend { return "loop" }

func (d *Disks) all() []Files {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]Files{d.files}, d.earlier...)
}

// each does the same on each of the ways of files.
func (d *Disks) each(do func(Files) error) error {
	var errs []error
	for _, f := range d.all() {
		errs = append(errs, do(f))
	}
	return errors.Join(errs...)
}

// Take implements export.Life.
func (d *Disks) Take(kept map[string][]*os.File) (taken bool, err error) {
	err = d.each(func(f Files) error {
		has, err := f.Take(kept)
		taken = taken || has
		return err
	})
	return taken, err
}

// Start implements export.Life.
func (d *Disks) Start() error {
	d.mu.Lock()
	d.started = true
	d.mu.Unlock()
	d.endUnused()
	return d.each(Files.Start)
}

// endUnused ends the ways of earlier versions that have no device any more. One that does not end is nobody's trouble, and ends when the
// next device has gone.
func (d *Disks) endUnused() {
	d.mu.Lock()
	unused := slices.Clone(d.earlier)
	if !d.started {
		unused = nil
	}
	for _, p := range d.at {
		unused = slices.DeleteFunc(unused, func(f Files) bool { return f == p.files })
	}
	d.mu.Unlock()
	for _, f := range unused {
		if err := f.End(); err != nil {
			d.log.Warn("what an earlier version's disks were read by stays", "err", err)
			continue
		}
		d.mu.Lock()
		d.earlier = slices.DeleteFunc(slices.Clone(d.earlier), func(e Files) bool { return e == f })
		d.mu.Unlock()
	}
}

// Stop implements export.Life.
func (d *Disks) Stop() error { return d.each(Files.Stop) }

// End implements export.Life.
func (d *Disks) End() error { return d.each(Files.End) }

// Export implements export.Exporter.
func (d *Disks) Export(id uint64, dev blockdev.Device, how export.How) (export.Path, error) {
	p, err := attach(d.files, id, dev, how, blockdev.LoopOptions{Stays: true, Direct: true})
	if err == nil {
		d.know(id, place{p.String(), d.files, dev})
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

func (d *Disks) know(id uint64, p place) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.at[id] = p
}

// known returns where an export is without a look at the kernel's list.
func (d *Disks) known(id uint64) place {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.at[id]
}

// find returns where an export is, whoever made it. Its path is "" if the kernel has no device of it.
func (d *Disks) find(id uint64) (place, error) {
	if p := d.known(id); p.path != "" {
		return p, nil
	}
	all, err := blockdev.LoopFiles()
	for _, f := range d.all() {
		for _, l := range all {
			if l.File == f.File(id) {
				return place{path: l.Dev, files: f}, nil
			}
		}
	}
	return place{files: d.files}, err
}

// Find implements export.Blocks.
func (d *Disks) Find(id uint64) (string, error) {
	p, err := d.find(id)
	return p.path, err
}

// Left implements export.Blocks.
func (d *Disks) Left() ([]export.Block, error) {
	all, err := blockdev.LoopFiles()
	if err != nil {
		return nil, err
	}
	var left []export.Block
	ways := d.all()
	for _, l := range all {
		id, err := strconv.ParseUint(filepath.Base(l.File), 10, 64)
		if err != nil || !slices.ContainsFunc(ways, func(f Files) bool { return f.File(id) == l.File }) {
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
	p, err := d.find(id)
	if err == nil && p.path == "" {
		err = fmt.Errorf("no loop device on %s", p.files.File(id))
	}
	if err == nil {
		err = p.files.Adopt(id, dev)
	}
	if err == nil {
		p.dev = dev
		d.know(id, p)
	}
	return err
}

// Withdraw implements export.Exporter. What was written to the device has been handed down when it returns; a device that
// somebody else has ended already has been, too.
func (d *Disks) Withdraw(ctx context.Context, id uint64) error {
	p := d.known(id)
	if p.path == "" {
		return d.forget(ctx, id, d.files)
	}
	if err := blockdev.DetachLoop(p.path, p.quiet); err != nil && !errors.Is(err, unix.ENXIO) {
		return err
	}
	return d.forget(ctx, id, p.files)
}

// quiet has a device that no program has open answer flushes sooner, until end is called. Mounted it cannot be.
func (p place) quiet() (end func()) {
	q, ok := p.dev.(export.Quieter)
	if !ok {
		return func() {}
	}
	return q.Quiet(func() bool { return openers.Alone(p.path) }) // what hands down what was written is ours
}

// forget takes the file of an export away, whose device has gone.
func (d *Disks) forget(ctx context.Context, id uint64, files Files) error {
	d.mu.Lock()
	delete(d.at, id)
	d.mu.Unlock()
	err := files.Withdraw(ctx, id)
	d.endUnused()
	return err
}

// Drop implements export.Blocks.
func (d *Disks) Drop(id uint64) error {
	p, err := d.find(id)
	if err == nil && p.path != "" {
		err = blockdev.DropLoop(p.path)
	}
	if err != nil {
		return err
	}
	return d.forget(context.Background(), id, p.files) // it waits for nothing
}

// Grow implements export.Blocks.
func (d *Disks) Grow(id uint64) error {
	p, err := d.find(id)
	if err != nil {
		return err
	}
	if _, err := os.Stat(p.files.File(id)); err != nil { // the kernel asks for its size
		return err
	}
	return blockdev.GrowLoop(p.path)
}

// Made implements export.Exporter: disks are mounted by others.
func (d *Disks) Made(m mounts.Mount) export.Made {
	for _, f := range d.all() {
		if f.Made(m) == export.Connection {
			return export.Connection
		}
	}
	return export.NotMade
}
