package control

import (
	"context"

	"github.com/opencontainers/go-digest"

	controlv1 "github.com/remora-storage/remora/cmd/control/v1"
)

// RecordRequest asks for mounts of an image whose reads are recorded.
type RecordRequest struct {
	Namespace string        `json:"namespace"`
	Manifest  digest.Digest `json:"manifest"`
	Ref       string        `json:"ref"`
}

// RecordReply names the recording, which lasts for as long as the stream.
type RecordReply struct {
	ID    string `json:"id"`
	Label string `json:"label"` // of the snapshot that is to use it; its value is the ID
}

// RecordingRequest names a recording.
type RecordingRequest struct {
	ID string `json:"id"`
}

// ProfileRequest names an image, and holds an encoded profile where one is given.
type ProfileRequest struct {
	Manifest digest.Digest `json:"manifest"`
	Profile  []byte        `json:"profile,omitempty"`
}

// ProfileReply is an encoded profile, empty if there is none.
type ProfileReply struct {
	Profile []byte `json:"profile,omitempty"`
}

// Record has an image mounted once more until ctx ends, and calls ready when that is so.
func (c *Client) Record(ctx context.Context, req *RecordRequest, ready func(*RecordReply)) error {
	stream, err := c.images.Record(ctx, &controlv1.RecordRequest{Namespace: req.Namespace, Manifest: req.Manifest.String(), Ref: req.Ref})
	return receive(stream, err, func(m *controlv1.RecordResponse) { ready(&RecordReply{ID: m.GetId(), Label: m.GetLabel()}) })
}

// Recorded returns the profile of what was read so far in a recording.
func (c *Client) Recorded(ctx context.Context, req *RecordingRequest) (*ProfileReply, error) {
	m, err := c.images.GetRecording(ctx, &controlv1.GetRecordingRequest{Id: req.ID})
	return &ProfileReply{Profile: m.GetProfile()}, err
}

// EndRecording returns when the mounts of a recording are gone. One that has ended is no error.
func (c *Client) EndRecording(ctx context.Context, req *RecordingRequest) error {
	_, err := c.images.EndRecording(ctx, &controlv1.EndRecordingRequest{Id: req.ID})
	return err
}

// Profile returns the profile of an image that is kept on the node.
func (c *Client) Profile(ctx context.Context, req *ProfileRequest) (*ProfileReply, error) {
	m, err := c.images.GetProfile(ctx, &controlv1.GetProfileRequest{Manifest: req.Manifest.String()})
	return &ProfileReply{Profile: m.GetProfile()}, err
}

// AddProfile merges a profile into an image's on the node and returns the result.
func (c *Client) AddProfile(ctx context.Context, req *ProfileRequest) (*ProfileReply, error) {
	m, err := c.images.AddProfile(ctx, &controlv1.AddProfileRequest{Manifest: req.Manifest.String(), Profile: req.Profile})
	return &ProfileReply{Profile: m.GetProfile()}, err
}

// RemoveProfile deletes an image's profile from the node.
func (c *Client) RemoveProfile(ctx context.Context, req *ProfileRequest) error {
	_, err := c.images.RemoveProfile(ctx, &controlv1.RemoveProfileRequest{Manifest: req.Manifest.String()})
	return err
}
