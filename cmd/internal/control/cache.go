package control

import (
	"context"

	"github.com/opencontainers/go-digest"

	controlv1 "github.com/remora-storage/remora/cmd/control/v1"
)

// CacheUsage is the cache's use of its budget. A limit of 0 is none.
type CacheUsage struct {
	Bytes  int64 `json:"bytes"`
	Limit  int64 `json:"limit"`
	Pinned int64 `json:"pinned"` // cannot be evicted: mounts read it without asking, or it was pinned
}

// CacheReply lists what the cache holds.
type CacheReply struct {
	CacheUsage
	Entries []CacheEntry `json:"entries"`
}

// CacheEntry is one layer in the cache.
type CacheEntry struct {
	Digest       digest.Digest `json:"digest"`
	Images       []string      `json:"images"`
	DiskBytes    int64         `json:"disk_bytes"`
	PresentBytes int64         `json:"present_bytes"`
	TotalBytes   int64         `json:"total_bytes"`
	Pinned       bool          `json:"pinned"`    // by snapctl cache pin
	Evictable    bool          `json:"evictable"` // neither pinned nor read by the kernel without asking
}

// PinRequest pins an image's layers in the cache, or no longer.
type PinRequest struct {
	Image string `json:"image"`
	Pin   bool   `json:"pin"`
}

// PinReply says how many layers that were.
type PinReply struct {
	Layers int `json:"layers"`
}

// RepairRequest names an image whose layers are to be made whole.
type RepairRequest struct {
	Image   string `json:"image"`
	Release bool   `json:"release,omitempty"` // remove the images of which a layer is no longer anywhere
}

// RepairStep says what became of a layer, or that an image was removed.
type RepairStep struct {
	Digest  digest.Digest `json:"digest,omitempty"`
	Reason  string        `json:"reason,omitempty"` // why the layer is not whole
	Gone    bool          `json:"gone,omitempty"`   // nobody has it
	Removed string        `json:"removed,omitempty"`
}

// PruneReply says how much was freed.
type PruneReply struct {
	Bytes int64 `json:"bytes"`
}

// Repair makes an image's layers whole, and tells of each.
func (c *Client) Repair(ctx context.Context, req *RepairRequest, tell func(*RepairStep)) error {
	stream, err := c.node.Repair(ctx, &controlv1.RepairRequest{Image: req.Image, Release: req.Release})
	return receive(stream, err, func(m *controlv1.RepairResponse) {
		tell(&RepairStep{Digest: digest.Digest(m.GetDigest()), Reason: m.GetReason(), Gone: m.GetGone(), Removed: m.GetRemoved()})
	})
}

// Cache lists what the cache holds.
func (c *Client) Cache(ctx context.Context) (*CacheReply, error) {
	m, err := c.node.ListCache(ctx, &controlv1.ListCacheRequest{})
	return &CacheReply{CacheUsage: usageOf(m.GetUsage()), Entries: all(m.GetEntries(), cacheEntryOf)}, err
}

func usageOf(m *controlv1.CacheUsage) CacheUsage {
	return CacheUsage{Bytes: m.GetBytes(), Limit: m.GetLimit(), Pinned: m.GetPinned()}
}

func cacheEntryOf(m *controlv1.CacheEntry) CacheEntry {
	return CacheEntry{
		Digest: digest.Digest(m.GetDigest()), Images: m.GetImages(), DiskBytes: m.GetDiskBytes(), PresentBytes: m.GetPresentBytes(),
		TotalBytes: m.GetTotalBytes(), Pinned: m.GetPinned(), Evictable: m.GetEvictable(),
	}
}

// Pin pins an image's layers, or no longer.
func (c *Client) Pin(ctx context.Context, req *PinRequest) (*PinReply, error) {
	m, err := c.node.Pin(ctx, &controlv1.PinRequest{Image: req.Image, Pin: req.Pin})
	return &PinReply{Layers: int(m.GetLayers())}, err
}

// Prune evicts everything that may be evicted.
func (c *Client) Prune(ctx context.Context) (*PruneReply, error) {
	m, err := c.node.Prune(ctx, &controlv1.PruneRequest{})
	return &PruneReply{Bytes: m.GetBytes()}, err
}
