package control

import (
	"context"
	"time"

	controlv1 "github.com/remora-storage/remora/cmd/control/v1"
)

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

// InspectVolume tells all about one.
func (c *Client) InspectVolume(ctx context.Context, req *VolumeRequest) (*VolumeDetails, error) {
	m, err := c.volumes.InspectVolume(ctx, &controlv1.InspectVolumeRequest{Name: req.Name, Store: req.Store})
	return detailsOf(m), err
}

func detailsOf(m *controlv1.InspectVolumeResponse) *VolumeDetails {
	r := m.GetStoreRequests()
	return &VolumeDetails{
		Volume: volumeOf(m.GetVolume()), StoreError: m.GetStoreError(), StoredBytes: m.GetStoredBytes(), StoredObjects: m.GetStoredObjects(),
		MaxAge: m.GetMaxAge().AsDuration().Seconds(), Committed: m.GetCommittedWrite(), Tail: int(m.GetTailSegments()), Journal: m.GetJournal(),
		AtRiskBytes: m.GetAtRiskBytes(), AtRiskSeconds: m.GetAtRisk().AsDuration().Seconds(),
		JournalUsed: m.GetJournalUsedBytes(), JournalBytes: m.GetJournalBytes(), LeaseSeconds: m.GetLeaseMargin().AsDuration().Seconds(),
		Waits: all(m.GetWaits(), waitOf), Throttled: m.GetThrottled(), Events: all(m.GetEvents(), eventOf),
		Written: m.GetWrittenBytes(), Read: m.GetReadBytes(), Flushes: m.GetFlushes(), Commits: m.GetCommits(),
		Uploaded: m.GetUploadedBytes(), MapBytes: m.GetUploadedMapBytes(),
		Requests: StoreRequests{
			Get: r.GetGet(), Put: r.GetPut(), Delete: r.GetDelete(), List: r.GetList(), Failed: r.GetFailed(),
			Received: r.GetReceivedBytes(), Sent: r.GetSentBytes(), Lease: r.GetLease(),
		},
	}
}

func waitOf(m *controlv1.VolumeWait) VolumeWait {
	return VolumeWait{What: m.GetWhat(), Reason: m.GetReason(), Seconds: m.GetWaited().AsDuration().Seconds()}
}

func eventOf(m *controlv1.VolumeEvent) VolumeEvent {
	return VolumeEvent{Time: timeOf(m.GetTime()), Node: m.GetNode(), What: m.GetWhat(), Detail: m.GetDetail()}
}
