package control

import (
	"context"

	controlv1 "github.com/remora-storage/remora/cmd/control/v1"
)

// AttachDiskRequest asks for a block device.
type AttachDiskRequest struct {
	File     string `json:"file"` // an absolute path
	ReadOnly bool   `json:"read_only"`
	Sector   int    `json:"sector_bytes"`
}

// A Disk is a block device that remorad serves.
type Disk struct {
	Device   string `json:"device"`
	File     string `json:"file"`
	Size     int64  `json:"size_bytes"`
	Sector   int    `json:"sector_bytes"`
	ReadOnly bool   `json:"read_only"`
	Failed   string `json:"failed,omitempty"` // why everything that uses it fails
}

// DetachDiskRequest names a disk by its device or its file, both absolute paths.
type DetachDiskRequest struct {
	Name string `json:"name"`
}

// DetachDiskReply has the disk that was detached, or none.
type DetachDiskReply struct {
	Disk *Disk `json:"disk,omitempty"`
}

// DisksReply lists what is attached.
type DisksReply struct {
	Disks []Disk `json:"disks"`
}

// AttachDisk makes a block device of a file.
func (c *Client) AttachDisk(ctx context.Context, req *AttachDiskRequest) (*Disk, error) {
	m, err := c.disks.AttachDisk(ctx, &controlv1.AttachDiskRequest{
		File: req.File, ReadOnly: req.ReadOnly, SectorBytes: int32(req.Sector),
	})
	d := diskOf(m.GetDisk())
	return &d, err
}

func diskOf(m *controlv1.Disk) Disk {
	return Disk{
		Device: m.GetDevice(), File: m.GetFile(), Size: m.GetSizeBytes(), Sector: int(m.GetSectorBytes()),
		ReadOnly: m.GetReadOnly(), Failed: m.GetFailed(),
	}
}

// DetachDisk ends one.
func (c *Client) DetachDisk(ctx context.Context, req *DetachDiskRequest) (*DetachDiskReply, error) {
	m, err := c.disks.DetachDisk(ctx, &controlv1.DetachDiskRequest{Name: req.Name})
	return &DetachDiskReply{Disk: point(m.GetDisk(), diskOf)}, err
}

// Disks lists them.
func (c *Client) Disks(ctx context.Context) (*DisksReply, error) {
	m, err := c.disks.ListDisks(ctx, &controlv1.ListDisksRequest{})
	return &DisksReply{Disks: all(m.GetDisks(), diskOf)}, err
}
