package disks_test

import (
	"context"
	"fmt"
	"log/slog"
	"testing"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/blockdev/disk"
	"github.com/remora-storage/remora/blockdev/export/fusefile"
	"github.com/remora-storage/remora/blockdev/export/loop"
	"github.com/remora-storage/remora/conformance/suite"
	"github.com/remora-storage/remora/conformance/testbed"
)

// TestDiskDevice: what the kernel makes of a device, by FUSE and a loop device, is a device like any other.
func TestDiskDevice(t *testing.T) {
	t.Parallel()
	testbed.NeedRoot(t)
	for _, sector := range []int{512, 4096} {
		t.Run(fmt.Sprintf("sectors of %d", sector), func(t *testing.T) {
			// A system call waits for the kernel, and is not left. Past the page cache it is never answered immediately.
			suite.Device(t, suite.Implementation{Has: suite.Changes | suite.Mapper | suite.Quick, New: attached(sector)})
		})
	}
}

// attached returns what attaches a device in memory and opens what the kernel has of it.
func attached(sector int) func(t *testing.T, size int64) blockdev.Device {
	return func(t *testing.T, size int64) blockdev.Device {
		log := slog.New(slog.NewTextHandler(t.Output(), nil))
		root := t.TempDir()
		way := loop.NewDisks(log, fusefile.NewEach(fusefile.EachOptions{Dir: disk.Dir(root), Writable: true, Log: log}))
		disks, err := disk.Open(t.Context(), disk.Options{
			Root: root, Way: way, Log: log,
			Open: func(context.Context, string, bool) (disk.Device, error) { return blockdev.NewRAM(size) },
		})
		testbed.Must(t, err)
		t.Cleanup(func() { testbed.Must(t, disks.Close()) })
		k, err := disks.Attach(t.Context(), "memory", false, sector)
		testbed.Must(t, err)
		d, err := blockdev.OpenFile(k.Path, blockdev.FileOptions{Direct: true})
		testbed.Must(t, err)
		t.Cleanup(func() { testbed.Must(t, d.Close()) })
		return d
	}
}
