package fuse

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/blockdev/export"
	"github.com/remora-storage/remora/blockdev/fusedev"
	"github.com/remora-storage/remora/blockdev/holder"
	"github.com/remora-storage/remora/blockdev/mounts"
)

// An Image is a device whose metadata is always present in a file. A cache.File is one.
type Image interface {
	blockdev.Device
	Image() *os.File // not the caller's
	MetaSize() int64 // bytes at the file's start that are always present
}

// ExporterOptions say where an Exporter's trees are.
type ExporterOptions struct {
	Dir    string        // where the file system is mounted
	Item   string        // its name with the keeper
	Keeper holder.Keeper // nil if the exports end with this process
	Log    *slog.Logger
}

// An Exporter is the way by which the kernel sees the tree of an image, without EROFS. The file system is mounted when the
// first is exported.
type Exporter struct {
	*export.Held[*connection]
	dir string
}

var _ export.Exporter = (*Exporter)(nil)

// connection is the file system of all trees.
type connection struct {
	*fusedev.Conn
	trees *Trees
}

// Start implements export.Connecting.
func (c *connection) Start() error { return c.Conn.Start(c.trees) }

// Kept implements export.Connecting.
func (c *connection) Kept() []*os.File { return c.Files() }

// NewExporter returns an Exporter without trees.
func NewExporter(opts ExporterOptions) *Exporter {
	of := fusedev.Options{AnyUser: true, Log: opts.Log}
	return &Exporter{
		dir: opts.Dir,
		Held: export.NewHeld(export.HeldOptions[*connection]{
			Dir: opts.Dir, Type: "fuse.remora", Item: opts.Item, Keeper: opts.Keeper,
			Mount: func() (*connection, error) { return mount(opts.Dir, of) },
			Adopt: func(files []*os.File) (*connection, error) {
				conn, err := fusedev.Adopt(opts.Dir, files, of)
				return &connection{conn, NewTrees(opts.Log)}, err
			},
		}),
	}
}

func mount(dir string, opts fusedev.Options) (*connection, error) {
	conn, err := fusedev.Mount(dir, opts)
	if err != nil {
		return nil, err
	}
	c := &connection{conn, NewTrees(opts.Log)}
	if err := c.Start(); err != nil {
		return nil, errors.Join(err, conn.Unmount())
	}
	return c, nil
}

// Backend implements export.Exporter.
func (e *Exporter) Backend() blockdev.Backend { return blockdev.FuseTree }

// Export implements export.Exporter. dev is an Image.
func (e *Exporter) Export(id uint64, dev blockdev.Device, _ export.How) (export.Path, error) {
	c, err := e.Get()
	if err != nil {
		return nil, err
	}
	if err := c.add(id, dev); err != nil {
		return nil, err
	}
	return export.Tree(filepath.Join(e.dir, strconv.FormatUint(uint64(number(id)), 10))), nil
}

// number is the layer's of an export.
func number(id uint64) uint32 { return uint32(id) }

func (c *connection) add(id uint64, dev blockdev.Device) error {
	img, ok := dev.(Image)
	if !ok {
		return fmt.Errorf("%T has no tree", dev)
	}
	return c.trees.Add(number(id), img.Image(), img.MetaSize(), dev)
}

// Adopt implements export.Exporter. dev is an Image.
func (e *Exporter) Adopt(id uint64, dev blockdev.Device) error {
	c, ok := e.Has()
	if !ok {
		return export.ErrLost
	}
	return c.add(id, dev)
}

// Withdraw implements export.Exporter. The kernel does not say who uses a tree.
func (e *Exporter) Withdraw(_ context.Context, id uint64) error {
	if c, ok := e.Has(); ok {
		c.trees.Remove(number(id))
	}
	return nil
}

// Made implements export.Exporter. Every mount of the file system that is not its own shows a tree.
func (e *Exporter) Made(m mounts.Mount) export.Made {
	if m.Type != "fuse.remora" {
		return export.NotMade
	}
	if made := e.Held.Made(m); made != export.NotMade {
		return made
	}
	return export.Export
}
