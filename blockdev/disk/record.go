package disk

import (
	"errors"
	"fmt"
	"path/filepath"
	"strconv"

	"github.com/remora-storage/remora/internal/durable"
)

// record is what is written down.
type record struct {
	Version int    `json:"version"`
	Next    uint64 `json:"next_node"`
	Disks   []Disk `json:"disks"`
}

const recordVersion = 1

// RecordFile is what a damaged record costs.
var RecordFile = durable.Kind{
	Name: "disks.json",
	Lost: "which bytes the block devices have that were attached; those that the kernel still has fail every request",
	Do: "unmount the devices that snapctl dev ls shows as unknown, end them with snapctl dev detach, and attach files and volumes " +
		"again; then remove this file",
}

// unknownSource begins the sources of disks that no record names. Nobody can open them.
const unknownSource = "unknown:"

// errUnknown is why they fail.
var errUnknown = errors.New(RecordFile.Name + ", which said what its bytes are, was lost: unmount it and detach it, then attach it again")

// skipped is how many numbers are left out after a record was lost: some of them may have been used, and none is used again.
const skipped = 1 << 20

func (d *Disks) recordPath() string { return filepath.Join(d.opts.Root, RecordFile.Name) }

// load reads the record. lost says that there was one which cannot be used.
func (d *Disks) load() (r record, lost bool, err error) {
	r, found, err := durable.LoadJSON(d.recordPath(), RecordFile, d.opts.Log, (*record).check)
	if err != nil || found != durable.Absent {
		return r, found == durable.Damaged, err
	}
	left, err := d.opts.Way.Left()
	if err != nil || len(left) == 0 {
		return r, false, err
	}
	return r, true, durable.Miss(d.recordPath(), RecordFile, d.opts.Log, fmt.Sprintf("the kernel has %d disks", len(left)))
}

// check says whether a record can be one that was saved.
func (r *record) check() error {
	if err := durable.CheckVersion(r.Version, recordVersion); err != nil {
		return err
	}
	nodes, sources := map[uint64]bool{}, map[string]bool{"": true}
	for _, k := range r.Disks {
		if nodes[k.Node] || k.Node < firstNode || k.Node >= r.Next {
			return fmt.Errorf("disk %q has the number %d, and the next one is %d", k.Source, k.Node, r.Next)
		}
		if sources[k.Source] || k.Size <= 0 || k.Sector <= 0 {
			return fmt.Errorf("disk %q, of %d bytes in sectors of %d, is none or is there twice", k.Source, k.Size, k.Sector)
		}
		nodes[k.Node], sources[k.Source] = true, true
	}
	return nil
}

// unnamed returns the disks that the kernel has, after the record was lost.
func (d *Disks) unnamed() ([]Disk, error) {
	left, err := d.opts.Way.Left()
	if err != nil {
		return nil, err
	}
	var all []Disk
	for _, b := range left {
		all = append(all, Disk{
			Source: unknownSource + strconv.FormatUint(b.ID, 10), ReadOnly: b.ReadOnly, Sector: b.Sector, Size: b.Size, Node: b.ID,
		})
		d.next = max(d.next, b.ID+1)
	}
	d.next += skipped
	return all, nil
}

// save writes the record down. A crash leaves the one before or this one.
func (d *Disks) save() error {
	d.saving.Lock()
	defer d.saving.Unlock()
	d.mu.Lock()
	r := record{Version: recordVersion, Next: d.next, Disks: d.listLocked()}
	d.mu.Unlock()
	return durable.SaveJSON(d.recordPath(), r)
}
