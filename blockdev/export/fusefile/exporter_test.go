package fusefile_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/blockdev/export"
	"github.com/remora-storage/remora/blockdev/export/fusefile"
	"github.com/remora-storage/remora/blockdev/export/loop"
	"github.com/remora-storage/remora/blockdev/mounts"
)

// TestExporterTakenOver: two ways share a directory. The next process finds both kinds of export by their numbers, and what
// was withdrawn is gone; without a keeper's files nothing can be adopted.
func TestExporterTakenOver(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := filepath.Join(t.TempDir(), "fuse")
	data := randomBytes(1 << 20)
	newWays := func() (*fusefile.Exporter, loop.Images) {
		f := fusefile.NewExporter(fusefile.ExporterOptions{
			Dir: dir, Item: "files", First: fusefile.FirstNode, Log: slog.New(slog.DiscardHandler),
		})
		return f, loop.Images{Files: f}
	}
	files, loops := newWays()
	p, err := files.Export(1, blockdev.Memory(data), export.How{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	if p.String() != files.File(1) || filepath.Dir(p.String()) != dir {
		t.Errorf("exported as %s", p)
	}
	l, err := loops.Export(2, blockdev.Memory(data), export.How{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	dev, err := os.Open(l.String())
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Release(); err != nil {
		t.Error(err)
	}
	conn, _ := files.Has()
	kept := map[string][]*os.File{"files": dups(t, conn.Kept())}
	if err := errors.Join(files.Stop(), loops.Stop()); err != nil {
		t.Fatal(err)
	}

	files, loops = newWays()
	for _, w := range []export.Exporter{files, loops} {
		if taken, err := w.Take(kept); !taken || err != nil {
			t.Fatalf("taken %v, %v", taken, err)
		}
	}
	err = errors.Join(files.Adopt(1, blockdev.Memory(data)), loops.Adopt(2, blockdev.Memory(data)), files.Start(), loops.Start())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(files.File(1)); err != nil || !bytes.Equal(got, data) {
		t.Errorf("file: %v, right %v", err, bytes.Equal(got, data))
	}
	got := make([]byte, len(data))
	if _, err := dev.ReadAt(got, 0); err != nil || !bytes.Equal(got, data) {
		t.Errorf("loop device: %v, right %v", err, bytes.Equal(got, data))
	}
	if m := (mounts.Mount{Type: "erofs", Source: l.String()}); loops.Made(m) != export.Export || files.Made(m) != export.NotMade {
		t.Errorf("a mount of %s: %v, %v", l, loops.Made(m), files.Made(m))
	}
	if m := (mounts.Mount{Type: "erofs", Source: files.File(1)}); files.Made(m) != export.Export || loops.Made(m) != export.NotMade {
		t.Errorf("a mount of %s: %v, %v", files.File(1), files.Made(m), loops.Made(m))
	}
	if err := errors.Join(dev.Close(), files.Withdraw(context.Background(), 1)); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(files.File(1)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("withdrawn: %v", err)
	}
	if err := errors.Join(loops.End(), files.End()); err != nil {
		t.Error(err)
	}
	files, loops = newWays()
	if err := files.Adopt(1, blockdev.Memory(data)); !errors.Is(err, export.ErrLost) {
		t.Errorf("adopted from nobody: %v", err)
	}
	if err := loops.Adopt(2, blockdev.Memory(data)); !errors.Is(err, export.ErrLost) {
		t.Errorf("adopted from nobody: %v", err)
	}
}
