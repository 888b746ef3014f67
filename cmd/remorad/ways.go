package main

import (
	"log/slog"
	"path/filepath"

	"github.com/remora-storage/remora/blockdev/disk"
	"github.com/remora-storage/remora/blockdev/export"
	"github.com/remora-storage/remora/blockdev/export/fusefile"
	"github.com/remora-storage/remora/blockdev/export/loop"
	"github.com/remora-storage/remora/blockdev/export/plain"
	"github.com/remora-storage/remora/blockdev/export/precontent"
	"github.com/remora-storage/remora/blockdev/holder"
	"github.com/remora-storage/remora/fs/fuse"
	"github.com/remora-storage/remora/snapshotter"
)

// waysOfLayers are the ways by which the kernel reads layers. Which of them this machine has, and which one is the best, a
// probe finds out; what one of them left is taken over whatever that says.
func waysOfLayers(s snapshotter.Site) []export.Exporter {
	files := fusefile.NewExporter(fusefile.ExporterOptions{
		Dir: filepath.Join(s.Root, "fuse"), Item: "fuse-files/" + s.Instance, Keeper: s.Keeper, First: fusefile.FirstNode, Log: s.Log,
	})
	return []export.Exporter{
		&plain.Exporter{Dir: s.Images()},
		precontent.NewExporter(precontent.ExporterOptions{Dir: s.Images(), Name: s.Instance, Keeper: s.Keeper, Log: s.Log}),
		files,
		loop.Images{Files: files},
		fuse.NewExporter(fuse.ExporterOptions{
			Dir: filepath.Join(s.Root, "trees"), Item: "fuse-trees/" + s.Instance, Keeper: s.Keeper, Log: s.Log,
		}),
	}
}

// wayOfDisks is the way by which the kernel has disks: each by a connection of its own. Earlier versions had one for all.
func wayOfDisks(root string, keeper holder.Keeper, log *slog.Logger) export.Blocks {
	return loop.NewDisks(log,
		fusefile.NewEach(fusefile.EachOptions{Dir: disk.Dir(root), Item: "fuse-disks", Keeper: keeper, Writable: true, Log: log}),
		fusefile.NewExporter(fusefile.ExporterOptions{Dir: disk.EarlierDir(root), Item: "disks", Keeper: keeper, Writable: true, Log: log}),
	)
}
