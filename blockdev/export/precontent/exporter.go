package precontent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/blockdev/export"
	"github.com/remora-storage/remora/blockdev/holder"
	"github.com/remora-storage/remora/blockdev/mounts"
)

// A File is an Image that a cache keeps. A cache.File is one.
type File interface {
	Image
	ID() string   // its name in the cache
	Path() string // where it lies
	Pin()         // keeps what is present, or comes, until Unpin
	Unpin()
}

// ExporterOptions say what an Exporter is for.
type ExporterOptions struct {
	Dir    string        // below which the images lie
	Name   string        // of the group: it tells the groups of a keeper apart
	Keeper holder.Keeper // a Local if the exports end with this process
	Log    *slog.Logger
}

// An Exporter is the way by which the kernel reads an image file itself. The group is made when the first is exported.
type Exporter struct {
	opts ExporterOptions

	mu      sync.Mutex // guards the fields below
	group   *Group
	started bool
	over    bool              // it is the next process's
	pinned  map[uint64][]File // by the number of the export
}

var _ export.InPlace = (*Exporter)(nil)

var (
	errLost = errors.New("remorad and its holder both ended while it was mounted, and until now reads of data that was not here " +
		"gave zeros: what its processes read may be wrong")
	errOver = errors.New("what is exported is left to the next process")
)

// NewExporter returns an Exporter without a group.
func NewExporter(opts ExporterOptions) *Exporter {
	return &Exporter{opts: opts, pinned: map[uint64][]File{}}
}

// Backend implements export.Exporter.
func (e *Exporter) Backend() blockdev.Backend { return blockdev.Precontent }

// Take implements export.Life.
func (e *Exporter) Take(kept map[string][]*os.File) (taken bool, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.group, err = Adopt(e.opts.Keeper, e.opts.Name, kept, e.opts.Log)
	return e.group != nil, err
}

// has returns the group, nil if there is none.
func (e *Exporter) has() *Group {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.group
}

// get returns the group, and makes it if there is none.
func (e *Exporter) get() (*Group, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.over:
		return nil, errOver
	case e.group != nil:
		return e.group, nil
	}
	g, err := New(e.opts.Keeper, e.opts.Name, e.opts.Log)
	if err != nil {
		return nil, err
	}
	if err := g.Start(); err != nil {
		return nil, errors.Join(err, g.Close())
	}
	e.group, e.started = g, true
	return g, nil
}

func fileOf(dev blockdev.Device) (File, error) {
	f, ok := dev.(File)
	if !ok {
		return nil, fmt.Errorf("%T is no file that the kernel can read itself", dev)
	}
	return f, nil
}

func (e *Exporter) pin(id uint64, f File) {
	f.Pin()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.pinned[id] = append(e.pinned[id], f)
}

// Export implements export.Exporter. dev is a File.
func (e *Exporter) Export(id uint64, dev blockdev.Device, _ export.How) (export.Path, error) {
	f, err := fileOf(dev)
	if err != nil {
		return nil, err
	}
	g, err := e.get()
	if err != nil {
		return nil, err
	}
	e.pin(id, f)
	if err := g.Mark(f.ID(), f); err != nil {
		return nil, errors.Join(err, e.Withdraw(context.Background(), id)) // it waits for nothing
	}
	return export.File(f.Path()), nil
}

// Adopt implements export.Exporter. dev is a File.
func (e *Exporter) Adopt(id uint64, dev blockdev.Device) error {
	f, err := fileOf(dev)
	if err != nil {
		return err
	}
	if !e.Marked(f.ID()) {
		return errLost
	}
	e.pin(id, f)
	if err := e.has().Know(f.ID(), f); err != nil {
		return errors.Join(err, e.Withdraw(context.Background(), id))
	}
	return nil
}

// Withdraw implements export.Exporter. The image stays marked: somebody may still have it open.
func (e *Exporter) Withdraw(_ context.Context, id uint64) error {
	e.mu.Lock()
	all := e.pinned[id]
	if len(all) == 0 {
		e.mu.Unlock()
		return nil
	}
	last := len(all) - 1
	if e.pinned[id] = all[:last]; last == 0 {
		delete(e.pinned, id)
	}
	e.mu.Unlock()
	all[last].Unpin()
	return nil
}

// Made implements export.Exporter. A complete image may have been mounted without this way.
func (e *Exporter) Made(m mounts.Mount) export.Made {
	if m.Type == "erofs" && strings.HasPrefix(m.Source, e.opts.Dir+"/") {
		return export.Export
	}
	return export.NotMade
}

// Held implements export.InPlace.
func (e *Exporter) Held(image string) (*os.File, error) {
	if g := e.has(); g != nil {
		return g.Held(image)
	}
	return nil, nil
}

// Marked implements export.InPlace.
func (e *Exporter) Marked(image string) bool {
	g := e.has()
	return g != nil && g.Taken(image)
}

// Knows implements export.InPlace.
func (e *Exporter) Knows(image string) bool {
	g := e.has()
	return g != nil && g.Knows(image)
}

// Complete implements export.InPlace. dev is a File.
func (e *Exporter) Complete(image string, dev blockdev.Device) error {
	f, err := fileOf(dev)
	if err != nil {
		return err
	}
	if g := e.has(); g != nil {
		return g.Unmark(image, f)
	}
	return nil
}

// Forget implements export.InPlace.
func (e *Exporter) Forget(image string) error {
	if g := e.has(); g != nil {
		return g.Forget(image)
	}
	return nil
}

// Start implements export.Life.
func (e *Exporter) Start() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.group == nil || e.started {
		return nil
	}
	e.started = true
	return e.group.Start()
}

// Stop implements export.Life. A group that was never started is left as it is.
func (e *Exporter) Stop() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.over = true
	if e.group == nil || !e.started {
		return nil
	}
	g := e.group
	e.group = nil
	return g.Stop()
}

// End implements export.Life.
func (e *Exporter) End() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	g := e.group
	e.group, e.started = nil, false
	if g == nil {
		return nil
	}
	return g.Close()
}
