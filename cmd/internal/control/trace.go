package control

import (
	"context"
	"time"

	"github.com/opencontainers/go-digest"

	controlv1 "github.com/remora-storage/remora/cmd/control/v1"
)

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

// Trace calls each with what remorad does, until ctx ends. The first event has no kind: it says
// that the others will come.
func (c *Client) Trace(ctx context.Context, each func(*TraceEvent)) error {
	stream, err := c.images.Trace(ctx, &controlv1.TraceRequest{})
	return receive(stream, err, func(m *controlv1.TraceResponse) {
		each(&TraceEvent{
			Kind: m.GetKind(), Digest: digest.Digest(m.GetDigest()), For: m.GetPurpose(), Off: m.GetOff(), Len: m.GetLen(),
			PID: int(m.GetPid()), What: m.GetWhat(), Began: timeOf(m.GetBegan()), Took: m.GetTook().AsDuration(), Err: m.GetErr(),
		})
	})
}
