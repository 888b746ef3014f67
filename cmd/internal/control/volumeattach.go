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

// MountVolumeRequest asks for a volume to be attached and mounted.
type MountVolumeRequest struct {
	VolumeRequest
	AcceptLoss bool   `json:"accept_loss"`
	Dir        string `json:"dir"`               // an absolute path
	FS         string `json:"fs,omitempty"`      // of a new volume; "" is ext4
	Options    string `json:"options,omitempty"` // as for mount(8)
}

// MountVolumeReply has the volume, and where it is mounted.
type MountVolumeReply struct {
	Volume *Volume `json:"volume"`
	Dir    string  `json:"dir"`
}

// UnmountVolumeRequest asks for a volume to be unmounted everywhere, and to be given up.
type UnmountVolumeRequest struct {
	VolumeRequest
	Keep bool `json:"keep_attached"`
}

// UnmountVolumeReply tells of a mount that was taken away, how many bytes the store does not have yet, or the end.
type UnmountVolumeReply struct {
	Unmounted string   `json:"unmounted,omitempty"`
	AtRisk    int64    `json:"at_risk_bytes"`
	Reason    string   `json:"reason,omitempty"`
	Done      bool     `json:"done"`
	Dirs      []string `json:"dirs"` // at the end: all that was unmounted
	Was       bool     `json:"was_attached"`
	Detached  bool     `json:"detached"` // it is not attached here now
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

// MountVolume attaches a volume and mounts it, and tells step what is being done.
func (c *Client) MountVolume(ctx context.Context, req *MountVolumeRequest, step func(string)) (*MountVolumeReply, error) {
	stream, err := c.volumes.MountVolume(ctx, &controlv1.MountVolumeRequest{
		Name: req.Name, Store: req.Store, AcceptLoss: req.AcceptLoss, Dir: req.Dir, Fs: req.FS, Options: req.Options,
	})
	end, err := receiveEnd(stream, err,
		func(m *controlv1.MountVolumeResponse) bool { return m.GetVolume() != nil },
		func(m *controlv1.MountVolumeResponse) { step(m.GetStep()) })
	if err != nil {
		return nil, err
	}
	return &MountVolumeReply{Volume: point(end.GetVolume(), volumeOf), Dir: end.GetDir()}, nil
}

// UnmountVolume unmounts a volume and gives it up, and tells step what it has done and what it waits for.
func (c *Client) UnmountVolume(ctx context.Context, req *UnmountVolumeRequest, step func(*UnmountVolumeReply)) (
	*UnmountVolumeReply, error) {
	stream, err := c.volumes.UnmountVolume(ctx, &controlv1.UnmountVolumeRequest{Name: req.Name, Store: req.Store, KeepAttached: req.Keep})
	end, err := receiveEnd(stream, err, (*controlv1.UnmountVolumeResponse).GetDone,
		func(m *controlv1.UnmountVolumeResponse) { step(unmountedOf(m)) })
	if err != nil {
		return nil, err
	}
	return unmountedOf(end), nil
}

func unmountedOf(m *controlv1.UnmountVolumeResponse) *UnmountVolumeReply {
	return &UnmountVolumeReply{
		Unmounted: m.GetUnmounted(), AtRisk: m.GetAtRiskBytes(), Reason: m.GetReason(), Done: m.GetDone(),
		Dirs: append([]string{}, m.GetDirs()...), Was: m.GetWasAttached(), Detached: m.GetDetached(),
	}
}
