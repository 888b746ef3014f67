package fusefile

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/blockdev/export"
	"github.com/remora-storage/remora/blockdev/holder"
	"github.com/remora-storage/remora/blockdev/mounts"
)

// ExporterOptions say where an Exporter's files are.
type ExporterOptions struct {
	Dir    string        // where the directory is mounted
	Item   string        // its name with the keeper
	Keeper holder.Keeper // nil if the exports end with this process
	// First is the node of an export with the number 0: the others follow it. The nodes of a directory are FirstNode or
	// more, and always the same for an export.
	First    uint64
	Writable bool // devices that can be written to can be here as well
	Log      *slog.Logger
}

// An Exporter is the way by which the kernel reads files that FUSE serves. The directory is mounted when the first is
// exported.
type Exporter struct {
	*export.Held[*Files]
	opts ExporterOptions
}

var _ export.Exporter = (*Exporter)(nil)

// NewExporter returns an Exporter without files.
func NewExporter(opts ExporterOptions) *Exporter {
	of := Options{Writable: opts.Writable, Log: opts.Log}
	return &Exporter{
		opts: opts,
		Held: export.NewHeld(export.HeldOptions[*Files]{
			Dir: opts.Dir, Type: "fuse.remora", Item: opts.Item, Keeper: opts.Keeper,
			Mount: func() (*Files, error) { return Mount(opts.Dir, of) },
			Adopt: func(files []*os.File) (*Files, error) { return Adopt(opts.Dir, files, of) },
		}),
	}
}

// Backend implements export.Exporter.
func (e *Exporter) Backend() blockdev.Backend { return blockdev.FuseFile }

func (e *Exporter) node(id uint64) uint64 { return e.opts.First + id }

// File returns the path of an export's file, whether it is there or not.
func (e *Exporter) File(id uint64) string { return Path(e.opts.Dir, e.node(id)) }

// Export implements export.Exporter. Whether the kernel may write is the device's to say.
func (e *Exporter) Export(id uint64, dev blockdev.Device, _ export.How) (export.Path, error) {
	files, err := e.Get()
	if err != nil {
		return nil, err
	}
	return export.File(files.Make(e.node(id), dev)), nil
}

// Adopt implements export.Exporter.
func (e *Exporter) Adopt(id uint64, dev blockdev.Device) error {
	files, ok := e.Has()
	if !ok {
		return export.ErrLost
	}
	files.Export(e.node(id), dev)
	return nil
}

// Withdraw implements export.Exporter. The kernel does not say who uses a file.
func (e *Exporter) Withdraw(_ context.Context, id uint64) error {
	if files, ok := e.Has(); ok {
		files.Withdraw(e.node(id))
	}
	return nil
}

// Made implements export.Exporter.
func (e *Exporter) Made(m mounts.Mount) export.Made {
	if m.Type == "erofs" && e.Serves(m.Source) {
		return export.Export
	}
	return e.Held.Made(m)
}

// Serves reports whether a path is that of an export's file.
func (e *Exporter) Serves(path string) bool { return filepath.Dir(path) == e.opts.Dir }
