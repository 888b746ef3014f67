package control

import (
	"context"
	"fmt"
	"time"

	controlv1 "github.com/remora-storage/remora/cmd/control/v1"
	"github.com/remora-storage/remora/volume"
)

// A Journal is one on this node.
type Journal struct {
	ID       string    `json:"id"`
	Volume   string    `json:"volume,omitempty"` // its name
	VolumeID string    `json:"volume_id"`
	Store    string    `json:"store,omitempty"`
	State    string    `json:"state"`            // in use, kept, orphan, unknown
	Reason   string    `json:"reason,omitempty"` // for the state
	Epoch    uint64    `json:"epoch"`            // of the last record
	Writes   uint64    `json:"writes"`           // that the store did not have when the volume went on without the journal, or does not have
	Bytes    int64     `json:"bytes"`            // of them
	AtMost   bool      `json:"at_most"`          // what the store has of them is not known
	Written  time.Time `json:"written"`          // the last time
	FileSize int64     `json:"file_bytes"`
	File     string    `json:"file"`
}

// JournalsReply lists them.
type JournalsReply struct {
	Journals []Journal `json:"journals"`
}

// SalvageJournalRequest asks for a read-only volume of what a journal holds.
type SalvageJournalRequest struct {
	Journal string `json:"journal"`
	Store   string `json:"store,omitempty"`
	Into    string `json:"into"`
}

// SalvagedJournal is a volume that was made of a journal.
type SalvagedJournal struct {
	Volume       *volume.Rebuilt `json:"volume"`
	Journal      string          `json:"journal"`
	FirstWrite   uint64          `json:"first_write"`
	LastWrite    uint64          `json:"last_write"`
	JournalBytes int64           `json:"journal_bytes"` // of the volume's data
	Store        string          `json:"store"`
}

// RemoveJournalRequest asks for a journal to be removed.
type RemoveJournalRequest struct {
	Journal    string `json:"journal"`
	AcceptLoss bool   `json:"accept_loss"`
}

// RemoveJournalReply says which one was.
type RemoveJournalReply struct {
	Journal Journal `json:"journal"`
}

// Journals lists the journals on this node.
func (c *Client) Journals(ctx context.Context) (*JournalsReply, error) {
	m, err := c.volumes.ListJournals(ctx, &controlv1.ListJournalsRequest{})
	return &JournalsReply{Journals: all(m.GetJournals(), journalOf)}, err
}

func journalOf(m *controlv1.Journal) Journal {
	return Journal{
		ID: m.GetId(), Volume: m.GetVolume(), VolumeID: m.GetVolumeId(), Store: m.GetStore(), State: m.GetState(), Reason: m.GetReason(),
		Epoch: m.GetEpoch(), Writes: m.GetWrites(), Bytes: m.GetBytes(), AtMost: m.GetAtMost(), Written: timeOf(m.GetWritten()),
		FileSize: m.GetFileBytes(), File: m.GetFile(),
	}
}

// SalvageJournal makes a read-only volume of a journal. It tells step what is being read.
func (c *Client) SalvageJournal(ctx context.Context, req *SalvageJournalRequest, step func(string)) (*SalvagedJournal, error) {
	stream, err := c.volumes.SalvageJournal(ctx, &controlv1.SalvageJournalRequest{Journal: req.Journal, Store: req.Store, Into: req.Into})
	end, err := receiveEnd(stream, err,
		func(m *controlv1.SalvageJournalResponse) bool { return m.GetSalvaged() != nil },
		func(m *controlv1.SalvageJournalResponse) { step(m.GetStep()) })
	if err != nil {
		return nil, err
	}
	m := end.GetSalvaged()
	made, err := rebuiltOf(m.GetVolume())
	if err != nil {
		return nil, fmt.Errorf("volume: %w", err)
	}
	return &SalvagedJournal{Volume: made, Journal: m.GetJournal(), FirstWrite: m.GetFirstWrite(), LastWrite: m.GetLastWrite(),
		JournalBytes: m.GetJournalBytes(), Store: m.GetStore()}, nil
}

// RemoveJournal removes one.
func (c *Client) RemoveJournal(ctx context.Context, req *RemoveJournalRequest) (*RemoveJournalReply, error) {
	m, err := c.volumes.RemoveJournal(ctx, &controlv1.RemoveJournalRequest{Journal: req.Journal, AcceptLoss: req.AcceptLoss})
	return &RemoveJournalReply{Journal: journalOf(m.GetJournal())}, err
}
