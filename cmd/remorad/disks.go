package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/blockdev/disk"
	"github.com/remora-storage/remora/blockdev/export"
	controlv1 "github.com/remora-storage/remora/cmd/control/v1"
	"github.com/remora-storage/remora/volume/host"
)

// openDisks takes over what an earlier process had attached. taken is what way.Take said.
func openDisks(ctx context.Context, root string, way export.Blocks, taken bool, h *theHolder, vols *host.Host,
	log *slog.Logger) (*disk.Disks, error) {
	return disk.Open(ctx, disk.Options{
		Root: root, Way: way, Taken: taken, Outlive: h.keeper() != nil, Open: sourceOpener(vols), Log: log,
	})
}

const fileSource = "file:" // before a path, in the name of a disk's bytes

// openDiskFile opens a disk's bytes past the page cache: a page that must be written to get memory back must not need
// another one.
func openDiskFile(_ context.Context, source string, readOnly bool) (disk.Device, error) {
	path, ok := strings.CutPrefix(source, fileSource)
	if !ok {
		return nil, fmt.Errorf("disk of %s: not known to this remorad", source)
	}
	f, err := blockdev.OpenFile(path, blockdev.FileOptions{ReadOnly: readOnly, Direct: true})
	if errors.Is(err, unix.EINVAL) {
		return nil, fmt.Errorf("%s: its file system has no direct I/O, which a disk needs", path)
	}
	return f, err
}

// disksService attaches files as block devices.
type disksService struct {
	controlv1.UnsafeDisksServer
	disks *disk.Disks
	host  *host.Host
}

// AttachDisk makes a block device of a file.
func (d *disksService) AttachDisk(ctx context.Context, req *controlv1.AttachDiskRequest) (*controlv1.AttachDiskResponse, error) {
	if !filepath.IsAbs(req.GetFile()) {
		return nil, invalid("%s is no absolute path", req.GetFile())
	}
	k, err := d.disks.Attach(ctx, fileSource+filepath.Clean(req.GetFile()), req.GetReadOnly(), int(req.GetSectorBytes()))
	if err != nil {
		return nil, err
	}
	return &controlv1.AttachDiskResponse{Disk: diskMessage(k)}, nil
}

// DetachDisk ends a block device.
func (d *disksService) DetachDisk(ctx context.Context, req *controlv1.DetachDiskRequest) (*controlv1.DetachDiskResponse, error) {
	name := filepath.Clean(req.GetName())
	for _, k := range d.disks.List() {
		if k.Path == name && d.isVolume(k.Source) {
			return nil, invalid("%s is a volume: snapctl volume detach", name)
		}
	}
	k, err := d.disks.Detach(ctx, fileSource+name)
	if err == nil && k.Path == "" {
		k, err = d.disks.Detach(ctx, name)
	}
	if err != nil || k.Path == "" {
		return &controlv1.DetachDiskResponse{}, err
	}
	return &controlv1.DetachDiskResponse{Disk: diskMessage(k)}, nil
}

// isVolume reports whether a disk's bytes are a volume that this node owns, and has to give up.
func (d *disksService) isVolume(source string) bool {
	s, ok := strings.CutPrefix(source, volumeSource)
	return ok && slices.ContainsFunc(d.host.Attached(), func(a host.Attached) bool { return a.ID.String() == s })
}

// ListDisks lists what is attached.
func (d *disksService) ListDisks(context.Context, *controlv1.ListDisksRequest) (*controlv1.ListDisksResponse, error) {
	return &controlv1.ListDisksResponse{Disks: list(d.disks.List(), diskMessage)}, nil
}

func diskMessage(k disk.Disk) *controlv1.Disk {
	return &controlv1.Disk{
		Device: k.Path, File: text(strings.TrimPrefix(k.Source, fileSource)), SizeBytes: k.Size, SectorBytes: int32(k.Sector),
		ReadOnly: k.ReadOnly, Failed: text(k.Reason),
	}
}
