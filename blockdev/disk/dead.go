package disk

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/remora-storage/remora/blockdev"
)

// place is a loop device, and what tells it from others that have had its path.
type place struct {
	Path  string `json:"path"`
	Setup string `json:"setup"`
	Boot  string `json:"boot"`
}

// placeOf returns what is known of a disk's device, nil if it is no loop device.
func placeOf(path string) *place {
	setup, err := blockdev.LoopSetup(path)
	if err != nil {
		return nil
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil
	}
	return &place{path, setup, strings.TrimSpace(string(boot))}
}

// there reports whether the device is.
func (p *place) there() bool {
	now := placeOf(p.Path)
	return now != nil && *now == *p
}

// errDead is why a disk fails whose bytes nobody serves any longer, and that somebody uses nonetheless: a file system is mounted, or a
// program has it open. Its device goes with its last user.
var errDead = errors.New("it has ended with the process that kept it: unmount it, and close it")

// bury lets the device of a disk that has ended go with its last user, and keeps the disk until that has gone. Its file has no path any
// longer.
func (d *Disks) bury(k Disk) {
	d.drop(k)
	if k.At == nil || !k.At.there() {
		return
	}
	if err := blockdev.DropLoop(k.At.Path); err != nil {
		d.opts.Log.Warn("a block device stays", "source", k.Source, "device", k.At.Path, "err", err)
	}
	if k.At.there() {
		d.keepDead(k)
	}
}

func (d *Disks) keepDead(k Disk) {
	d.opts.Log.Error("what uses this block device gets errors until it is unmounted and closed", "source", k.Source, "device", k.At.Path)
	k.Dead, k.Path, k.Reason = true, k.At.Path, errDead.Error()
	d.disks[k.Node] = &attached{k, lost{k.Size, errDead}}
}

// sweepLocked forgets the dead that have gone.
func (d *Disks) sweepLocked() {
	for node, a := range d.disks {
		if a.Dead && !a.At.there() {
			delete(d.disks, node)
		}
	}
}

// livesLocked reports whether there is a disk that the way into the kernel has.
func (d *Disks) livesLocked() bool {
	for _, a := range d.disks {
		if !a.Dead {
			return true
		}
	}
	return false
}

// detachDead says whether a dead disk has gone.
func (d *Disks) detachDead(k Disk) error {
	if k.At.there() {
		return fmt.Errorf("%s: %w", k.Path, ErrInUse)
	}
	d.mu.Lock()
	delete(d.disks, k.Node)
	d.mu.Unlock()
	return d.save()
}
