package control

import (
	"context"

	controlv1 "github.com/remora-storage/remora/cmd/control/v1"
)

// AttachVolumeRequest asks for a volume's block device.
type AttachVolumeRequest struct {
	VolumeRequest
	AcceptLoss bool `json:"accept_loss"`
}

// AttachVolumeReply has the volume that was attached. Fresh says that nothing was ever written.
type AttachVolumeReply struct {
	Volume *Volume `json:"volume"`
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

// AttachVolume makes a block device of a volume, and tells waits what that waits for.
func (c *Client) AttachVolume(ctx context.Context, req *AttachVolumeRequest, waits func(string)) (*AttachVolumeReply, error) {
	stream, err := c.volumes.AttachVolume(ctx, &controlv1.AttachVolumeRequest{Name: req.Name, Store: req.Store, AcceptLoss: req.AcceptLoss})
	end, err := receiveEnd(stream, err,
		func(m *controlv1.AttachVolumeResponse) bool { return m.GetVolume() != nil },
		func(m *controlv1.AttachVolumeResponse) { waits(m.GetWaits()) })
	if err != nil {
		return nil, err
	}
	return &AttachVolumeReply{Volume: point(end.GetVolume(), volumeOf), Fresh: end.GetFresh()}, nil
}

// DetachVolume gives a volume up, and tells waits how much the store does not have yet.
func (c *Client) DetachVolume(ctx context.Context, req *DetachVolumeRequest, waits func(*DetachVolumeReply)) (*DetachVolumeReply, error) {
	stream, err := c.volumes.DetachVolume(ctx, &controlv1.DetachVolumeRequest{
		Name: req.Name, Store: req.Store, AbandonToJournal: req.Abandon,
	})
	end, err := receiveEnd(stream, err, (*controlv1.DetachVolumeResponse).GetDone,
		func(m *controlv1.DetachVolumeResponse) { waits(detachedOf(m)) })
	if err != nil {
		return nil, err
	}
	return detachedOf(end), nil
}

func detachedOf(m *controlv1.DetachVolumeResponse) *DetachVolumeReply {
	return &DetachVolumeReply{AtRisk: m.GetAtRiskBytes(), Reason: m.GetReason(), Done: m.GetDone(), Was: m.GetWasAttached()}
}

// SetVolumeFS says which file system was made.
func (c *Client) SetVolumeFS(ctx context.Context, req *SetVolumeFSRequest) error {
	_, err := c.volumes.SetVolumeFileSystem(ctx, &controlv1.SetVolumeFileSystemRequest{Name: req.Name, Store: req.Store, Fs: req.FS})
	return err
}
