package control

import (
	"context"
	"time"

	"github.com/opencontainers/go-digest"
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

// ExposeRequest asks for a file of one layer's image.
type ExposeRequest struct {
	Namespace string        `json:"namespace"`
	Manifest  digest.Digest `json:"manifest"`
	Ref       string        `json:"ref"`
	Layer     digest.Digest `json:"layer"`
}

// ExposeReply says where the file is, which lasts for as long as the stream.
type ExposeReply struct {
	Path string `json:"path"`
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

// TraceEvent is something that has taken time. Off and Len are bytes: of the blob for fetches, of
// the image for waits.
type TraceEvent struct {
	Kind   string        `json:"kind"` // resolve, profile, index, import, image, ahead, mount, fetch, wait
	Digest digest.Digest `json:"digest,omitempty"`
	For    string        `json:"for,omitempty"` // of a fetch: demand, prefetch or background
	Off    int64         `json:"off,omitempty"`
	Len    int64         `json:"len,omitempty"`
	PID    int           `json:"pid,omitempty"`
	What   string        `json:"what,omitempty"` // command of a process, or a detail
	Began  time.Time     `json:"began"`
	Took   time.Duration `json:"took_ns"`
	Err    string        `json:"err,omitempty"`
}

// Fetch makes an image complete and tells progress how it goes.
func (c *Client) Fetch(ctx context.Context, req *FetchRequest, progress func(*FetchProgress)) error {
	return receive(ctx, c, "Fetch", req, progress)
}

// Record has an image mounted once more until ctx ends, and calls ready when that is so.
func (c *Client) Record(ctx context.Context, req *RecordRequest, ready func(*RecordReply)) error {
	return receive(ctx, c, "Record", req, ready)
}

// Expose has a file made of a layer's image until ctx ends, and calls ready when that is so.
func (c *Client) Expose(ctx context.Context, req *ExposeRequest, ready func(*ExposeReply)) error {
	return receive(ctx, c, "Expose", req, ready)
}

// Trace calls each with what remorad does, until ctx ends. The first event has no kind: it says
// that the others will come.
func (c *Client) Trace(ctx context.Context, each func(*TraceEvent)) error {
	return receive(ctx, c, "Trace", &Empty{}, each)
}

// Recorded returns the profile of what was read so far in a recording.
func (c *Client) Recorded(ctx context.Context, req *RecordingRequest) (*ProfileReply, error) {
	return invoke[RecordingRequest, ProfileReply](ctx, c, "Recorded", req)
}

// EndRecording returns when the mounts of a recording are gone. One that has ended is no error.
func (c *Client) EndRecording(ctx context.Context, req *RecordingRequest) error {
	_, err := invoke[RecordingRequest, Empty](ctx, c, "EndRecording", req)
	return err
}

// Profile returns the profile of an image that is kept on the node.
func (c *Client) Profile(ctx context.Context, req *ProfileRequest) (*ProfileReply, error) {
	return invoke[ProfileRequest, ProfileReply](ctx, c, "Profile", req)
}

// AddProfile merges a profile into an image's on the node and returns the result.
func (c *Client) AddProfile(ctx context.Context, req *ProfileRequest) (*ProfileReply, error) {
	return invoke[ProfileRequest, ProfileReply](ctx, c, "AddProfile", req)
}

// RemoveProfile deletes an image's profile from the node.
func (c *Client) RemoveProfile(ctx context.Context, req *ProfileRequest) error {
	_, err := invoke[ProfileRequest, Empty](ctx, c, "RemoveProfile", req)
	return err
}

// PrimeRequest names an image that is about to be pulled.
type PrimeRequest struct {
	Namespace string `json:"namespace"`
	Ref       string `json:"ref"`
}

// PrimeReply holds the documents that containerd will ask for, the one that the reference names
// first.
type PrimeReply struct {
	Documents []Document `json:"documents"`
}

// Document is a manifest, an index or a configuration.
type Document struct {
	MediaType string        `json:"media_type"`
	Digest    digest.Digest `json:"digest"`
	Data      []byte        `json:"data"`
}

// Prime has the start of an image begin before containerd knows of it.
func (c *Client) Prime(ctx context.Context, req *PrimeRequest) (*PrimeReply, error) {
	return invoke[PrimeRequest, PrimeReply](ctx, c, "Prime", req)
}
