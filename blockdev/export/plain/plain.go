package plain

import (
	"context"
	"errors"
	"os"
	"strings"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/blockdev/export"
	"github.com/remora-storage/remora/blockdev/export/loop"
	"github.com/remora-storage/remora/blockdev/mounts"
)

// An Image is a Device that is a file of the local disk. A cache.File is one.
type Image interface {
	blockdev.Device
	Path() string
	Complete() bool // no byte is missing in the file
}

// An Exporter is the way of complete images. It has no connection, and nothing to withdraw.
type Exporter struct {
	Dir  string // below which the images lie
	Loop bool   // by a loop device
}

var _ export.Exporter = (*Exporter)(nil)

var errIncomplete = errors.New("its image file is no longer complete")

// Backend implements export.Exporter.
func (*Exporter) Backend() blockdev.Backend { return "" }

// Export implements export.Exporter.
func (e *Exporter) Export(_ uint64, dev blockdev.Device, _ export.How) (export.Path, error) {
	img, ok := dev.(Image)
	if !ok || !img.Complete() {
		return nil, errIncomplete
	}
	return path{img.Path(), e.Loop}, nil
}

// Adopt implements export.Exporter: the kernel goes on by itself, if nothing is missing.
func (*Exporter) Adopt(_ uint64, dev blockdev.Device) error {
	if img, ok := dev.(Image); !ok || !img.Complete() {
		return errIncomplete
	}
	return nil
}

// Withdraw implements export.Exporter.
func (*Exporter) Withdraw(context.Context, uint64) error { return nil }

// Made implements export.Exporter. Whether a file was mounted because it was complete does not show.
func (e *Exporter) Made(m mounts.Mount) export.Made {
	source := m.Source
	if back, ok := loop.Back(m); ok {
		source = back
	}
	if m.Type == "erofs" && strings.HasPrefix(source, e.Dir+"/") {
		return export.Export
	}
	return export.NotMade
}

// Take implements export.Life.
func (*Exporter) Take(map[string][]*os.File) (bool, error) { return false, nil }

// Start implements export.Life.
func (*Exporter) Start() error { return nil }

// Stop implements export.Life.
func (*Exporter) Stop() error { return nil }

// End implements export.Life.
func (*Exporter) End() error { return nil }

// path is the file of an image.
type path struct {
	file string
	loop bool
}

func (p path) String() string { return p.file }

// Mount implements export.Path.
func (p path) Mount(dir string) error { return Mount(p.file, dir, p.loop) }

// Release implements export.Path.
func (path) Release() error { return nil }

// Mount mounts a complete image file on dir: as it is, or by a loop device.
func Mount(file, dir string, loop bool) error {
	if loop {
		return blockdev.MountLoop(file, dir)
	}
	return blockdev.MountEROFS(file, dir)
}
