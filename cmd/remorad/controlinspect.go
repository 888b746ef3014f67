package main

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	controlv1 "github.com/remora-storage/remora/cmd/control/v1"
	"github.com/remora-storage/remora/remote/store"
	"github.com/remora-storage/remora/volume"
	"github.com/remora-storage/remora/volume/host"
)

// InspectVolume tells all about a volume.
func (v *volumes) InspectVolume(ctx context.Context, req *controlv1.InspectVolumeRequest) (*controlv1.InspectVolumeResponse, error) {
	url, s, h, err := v.find(ctx, req)
	if err != nil {
		return nil, err
	}
	m := &controlv1.InspectVolumeResponse{
		Volume: v.describe(url, h), MaxAge: durationpb.New(time.Duration(h.MaxAge) * time.Second),
		CommittedWrite: h.Write, TailSegments: int32(len(h.Tail)),
	}
	if err := patiently(ctx, s, func(ctx context.Context, s store.Store) error { return addStored(ctx, s, h.ID, m) }); err != nil {
		m.StoreError = text(err.Error())
	}
	if h.Journal != nil {
		m.Journal = h.Journal.Node.String() + "/" + h.Journal.ID.String()
	}
	if st, requests, margin, ok := v.host.Status(h.ID); ok {
		addUse(m, st, requests, margin)
	}
	return m, nil
}

// addStored adds what only the store knows.
func addStored(ctx context.Context, s store.Store, id volume.ID, m *controlv1.InspectVolumeResponse) error {
	usage, err := volume.StoreUsage(ctx, s, id)
	if err != nil {
		return err
	}
	m.StoredBytes, m.StoredObjects = usage.Bytes, usage.Objects
	events, err := volume.Events(ctx, s, id)
	m.Events = list(events, eventMessage)
	return err
}

func eventMessage(e volume.Event) *controlv1.VolumeEvent {
	m := &controlv1.VolumeEvent{Time: timestamppb.New(e.Time), What: text(e.What), Detail: text(e.Detail)}
	if e.Node != nil {
		m.Node = e.Node.String()
	}
	return m
}

// addUse adds what the node that owns a volume knows of its use.
func addUse(m *controlv1.InspectVolumeResponse, st volume.Status, requests host.Requests, margin time.Duration) {
	m.AtRiskBytes, m.AtRisk, m.JournalUsedBytes, m.JournalBytes = st.AtRisk, durationpb.New(st.Oldest), st.Journal, st.JournalOf
	m.LeaseMargin, m.Throttled = durationpb.New(margin), st.Throttled
	m.WrittenBytes, m.ReadBytes, m.Flushes, m.Commits = st.Stats.Written, st.Stats.Read, st.Stats.Flushes, st.Stats.Commits
	m.UploadedBytes, m.UploadedMapBytes = st.Stats.Uploaded, st.Stats.Map
	m.StoreRequests = &controlv1.StoreRequests{
		Get: requests.Get, Put: requests.Put, Delete: requests.Delete, List: requests.List, Failed: requests.Failed,
		ReceivedBytes: requests.Received, SentBytes: requests.Sent, Lease: requests.Lease,
	}
	if st.Failed != nil {
		m.Volume.Failed = text(st.Failed.Error())
	}
	m.Waits = list(st.Waits, waitMessage)
}

func waitMessage(w volume.Wait) *controlv1.VolumeWait {
	return &controlv1.VolumeWait{What: text(w.What), Reason: text(w.Reason.Error()), Waited: durationpb.New(time.Since(w.Since))}
}
