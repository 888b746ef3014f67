package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/blockdev/disk"
	"github.com/remora-storage/remora/cmd/internal/control"
	"github.com/remora-storage/remora/volume/host"
)

// openDisks takes over what an earlier process had attached.
func openDisks(ctx context.Context, root string, h *theHolder, kept []*os.File, vols *host.Host, log *slog.Logger) (*disk.Disks, error) {
	return disk.Open(ctx, disk.Options{Root: root, Keeper: h.keeper(), Open: sourceOpener(vols), Log: log}, kept)
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

// AttachDisk makes a block device of a file.
func (c *controlServer) AttachDisk(ctx context.Context, req *control.AttachDiskRequest) (*control.Disk, error) {
	if !filepath.IsAbs(req.File) {
		return nil, fmt.Errorf("%s is no absolute path", req.File)
	}
	k, err := c.disks.Attach(ctx, fileSource+filepath.Clean(req.File), req.ReadOnly, req.Sector)
	if err != nil {
		return nil, err
	}
	reply := controlDisk(k)
	return &reply, nil
}

// DetachDisk ends a block device.
func (c *controlServer) DetachDisk(ctx context.Context, req *control.DetachDiskRequest) (*control.DetachDiskReply, error) {
	name := filepath.Clean(req.Name)
	for _, k := range c.disks.List() {
		if k.Path == name && strings.HasPrefix(k.Source, volumeSource) {
			return nil, fmt.Errorf("%s is a volume: snapctl volume detach", name)
		}
	}
	k, err := c.disks.Detach(ctx, fileSource+name)
	if err == nil && k.Path == "" {
		k, err = c.disks.Detach(ctx, name)
	}
	if err != nil || k.Path == "" {
		return &control.DetachDiskReply{}, err
	}
	d := controlDisk(k)
	return &control.DetachDiskReply{Disk: &d}, nil
}

// Disks lists what is attached.
func (c *controlServer) Disks(context.Context, *control.Empty) (*control.DisksReply, error) {
	reply := &control.DisksReply{Disks: []control.Disk{}}
	for _, k := range c.disks.List() {
		reply.Disks = append(reply.Disks, controlDisk(k))
	}
	return reply, nil
}

func controlDisk(k disk.Disk) control.Disk {
	return control.Disk{Device: k.Path, File: strings.TrimPrefix(k.Source, fileSource), Size: k.Size, Sector: k.Sector, ReadOnly: k.ReadOnly, Failed: k.Reason}
}
