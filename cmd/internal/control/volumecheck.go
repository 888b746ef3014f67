package control

import (
	"context"
	"fmt"

	controlv1 "github.com/remora-storage/remora/cmd/control/v1"
	"github.com/remora-storage/remora/volume"
)

// InitStoreRequest asks for a store to be tried and, unless Probe is set, to be prepared for volumes.
type InitStoreRequest struct {
	Store string `json:"store"`
	Probe bool   `json:"probe"`
}

// InitStoreReply says that the store is safe for volumes. Made says that it was prepared only now.
type InitStoreReply struct {
	Store string `json:"store"`
	Step  string `json:"step,omitempty"`
	Done  bool   `json:"done"`
	Made  bool   `json:"made"`
	// Warnings say what is unwise about the store's settings.
	Warnings []string `json:"warnings,omitempty"`
}

// CheckVolumeRequest asks for a walk over everything that belongs to a volume.
type CheckVolumeRequest struct {
	VolumeRequest
	Data   bool `json:"data"`   // the blocks too
	Repair bool `json:"repair"` // make anew what can be
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

// InitStore tries a store, and prepares it. It tells step what is being tried.
func (c *Client) InitStore(ctx context.Context, req *InitStoreRequest, step func(string)) (*InitStoreReply, error) {
	stream, err := c.volumes.InitStore(ctx, &controlv1.InitStoreRequest{Store: req.Store, Probe: req.Probe})
	end, err := receiveEnd(stream, err, (*controlv1.InitStoreResponse).GetDone,
		func(m *controlv1.InitStoreResponse) { step(m.GetStep()) })
	if err != nil {
		return nil, err
	}
	return &InitStoreReply{
		Store: end.GetStore(), Step: end.GetStep(), Done: end.GetDone(), Made: end.GetMade(), Warnings: end.GetWarnings(),
	}, nil
}

// CheckVolume walks over everything that belongs to a volume. It tells step what is being checked.
func (c *Client) CheckVolume(ctx context.Context, req *CheckVolumeRequest, step func(string)) (*VolumeReport, error) {
	stream, err := c.volumes.CheckVolume(ctx, &controlv1.CheckVolumeRequest{
		Name: req.Name, Store: req.Store, Data: req.Data, Repair: req.Repair,
	})
	end, err := receiveEnd(stream, err,
		func(m *controlv1.CheckVolumeResponse) bool { return m.GetReport() != nil },
		func(m *controlv1.CheckVolumeResponse) { step(m.GetStep()) })
	if err != nil {
		return nil, err
	}
	r := end.GetReport()
	return &VolumeReport{
		Name: r.GetName(), Segments: r.GetSegments(), Nodes: r.GetMapNodes(), Extents: r.GetExtents(), MappedBytes: r.GetMappedBytes(),
		ReadBytes: r.GetReadBytes(), UnusedObjects: r.GetUnusedObjects(), UnusedBytes: r.GetUnusedBytes(),
		Problems: append([]string{}, r.GetProblems()...), Repaired: r.GetRepaired(),
	}, nil
}

// RebuildVolume makes a new volume of what is left of another one. It tells step what is being read.
func (c *Client) RebuildVolume(ctx context.Context, req *RebuildVolumeRequest, step func(string)) (*volume.Rebuilt, error) {
	stream, err := c.volumes.RebuildVolume(ctx, &controlv1.RebuildVolumeRequest{Name: req.Name, Store: req.Store, Into: req.Into})
	end, err := receiveEnd(stream, err,
		func(m *controlv1.RebuildVolumeResponse) bool { return m.GetRebuilt() != nil },
		func(m *controlv1.RebuildVolumeResponse) { step(m.GetStep()) })
	if err != nil {
		return nil, err
	}
	return rebuiltOf(end.GetRebuilt())
}

func rebuiltOf(m *controlv1.RebuiltVolume) (*volume.Rebuilt, error) {
	from, err := volume.ParseID(m.GetDamagedId())
	if err != nil {
		return nil, fmt.Errorf("remorad's answer: damaged_id: %w", err)
	}
	id, err := volume.ParseID(m.GetId())
	if err != nil {
		return nil, fmt.Errorf("remorad's answer: id: %w", err)
	}
	return &volume.Rebuilt{
		From: from, ID: id, Name: m.GetName(), Size: m.GetSizeBytes(), Guessed: m.GetSizeGuessed(), Write: m.GetWrite(),
		Map: m.GetMapSegment(), Segments: int(m.GetSegments()), Ignored: int(m.GetIgnored()), Missing: m.GetMissing(),
		Problems: append([]string{}, m.GetProblems()...), Bytes: m.GetMappedBytes(),
		Stale: all(m.GetStale(), rangeOf), Lost: all(m.GetLost(), rangeOf),
	}, nil
}

func rangeOf(m *controlv1.ByteRange) volume.Range {
	return volume.Range{Off: m.GetOffset(), Len: m.GetLength()}
}
