package control

import (
	"context"
	"time"

	"github.com/remora-storage/remora/volume"
)

// VolumeServer is the part of Server that is about volumes. An empty Store means the one in which this node last used a
// volume of that name, or else the configured one.
type VolumeServer interface {
	InitStore(ctx context.Context, req *InitStoreRequest, send func(*InitStoreReply) error) error
	CreateVolume(context.Context, *CreateVolumeRequest) (*CreateVolumeReply, error)
	Volumes(context.Context, *VolumesRequest) (*VolumesReply, error)
	AttachedVolumes(context.Context, *Empty) (*AttachedReply, error)
	InspectVolume(context.Context, *VolumeRequest) (*VolumeDetails, error)
	AttachVolume(ctx context.Context, req *AttachVolumeRequest, send func(*AttachVolumeReply) error) error
	DetachVolume(ctx context.Context, req *DetachVolumeRequest, send func(*DetachVolumeReply) error) error
	SetVolumeFS(context.Context, *SetVolumeFSRequest) (*Empty, error)
	ResizeVolume(context.Context, *ResizeVolumeRequest) (*Volume, error)
	RemoveVolume(context.Context, *RemoveVolumeRequest) (*RemoveVolumeReply, error)
	CheckVolume(ctx context.Context, req *CheckVolumeRequest, send func(*CheckVolumeReply) error) error
	RebuildVolume(ctx context.Context, req *RebuildVolumeRequest, send func(*RebuildVolumeReply) error) error
}

// VolumeRequest names a volume.
type VolumeRequest struct {
	Name  string `json:"name"`
	Store string `json:"store,omitempty"`
}

// InitStoreRequest asks for a store to be tried and, unless Probe is set, to be prepared for volumes.
type InitStoreRequest struct {
	Store string `json:"store"`
	Probe bool   `json:"probe"`
}

// InitStoreReply tells a step of a probe, or the end: Made says that the store was prepared only now.
type InitStoreReply struct {
	Store string `json:"store"`
	Step  string `json:"step,omitempty"`
	Done  bool   `json:"done"`
	Made  bool   `json:"made"`
	// Warnings say what is unwise about the store's settings. They come with the end.
	Warnings []string `json:"warnings,omitempty"`
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
	Error    string    `json:"error,omitempty"`  // why nothing more is known
}

// VolumesRequest asks for the volumes of a store, or of all that this node has used.
type VolumesRequest struct {
	Store string `json:"store,omitempty"`
}

// VolumesReply lists them.
type VolumesReply struct {
	Volumes []Volume `json:"volumes"`
}

// AttachedReply lists what this node owns, as far as it knows without asking stores.
type AttachedReply struct {
	Volumes []Volume `json:"volumes"`
}

// VolumeDetails is all that is known of a volume. What is about its use is there only on the node that owns it.
type VolumeDetails struct {
	Volume
	StoreError    string        `json:"store_error,omitempty"` // why what only the store knows is not here
	StoredBytes   int64         `json:"stored_bytes"`
	StoredObjects int64         `json:"stored_objects"`
	MaxAge        float64       `json:"max_age_seconds"`
	Committed     uint64        `json:"committed_write"`
	Tail          int           `json:"tail_segments"`
	Journal       string        `json:"journal,omitempty"` // node and id
	AtRiskBytes   int64         `json:"at_risk_bytes"`
	AtRiskSeconds float64       `json:"at_risk_seconds"`
	JournalUsed   int64         `json:"journal_used_bytes"`
	JournalBytes  int64         `json:"journal_bytes"`
	LeaseSeconds  float64       `json:"lease_margin_seconds"`
	Waits         []VolumeWait  `json:"waits"`
	Throttled     string        `json:"throttled,omitempty"` // why writes wait now: journal_full or store_behind
	Events        []VolumeEvent `json:"events"`              // oldest first
	Written       int64         `json:"written_bytes"`
	Read          int64         `json:"read_bytes"`
	Flushes       int64         `json:"flushes"`
	Commits       int64         `json:"commits"`
	Uploaded      int64         `json:"uploaded_bytes"`
	MapBytes      int64         `json:"uploaded_map_bytes"`
	Requests      StoreRequests `json:"store_requests"`
}

// VolumeEvent is something that was done to a volume: a takeover, a loss that was accepted, a repair.
type VolumeEvent struct {
	Time   time.Time `json:"time"`
	Node   string    `json:"node,omitempty"`
	What   string    `json:"what"`
	Detail string    `json:"detail"`
}

// VolumeWait is something that waits for the store.
type VolumeWait struct {
	What    string  `json:"what"`
	Reason  string  `json:"reason"`
	Seconds float64 `json:"seconds"`
}

// StoreRequests are those of this remorad to the volume's store, for all volumes in it.
type StoreRequests struct {
	Get      int64 `json:"get"`
	Put      int64 `json:"put"`
	Delete   int64 `json:"delete"`
	List     int64 `json:"list"`
	Failed   int64 `json:"failed"`
	Received int64 `json:"received_bytes"`
	Sent     int64 `json:"sent_bytes"`
	Lease    int64 `json:"lease"` // for the node's lease, which are in none of the others
}

// AttachVolumeRequest asks for a volume's block device.
type AttachVolumeRequest struct {
	VolumeRequest
	AcceptLoss bool `json:"accept_loss"`
}

// AttachVolumeReply tells what attaching waits for, or its end. Fresh says that nothing was ever written.
type AttachVolumeReply struct {
	Waits  string  `json:"waits,omitempty"`
	Volume *Volume `json:"volume,omitempty"`
	Fresh  bool    `json:"fresh"`
}

// DetachVolumeRequest asks for a volume to be given up.
type DetachVolumeRequest struct {
	VolumeRequest
	Abandon bool `json:"abandon_to_journal"`
}

// DetachVolumeReply tells how many bytes the store does not have yet, or the end.
type DetachVolumeReply struct {
	AtRisk int64  `json:"at_risk_bytes"`
	Reason string `json:"reason,omitempty"`
	Done   bool   `json:"done"`
	Was    bool   `json:"was_attached"`
}

// SetVolumeFSRequest says that a file system was made, and flushed.
type SetVolumeFSRequest struct {
	VolumeRequest
	FS string `json:"fs"`
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

// CheckVolumeRequest asks for a walk over everything that belongs to a volume.
type CheckVolumeRequest struct {
	VolumeRequest
	Data   bool `json:"data"`   // the blocks too
	Repair bool `json:"repair"` // make anew what can be
}

// CheckVolumeReply tells a step, or what was found.
type CheckVolumeReply struct {
	Step   string        `json:"step,omitempty"`
	Report *VolumeReport `json:"report,omitempty"`
}

// VolumeReport is what a check has found.
type VolumeReport struct {
	Name          string   `json:"name"`
	Segments      int64    `json:"segments"`
	Nodes         int64    `json:"map_nodes"`
	Extents       int64    `json:"extents"`
	MappedBytes   int64    `json:"mapped_bytes"`
	ReadBytes     int64    `json:"read_bytes"`
	UnusedObjects int64    `json:"unused_objects"`
	UnusedBytes   int64    `json:"unused_bytes"`
	Problems      []string `json:"problems"`
	Repaired      string   `json:"repaired,omitempty"`
}

// RebuildVolumeRequest asks for a new, read-only volume of what is left of another one. Its Name may be an id.
type RebuildVolumeRequest struct {
	VolumeRequest
	Into string `json:"into"`
}

// RebuildVolumeReply tells a step, or what was made.
type RebuildVolumeReply struct {
	Step    string          `json:"step,omitempty"`
	Rebuilt *volume.Rebuilt `json:"rebuilt,omitempty"`
}

// RebuildVolume makes a new volume of what is left of another one.
func (c *Client) RebuildVolume(ctx context.Context, req *RebuildVolumeRequest, step func(string)) (*volume.Rebuilt, error) {
	end, err := receiveEnd(ctx, c, "RebuildVolume", req, func(r *RebuildVolumeReply) bool { return r.Rebuilt != nil }, func(r *RebuildVolumeReply) { step(r.Step) })
	if err != nil {
		return nil, err
	}
	return end.Rebuilt, nil
}

// InitStore tries a store, and prepares it.
func (c *Client) InitStore(ctx context.Context, req *InitStoreRequest, step func(string)) (*InitStoreReply, error) {
	return receiveEnd(ctx, c, "InitStore", req, func(r *InitStoreReply) bool { return r.Done }, func(r *InitStoreReply) { step(r.Step) })
}

// CreateVolume makes a volume.
func (c *Client) CreateVolume(ctx context.Context, req *CreateVolumeRequest) (*CreateVolumeReply, error) {
	return invoke[CreateVolumeRequest, CreateVolumeReply](ctx, c, "CreateVolume", req)
}

// Volumes lists volumes.
func (c *Client) Volumes(ctx context.Context, req *VolumesRequest) (*VolumesReply, error) {
	return invoke[VolumesRequest, VolumesReply](ctx, c, "Volumes", req)
}

// AttachedVolumes lists what this node owns.
func (c *Client) AttachedVolumes(ctx context.Context) (*AttachedReply, error) {
	return invoke[Empty, AttachedReply](ctx, c, "AttachedVolumes", &Empty{})
}

// InspectVolume tells all about one.
func (c *Client) InspectVolume(ctx context.Context, req *VolumeRequest) (*VolumeDetails, error) {
	return invoke[VolumeRequest, VolumeDetails](ctx, c, "InspectVolume", req)
}

// AttachVolume makes a block device of a volume.
func (c *Client) AttachVolume(ctx context.Context, req *AttachVolumeRequest, waits func(string)) (*AttachVolumeReply, error) {
	return receiveEnd(ctx, c, "AttachVolume", req, func(r *AttachVolumeReply) bool { return r.Volume != nil }, func(r *AttachVolumeReply) { waits(r.Waits) })
}

// DetachVolume gives a volume up.
func (c *Client) DetachVolume(ctx context.Context, req *DetachVolumeRequest, waits func(*DetachVolumeReply)) (*DetachVolumeReply, error) {
	return receiveEnd(ctx, c, "DetachVolume", req, func(r *DetachVolumeReply) bool { return r.Done }, waits)
}

// SetVolumeFS says which file system was made.
func (c *Client) SetVolumeFS(ctx context.Context, req *SetVolumeFSRequest) error {
	_, err := invoke[SetVolumeFSRequest, Empty](ctx, c, "SetVolumeFS", req)
	return err
}

// ResizeVolume makes a volume larger.
func (c *Client) ResizeVolume(ctx context.Context, req *ResizeVolumeRequest) (*Volume, error) {
	return invoke[ResizeVolumeRequest, Volume](ctx, c, "ResizeVolume", req)
}

// RemoveVolume deletes one.
func (c *Client) RemoveVolume(ctx context.Context, req *RemoveVolumeRequest) (*RemoveVolumeReply, error) {
	return invoke[RemoveVolumeRequest, RemoveVolumeReply](ctx, c, "RemoveVolume", req)
}

// CheckVolume walks over everything that belongs to a volume.
func (c *Client) CheckVolume(ctx context.Context, req *CheckVolumeRequest, step func(string)) (*VolumeReport, error) {
	end, err := receiveEnd(ctx, c, "CheckVolume", req, func(r *CheckVolumeReply) bool { return r.Report != nil }, func(r *CheckVolumeReply) { step(r.Step) })
	if err != nil {
		return nil, err
	}
	return end.Report, nil
}
