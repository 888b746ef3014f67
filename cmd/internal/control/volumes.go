package control

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	controlv1 "github.com/remora-storage/remora/cmd/control/v1"
)

// VolumeRequest names a volume. An empty Store means the one in which this node knows a volume of that name, or else the configured
// one.
type VolumeRequest struct {
	Name  string `json:"name"`
	Store string `json:"store,omitempty"`
}

// A Volume is what its head says of it.
type Volume struct {
	Name     string    `json:"name"`
	ID       string    `json:"id"`
	Store    string    `json:"store"`
	Size     int64     `json:"size_bytes"`
	Class    string    `json:"class"`
	FS       string    `json:"fs,omitempty"`
	Created  time.Time `json:"created"`
	Epoch    uint64    `json:"epoch"`
	Owner    string    `json:"owner,omitempty"` // node id
	Here     bool      `json:"here"`            // the owner is this node
	ReadOnly bool      `json:"read_only"`
	Device   string    `json:"device,omitempty"` // on this node
	Failed   string    `json:"failed,omitempty"` // why everything that uses the device fails
	State    string    `json:"state,omitempty"`  // what this node does with it
	Error    string    `json:"error,omitempty"`  // why nothing more is known

	MountPoints []string `json:"mount_points,omitempty"` // of the device, in remorad's mount namespace, the oldest first
}

// CreateVolumeRequest asks for a volume. A class of "" is remote, an age of 0 the default.
type CreateVolumeRequest struct {
	VolumeRequest
	Size   int64         `json:"size_bytes"`
	Class  string        `json:"class,omitempty"`
	MaxAge time.Duration `json:"max_age,omitempty"`
}

// CreateVolumeReply has the volume, and whether it was made only now.
type CreateVolumeReply struct {
	Volume
	Made     bool     `json:"made"`
	Warnings []string `json:"warnings,omitempty"` // of the store, if it was prepared only now
}

// VolumesRequest asks for the volumes of a store, or of all that this node has used.
type VolumesRequest struct {
	Store string `json:"store,omitempty"`
}

// VolumesReply lists them.
type VolumesReply struct {
	Volumes []Volume `json:"volumes"`
	Strays  int64    `json:"stray_journals"` // on this node, whose volumes are not attached here
}

// AttachedReply lists what this node owns, as far as it knows without asking stores.
type AttachedReply struct {
	Volumes []Volume `json:"volumes"`
}

// ResizeVolumeRequest asks for a volume to grow.
type ResizeVolumeRequest struct {
	VolumeRequest
	Size int64 `json:"size_bytes"`
}

// RemoveVolumeRequest asks for a volume to be deleted, or with DryRun what that would delete.
type RemoveVolumeRequest struct {
	VolumeRequest
	DryRun bool `json:"dry_run"`
}

// RemoveVolumeReply says what was deleted. Was is false if there was no such volume.
type RemoveVolumeReply struct {
	Store   string `json:"store"`
	Objects int64  `json:"objects"`
	Bytes   int64  `json:"bytes"`
	Was     bool   `json:"existed"`
}

func volumeOf(m *controlv1.Volume) Volume {
	return Volume{
		Name: m.GetName(), ID: m.GetId(), Store: m.GetStore(), Size: m.GetSizeBytes(), Class: m.GetClass(), FS: m.GetFs(),
		Created: timeOf(m.GetCreated()), Epoch: m.GetEpoch(), Owner: m.GetOwner(), Here: m.GetHere(), ReadOnly: m.GetReadOnly(),
		Device: m.GetDevice(), Failed: m.GetFailed(), State: m.GetState(), Error: m.GetError(), MountPoints: m.GetMountPoints(),
	}
}

// CreateVolume makes a volume.
func (c *Client) CreateVolume(ctx context.Context, req *CreateVolumeRequest) (*CreateVolumeReply, error) {
	m, err := c.volumes.CreateVolume(ctx, &controlv1.CreateVolumeRequest{
		Name: req.Name, Store: req.Store, SizeBytes: req.Size, Class: req.Class, MaxAge: durationpb.New(req.MaxAge),
	})
	return &CreateVolumeReply{Volume: volumeOf(m.GetVolume()), Made: m.GetMade(), Warnings: m.GetWarnings()}, err
}

// Volumes lists volumes.
func (c *Client) Volumes(ctx context.Context, req *VolumesRequest) (*VolumesReply, error) {
	m, err := c.volumes.ListVolumes(ctx, &controlv1.ListVolumesRequest{Store: req.Store})
	return &VolumesReply{Volumes: all(m.GetVolumes(), volumeOf), Strays: m.GetStrayJournals()}, err
}

// AttachedVolumes lists what this node owns.
func (c *Client) AttachedVolumes(ctx context.Context) (*AttachedReply, error) {
	m, err := c.volumes.ListAttachedVolumes(ctx, &controlv1.ListAttachedVolumesRequest{})
	return &AttachedReply{Volumes: all(m.GetVolumes(), volumeOf)}, err
}

// ResizeVolume makes a volume larger.
func (c *Client) ResizeVolume(ctx context.Context, req *ResizeVolumeRequest) (*Volume, error) {
	m, err := c.volumes.ResizeVolume(ctx, &controlv1.ResizeVolumeRequest{Name: req.Name, Store: req.Store, SizeBytes: req.Size})
	v := volumeOf(m.GetVolume())
	return &v, err
}

// RemoveVolume deletes one.
func (c *Client) RemoveVolume(ctx context.Context, req *RemoveVolumeRequest) (*RemoveVolumeReply, error) {
	m, err := c.volumes.RemoveVolume(ctx, &controlv1.RemoveVolumeRequest{Name: req.Name, Store: req.Store, DryRun: req.DryRun})
	return &RemoveVolumeReply{Store: m.GetStore(), Objects: m.GetObjects(), Bytes: m.GetBytes(), Was: m.GetExisted()}, err
}
