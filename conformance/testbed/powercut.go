package testbed

import (
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/blockdev/export/fusefile"
	"github.com/remora-storage/remora/conformance/faultdev"
	"github.com/remora-storage/remora/conformance/suite"
)

// RecordedExt4 mounts an ext4 on a disk in memory that records what it is sent. Its superblock is never torn: it has one
// checksum over its two sectors, and ext4 relies on a disk that writes both or none (e2fsck would take a copy).
func RecordedExt4(t *testing.T, size int64) (rec *faultdev.Recorder, dev, dir string, umount func()) {
	t.Helper()
	const superblock, superblockSize = 1024, 1024
	rec = faultdev.NewRecorder(suite.RAM(t, size))
	rec.KeepWhole(superblock, superblockSize)
	files, err := fusefile.Mount(t.TempDir(), fusefile.Options{Writable: true, Log: slog.New(slog.DiscardHandler)})
	Must(t, err)
	t.Cleanup(func() { Must(t, files.Unmount()) })
	l, err := blockdev.AttachLoopOn(files.Export(fusefile.FirstNode, rec), blockdev.LoopOptions{Writable: true, Direct: true})
	Must(t, err)
	t.Cleanup(func() { l.Release() })
	FileSystems[0].Mkfs(t, l.Path())
	dir, umount = Mounted(t, l.Path(), "ext4")
	return rec, l.Path(), dir, umount
}

// CutAndLook makes what a power cut leaves of a disk, mounts it, and has somebody look.
func CutAndLook(t *testing.T, rec *faultdev.Recorder, flushes int, rnd *rand.Rand, look func(dir string)) {
	t.Helper()
	work := t.TempDir()
	defer os.RemoveAll(work)
	image, dir := filepath.Join(work, "image"), filepath.Join(work, "mnt")
	Must(t, os.WriteFile(image, nil, 0o600))
	Must(t, os.Truncate(image, rec.Size()))
	Must(t, os.Mkdir(dir, 0o700))
	f, err := blockdev.OpenFile(image, blockdev.FileOptions{})
	Must(t, err)
	Must(t, rec.Cut(t.Context(), f, flushes, rnd))
	Must(t, f.Close())
	Tool(t, "mount", "-o", "loop", image, dir) // which replays the outer journal
	t.Cleanup(func() {
		if t.Failed() {
			_ = unix.Unmount(dir, unix.MNT_DETACH)
		}
	})
	look(dir)
	Unmount(t, dir)
	FileSystems[0].Clean(t, image)
}
