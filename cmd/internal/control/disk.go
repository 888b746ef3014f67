package control

import "context"

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
	return invoke[AttachDiskRequest, Disk](ctx, c, "AttachDisk", req)
}

// DetachDisk ends one.
func (c *Client) DetachDisk(ctx context.Context, req *DetachDiskRequest) (*DetachDiskReply, error) {
	return invoke[DetachDiskRequest, DetachDiskReply](ctx, c, "DetachDisk", req)
}

// Disks lists them.
func (c *Client) Disks(ctx context.Context) (*DisksReply, error) {
	return invoke[Empty, DisksReply](ctx, c, "Disks", &Empty{})
}
