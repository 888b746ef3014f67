package loop

import (
	"strings"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/blockdev/export"
	"github.com/remora-storage/remora/blockdev/mounts"
)

// Files is a way that exports files. A fusefile.Exporter is one.
type Files interface {
	export.Exporter
	File(id uint64) string   // the path of an export's file, whether it is there or not
	Serves(path string) bool // reports whether a path is that of an export's file
}

// An Images is the way by which the kernel mounts a loop device on an image. The device goes with its last user, so what
// is adopted and withdrawn is the file alone.
type Images struct{ Files }

var _ export.Exporter = Images{}

// Backend implements export.Exporter.
func (Images) Backend() blockdev.Backend { return blockdev.FuseLoop }

// Export implements export.Exporter.
func (i Images) Export(id uint64, dev blockdev.Device, how export.How) (export.Path, error) {
	return attach(i.Files, id, dev, how, blockdev.LoopOptions{})
}

// Made implements export.Exporter.
func (i Images) Made(m mounts.Mount) export.Made {
	if back, ok := Back(m); ok && i.Serves(back) {
		return export.Export
	}
	return export.NotMade
}

// Back returns the file of the loop device that an EROFS is mounted from.
func Back(m mounts.Mount) (path string, ok bool) {
	if m.Type != "erofs" || !strings.HasPrefix(m.Source, "/dev/loop") {
		return "", false
	}
	path, err := blockdev.LoopFileOf(m.Source)
	return path, err == nil
}

// device is a Path that is a loop device.
type device struct{ *blockdev.Loop }

func (d device) String() string { return d.Path() }

// Mount implements export.Path.
func (d device) Mount(dir string) error { return blockdev.MountEROFS(d.Path(), dir) }
