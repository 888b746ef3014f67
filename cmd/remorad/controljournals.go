package main

import (
	"context"
	"errors"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	controlv1 "github.com/remora-storage/remora/cmd/control/v1"
	"github.com/remora-storage/remora/volume/host"
)

// ListJournals lists the journals on this node.
func (v *volumes) ListJournals(ctx context.Context, _ *controlv1.ListJournalsRequest) (*controlv1.ListJournalsResponse, error) {
	all, err := host.JournalsOf(v.host).List(ctx)
	return &controlv1.ListJournalsResponse{Journals: list(all, journalMessage)}, err
}

// strayJournals returns how many journals are not of a volume that is attached here.
func (v *volumes) strayJournals() (int64, error) {
	n, err := host.JournalsOf(v.host).Strays()
	return int64(n), err
}

func journalMessage(j host.Journal) *controlv1.Journal {
	return &controlv1.Journal{
		Id: j.ID.String(), Volume: text(j.Name), VolumeId: j.Volume.String(), Store: text(j.Store), State: j.State, Reason: text(j.Why),
		Epoch: j.Epoch, Writes: j.Writes, Bytes: j.Bytes, AtMost: j.AtMost, Written: timestamppb.New(j.Written), FileBytes: j.Size,
		File: text(j.File),
	}
}

// SalvageJournal makes a new, read-only volume of a journal.
func (v *volumes) SalvageJournal(
	req *controlv1.SalvageJournalRequest, stream grpc.ServerStreamingServer[controlv1.SalvageJournalResponse],
) error {
	made, at, err := host.JournalsOf(v.host).Salvage(stream.Context(), req.GetJournal(), cleanStore(req.GetStore()), req.GetInto(),
		func(what string) {
			_ = stream.Send(&controlv1.SalvageJournalResponse{Step: text(what)}) // the end will say that the caller is gone
		})
	if made == nil {
		return err
	}
	return errors.Join(err, stream.Send(&controlv1.SalvageJournalResponse{Salvaged: &controlv1.SalvagedJournal{
		Volume: rebuiltMessage(&made.Rebuilt), Journal: made.Journal.String(), FirstWrite: made.FirstWrite, LastWrite: made.LastWrite,
		JournalBytes: made.JournalSize, Store: text(at),
	}}))
}

// RemoveJournal removes a journal.
func (v *volumes) RemoveJournal(ctx context.Context, req *controlv1.RemoveJournalRequest) (*controlv1.RemoveJournalResponse, error) {
	j, err := host.JournalsOf(v.host).Remove(ctx, req.GetJournal(), req.GetAcceptLoss())
	if err != nil {
		return nil, err
	}
	return &controlv1.RemoveJournalResponse{Journal: journalMessage(j)}, nil
}
