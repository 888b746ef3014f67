package host

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/remora-storage/remora/internal/durable"
	"github.com/remora-storage/remora/volume"
)

// record is what is kept over restarts.
type record struct {
	Version  int               `json:"version"`
	Node     identity          `json:"node"`  // whose it is, should node.json be lost
	Names    map[string]places `json:"names"` // of volumes, to the stores in which they were used
	Attached []Attached        `json:"attached"`
	// Stores are which store each URL led to that this node has used.
	Stores map[string]volume.ID `json:"stores,omitempty"`
	// Seen are the heads of volumes as this node took them, or gave them up, last.
	Seen   map[volume.ID]volume.Seen `json:"seen,omitempty"`
	Events []pendingEvent            `json:"events,omitempty"` // that their stores do not have yet
	// Had are the volumes of which a journal may be here.
	Had map[volume.ID]Attached `json:"had,omitempty"`
}

const recordVersion = 1

// RecordFile is what a damaged record costs.
var RecordFile = durable.Kind{
	Name: "volumes.json",
	Lost: "which volumes are attached here, and in which stores this node's volumes are; their acknowledged writes are still in " +
		"volumes/journals",
	Do: "unmount the volumes' devices and end them (snapctl dev ls, snapctl dev detach), attach each volume again with --store: " +
		"that brings the writes in its journal back; then remove this file",
}

func (h *Host) recordPath() string { return filepath.Join(h.opts.Root, RecordFile.Name) }

// loadRecord reads what an earlier process has left. Journals without a record tell that it was lost.
func (h *Host) loadRecord() error {
	r, found, err := durable.LoadJSON(h.recordPath(), RecordFile, h.opts.Log, (*record).check)
	if err != nil {
		return err
	}
	h.lost = found == durable.Damaged
	if found == durable.Absent {
		if h.lost, err = h.journals.Any(); err != nil {
			return err
		}
		if h.lost {
			if err := durable.Miss(h.recordPath(), RecordFile, h.opts.Log, "there are journals of volumes"); err != nil {
				return err
			}
		}
	}
	if h.record = r; r.Names == nil {
		h.record.Names = map[string]places{}
	}
	if h.record.Stores == nil {
		h.record.Stores = map[string]volume.ID{}
	}
	if h.record.Seen == nil {
		h.record.Seen = map[volume.ID]volume.Seen{}
	}
	if h.record.Had == nil {
		h.record.Had = map[volume.ID]Attached{}
	}
	return nil
}

// check says whether a record can be one that was saved.
func (r *record) check() error {
	if err := durable.CheckVersion(r.Version, recordVersion); err != nil {
		return err
	}
	seen := map[volume.ID]bool{{}: true} // which no volume has
	for _, a := range r.Attached {
		if seen[a.ID] {
			return fmt.Errorf("volume %s is attached twice, or is none", a.ID)
		}
		if seen[a.ID] = true; a.Store == "" || a.Size <= 0 {
			return fmt.Errorf("volume %s has %d bytes in store %q", a.ID, a.Size, a.Store)
		}
	}
	return nil
}

func (h *Host) saveLocked() error {
	h.record.Version, h.record.Node = recordVersion, h.id
	slices.SortFunc(h.record.Attached, func(a, b Attached) int { return cmp.Compare(a.Name, b.Name) })
	return durable.SaveJSON(h.recordPath(), h.record)
}

// notAttached is the error of a volume that the record does not name.
func (h *Host) notAttached(id volume.ID) error {
	if h.lost {
		return fmt.Errorf("volume %s: %w: %s, which said in which store it is, was lost (snapctl status says what to do)", id, ErrNotAttached,
			h.recordPath())
	}
	return fmt.Errorf("volume %s: %w", id, ErrNotAttached)
}
