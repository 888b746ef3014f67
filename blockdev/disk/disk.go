package disk

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/blockdev/export"
	"github.com/remora-storage/remora/blockdev/mounts"
)

// A Device is what can be attached. Close follows the last request.
type Device interface {
	blockdev.Device
	io.Closer
}

// A Leaver is a Device that is kept by somebody else: where others are flushed and closed when their disk is detached,
// Leave is called.
type Leaver interface {
	Leave(ctx context.Context) error
}

// A Failer is a Device that may fail for good: whatever uses it gets errors then, and nothing can be flushed.
type Failer interface{ Failed() error }

// A Disk is one that is attached.
type Disk struct {
	Source   string `json:"source"` // what its bytes are, in the words of who attached it
	ReadOnly bool   `json:"read_only"`
	Sector   int    `json:"sector"` // bytes of a logical block
	Size     int64  `json:"size"`   // bytes
	Node     uint64 `json:"node"`   // of its file, never used again
	// At is where the kernel has it, if that can be told when its bytes are gone.
	At *place `json:"at,omitempty"`
	// Dead says that nobody serves its bytes any longer.
	Dead bool `json:"dead,omitempty"`
	// Path is the block device. It is not written down: the kernel knows.
	Path string `json:"-"`
	// Reason says why every request fails, if one does: the bytes could not be opened again.
	Reason string `json:"-"`
}

// Options of Disks.
type Options struct {
	Root    string        // for the record
	Way     export.Blocks // into the kernel
	Taken   bool          // Way.Take has taken over what an earlier process left
	Outlive bool          // a keeper holds what the disks depend on; they end with this process otherwise
	// Open opens a disk's bytes again.
	Open func(ctx context.Context, source string, readOnly bool) (Device, error)
	Log  *slog.Logger
}

// Disks are all that are attached.
type Disks struct {
	opts Options

	prepared sync.Once // this process is fit for the kernel's need of it

	saving sync.Mutex // one record at a time; taken before mu

	mu    sync.Mutex // guards the fields below
	disks map[uint64]*attached
	next  uint64
	turns map[string]chan struct{} // by source: closed when what is done with its disk has ended
}

type attached struct {
	Disk
	dev Device
}

// ErrInUse says that a disk is mounted, or that somebody has it open.
var ErrInUse = errors.New("in use")

// firstNode is the least number of a disk. FUSE has the ones below.
const firstNode = 2

// Open takes over what an earlier process had attached. That process must be dead: whoever holds the root's lock knows.
func Open(ctx context.Context, opts Options) (*Disks, error) {
	d := &Disks{opts: opts, disks: map[uint64]*attached{}, next: firstNode, turns: map[string]chan struct{}{}}
	r, lost, err := d.load()
	if err != nil {
		return nil, err
	}
	d.next = max(d.next, r.Next)
	if lost {
		if r.Disks, err = d.unnamed(); err != nil {
			return nil, err
		}
	}
	if err := d.takeOver(ctx, r.Disks); err != nil || !lost {
		return d, err
	}
	return d, d.save()
}

// takeOver serves the disks of an earlier process, or lets them go where what they depend on has ended with it.
func (d *Disks) takeOver(ctx context.Context, left []Disk) error {
	left = slices.DeleteFunc(left, func(k Disk) bool {
		if k.Dead && k.At != nil && k.At.there() {
			d.keepDead(k)
		}
		return k.Dead
	})
	if d.opts.Taken {
		d.prepare()
		for _, k := range left {
			d.adopt(ctx, k)
		}
		return d.opts.Way.Start()
	}
	if len(left) == 0 {
		return nil
	}
	d.opts.Log.Error("the disks that were attached have ended with who kept them: what uses them gets errors", "disks", len(left))
	for _, k := range left {
		d.bury(k)
	}
	return errors.Join(d.save(), d.opts.Way.End())
}

// Fit gives devices the size of their bytes that another process, which was killed, was about to give them. It may take as long as
// their files do to answer: no start waits for it.
func (d *Disks) Fit(ctx context.Context) {
	left, err := d.opts.Way.Left()
	if err != nil {
		d.opts.Log.Warn("whether block devices have all their bytes is not known", "err", err)
	}
	for _, b := range left {
		if err := d.fit(ctx, b); err != nil {
			d.opts.Log.Error("a block device keeps too few bytes", "device", b.Path, "err", err)
		}
	}
}

func (d *Disks) fit(ctx context.Context, b export.Block) error {
	k, _, ok := d.wants(b.ID)
	if !ok {
		return nil
	}
	end, err := d.turn(ctx, k.Source)
	if err != nil {
		return err
	}
	defer end()
	k, want, ok := d.wants(b.ID)
	if !ok || b.Size >= want && k.Size == want {
		return nil
	}
	if b.Size < want {
		d.opts.Log.Warn("a block device has too few bytes, as one has whose growing was cut short", "source", k.Source, "device", k.Path,
			"size", b.Size, "want", want)
	}
	return d.grow(k.Node)
}

// wants returns a disk that works, and how many bytes its device should have. What cannot be written to stays as it was.
func (d *Disks) wants(node uint64) (k Disk, size int64, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	a := d.disks[node]
	if a == nil {
		return k, 0, false
	}
	k = a.now()
	if size = k.Size; !k.ReadOnly {
		size = a.dev.Size()
	}
	return k, size, k.Reason == ""
}

// adopt serves a disk that is attached already, if it is.
func (d *Disks) adopt(ctx context.Context, k Disk) {
	path, err := d.opts.Way.Find(k.Node)
	if err == nil && path == "" && k.At != nil && k.At.there() {
		d.bury(k)
		return
	}
	if err != nil || path == "" {
		d.opts.Log.Info("a disk is no longer attached", "source", k.Source, "err", err)
		d.drop(k) // whoever was killed may have left what its device was to read
		return
	}
	k.Path, k.At = path, placeOf(path)
	dev, err := d.open(ctx, k)
	if err == nil && dev.Size() < k.Size {
		err = errors.Join(fmt.Errorf("it has %d bytes now, not %d", dev.Size(), k.Size), dev.Close())
	}
	if err != nil {
		d.opts.Log.Error("a disk's bytes are no longer there: everything that uses it fails until it is detached",
			"source", k.Source, "device", path, "err", err)
		k.Reason = err.Error()
		dev = lost{k.Size, err}
	}
	err = d.opts.Way.Adopt(k.Node, dev)
	switch {
	case errors.Is(err, export.ErrLost):
		d.opts.Log.Error("a disk has ended with who kept it: what uses it gets errors", "source", k.Source, "device", path,
			"err", errors.Join(err, dev.Close()))
		d.bury(k)
		return
	case err != nil: // its device went just now
		d.opts.Log.Info("a disk is no longer attached", "source", k.Source, "err", errors.Join(err, dev.Close()))
		d.drop(k)
		return
	}
	d.disks[k.Node] = &attached{k, dev}
}

// open opens a disk's bytes again.
func (d *Disks) open(ctx context.Context, k Disk) (Device, error) {
	if strings.HasPrefix(k.Source, unknownSource) {
		return nil, errUnknown
	}
	return d.opts.Open(ctx, k.Source, k.ReadOnly)
}

// drop lets the device of a disk that has ended go with its last user.
func (d *Disks) drop(k Disk) {
	if err := d.opts.Way.Drop(k.Node); err != nil {
		d.opts.Log.Warn("a block device stays", "source", k.Source, "device", k.Path, "err", err)
	}
}

// lost is a device whose bytes are not there.
type lost struct {
	size int64
	err  error
}

func (l lost) Size() int64    { return l.size }
func (l lost) BlockSize() int { return 1 }
func (l lost) Close() error   { return nil }

func (l lost) ReadAt(context.Context, []byte, int64) (int, error) { return 0, l.err }
func (l lost) WriteAt(context.Context, []byte, int64) error       { return l.err }
func (l lost) Flush(context.Context) error                        { return l.err }

// isLost reports whether a disk's bytes were not there when it was taken over.
func (d *Disks) isLost(k Disk) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	a := d.disks[k.Node]
	if a == nil {
		return false
	}
	_, is := a.dev.(lost)
	return is
}

// Dir returns below which directory of a root a way may mount what disks depend on.
func Dir(root string) string { return filepath.Join(root, "fuse-disks") }

// EarlierDir returns where earlier versions mounted what all disks depended on.
func EarlierDir(root string) string { return filepath.Join(root, "disks") }

// prepare makes this process fit for the kernel's need of it.
func (d *Disks) prepare() {
	d.prepared.Do(func() {
		if err := blockdev.IOFlusher(); err != nil {
			d.opts.Log.Warn("writes of disks may wait for memory that only they can free", "err", err)
		}
	})
}

// Find returns the disk of a source, which has no Path if there is none.
func (d *Disks) Find(source string) Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sweepLocked()
	for _, a := range d.disks {
		if a.Source == source {
			return a.now()
		}
	}
	return Disk{}
}

// now returns the disk with what is known of it now.
func (a *attached) now() Disk {
	k := a.Disk
	if f, ok := a.dev.(Failer); ok && k.Reason == "" {
		if err := f.Failed(); err != nil {
			k.Reason = err.Error()
		}
	}
	return k
}

// List returns what is attached, in the order of attaching.
func (d *Disks) List() []Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.listLocked()
}

func (d *Disks) listLocked() []Disk {
	d.sweepLocked()
	all := make([]Disk, 0, len(d.disks))
	for _, a := range d.disks {
		all = append(all, a.now())
	}
	slices.SortFunc(all, func(a, b Disk) int { return cmp.Compare(a.Node, b.Node) })
	return all
}

// turn waits until nothing else is done with a source's disk, and keeps others from it until end is called. The kernel may wait for
// one disk's store as long as that is away: other disks have turns of their own.
func (d *Disks) turn(ctx context.Context, source string) (end func(), err error) {
	mine := make(chan struct{})
	for {
		d.mu.Lock()
		busy := d.turns[source]
		if busy == nil {
			d.turns[source] = mine
		}
		d.mu.Unlock()
		if busy == nil {
			return func() {
				d.mu.Lock()
				defer d.mu.Unlock()
				delete(d.turns, source)
				close(mine)
			}, nil
		}
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for what is done with %s: %w", source, context.Cause(ctx))
		}
	}
}

// Attach makes a block device of a source's bytes. One that is attached already stays as it is.
func (d *Disks) Attach(ctx context.Context, source string, readOnly bool, sector int) (Disk, error) {
	end, err := d.turn(ctx, source)
	if err != nil {
		return Disk{}, err
	}
	defer end()
	if k := d.Find(source); k.Source != "" {
		if d.isLost(k) {
			return k, fmt.Errorf("%s is attached as %s, which fails (%s); unmount and detach that first", source, k.Path, k.Reason)
		}
		if k.ReadOnly != readOnly || k.Sector != sector {
			return k, fmt.Errorf("%s is attached as %s in another way; detach it first", source, k.Path)
		}
		return k, nil
	}
	dev, err := d.opts.Open(ctx, source, readOnly)
	if err != nil {
		return Disk{}, err
	}
	k, err := d.attach(source, dev, readOnly, sector)
	if err != nil {
		return Disk{}, errors.Join(err, dev.Close())
	}
	return k, nil
}

func (d *Disks) attach(source string, dev Device, readOnly bool, sector int) (Disk, error) {
	if dev.BlockSize() > sector || dev.Size()%int64(sector) != 0 || dev.Size() == 0 {
		return Disk{}, fmt.Errorf("%s has %d bytes in blocks of %d: no disk with sectors of %d", source, dev.Size(), dev.BlockSize(), sector)
	}
	d.prepare()
	a := &attached{Disk{Source: source, ReadOnly: readOnly, Sector: sector, Size: dev.Size()}, dev}
	d.mu.Lock()
	a.Node = d.next
	d.next++
	d.disks[a.Node] = a
	d.mu.Unlock()
	undo := func(err error) (Disk, error) {
		d.mu.Lock()
		delete(d.disks, a.Node)
		d.mu.Unlock()
		return Disk{}, errors.Join(err, d.save())
	}
	if err := d.save(); err != nil { // before the kernel has it
		return undo(err)
	}
	path, err := d.opts.Way.Export(a.Node, dev, export.How{ReadOnly: readOnly, Sector: sector})
	if err != nil {
		return undo(err)
	}
	d.mu.Lock()
	a.Path, a.At = path.String(), placeOf(path.String())
	d.mu.Unlock()
	if err := d.save(); err != nil {
		d.opts.Log.Warn("where a disk is is not noted, should its keeper be killed", "source", source, "err", err)
	}
	return a.Disk, path.Release()
}

// Grow tells the kernel that the bytes of a source have become more. A source without a disk is no error.
func (d *Disks) Grow(ctx context.Context, source string) error {
	end, err := d.turn(ctx, source)
	if err != nil {
		return err
	}
	defer end()
	k := d.Find(source)
	if k.Source == "" || k.Reason != "" {
		return nil
	}
	return d.grow(k.Node)
}

// grow is Grow of a disk whose turn it is.
func (d *Disks) grow(node uint64) error {
	if err := d.opts.Way.Grow(node); err != nil {
		return err
	}
	d.mu.Lock()
	if a := d.disks[node]; a != nil {
		a.Size = a.dev.Size()
	}
	d.mu.Unlock()
	return d.save()
}

// Detach ends the disk of a source or of a block device. It fails with ErrInUse, immediately if this process sees it mounted,
// otherwise if somebody goes on using it, and names the users. One that is not attached is no error.
func (d *Disks) Detach(ctx context.Context, name string) (k Disk, err error) {
	open := openSince(time.Now())
	mounts.While(ctx, mounts.Passing, func() bool {
		k, err = d.detachNow(ctx, name)
		return errors.Is(err, ErrInUse) && !mountedHere(k.Path) && !open(k.Path)
	})
	if errors.Is(err, ErrInUse) {
		err = fmt.Errorf("%w: %s", err, usersOf(k.Path))
	}
	return k, err
}

func (d *Disks) detachNow(ctx context.Context, name string) (Disk, error) {
	source := name
	if k, ok := d.named(name); ok {
		source = k.Source
	}
	end, err := d.turn(ctx, source)
	if err != nil {
		return Disk{}, err
	}
	defer end()
	k, ok := d.named(name)
	if !ok || k.Source != source { // it went meanwhile, and its device is another's
		return Disk{}, nil
	}
	if k.Dead {
		return k, d.detachDead(k)
	}
	return k, d.detach(ctx, k)
}

// named returns the disk of a source or of a block device.
func (d *Disks) named(name string) (Disk, bool) {
	all := d.List()
	i := slices.IndexFunc(all, func(k Disk) bool { return k.Source == name || k.Path == name })
	if i < 0 {
		return Disk{}, false
	}
	return all[i], true
}

func (d *Disks) detach(ctx context.Context, k Disk) error {
	err := d.opts.Way.Withdraw(ctx, k.Node)
	switch {
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%s: %w", k.Path, ErrInUse)
	case err != nil:
		if k.Reason == "" {
			return err
		}
		if err := d.opts.Way.Drop(k.Node); err != nil { // nothing can be flushed
			return err
		}
	}
	d.mu.Lock()
	a := d.disks[k.Node]
	delete(d.disks, k.Node)
	d.mu.Unlock()
	return errors.Join(leave(ctx, a, k.Reason == ""), d.save())
}

func leave(ctx context.Context, a *attached, works bool) error {
	if l, ok := a.dev.(Leaver); ok {
		return l.Leave(ctx)
	}
	var flushed error
	if w, ok := a.dev.(blockdev.Writer); ok && works {
		flushed = w.Flush(ctx)
	}
	return errors.Join(flushed, a.dev.Close())
}

// Close leaves what is attached to the next process, or ends it where nobody keeps it.
func (d *Disks) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var err error
	if d.livesLocked() && d.opts.Outlive {
		err = d.opts.Way.Stop()
	} else {
		for _, a := range d.disks {
			if !a.Dead {
				d.drop(a.Disk)
			}
		}
		err = d.opts.Way.End()
	}
	for _, a := range d.disks {
		err = errors.Join(err, a.dev.Close())
	}
	return err
}
