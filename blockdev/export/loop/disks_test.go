package loop_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/blockdev/export"
	"github.com/remora-storage/remora/blockdev/export/fusefile"
	"github.com/remora-storage/remora/blockdev/export/loop"
	"github.com/remora-storage/remora/blockdev/holder"
)

// keeper keeps descriptors as a holder does.
type keeper struct {
	holder.Keeper
	kept map[string][]*os.File
}

func (k *keeper) Put(name string, files ...*os.File) error {
	for _, f := range files {
		raw, err := f.SyscallConn()
		if err != nil {
			return err
		}
		if cerr := raw.Control(func(fd uintptr) {
			var copied int
			if copied, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 3); err == nil {
				k.kept[name] = append(k.kept[name], os.NewFile(uintptr(copied), f.Name()))
			}
		}); cerr != nil || err != nil {
			return errors.Join(cerr, err)
		}
	}
	return nil
}

func (k *keeper) Drop(name string) error {
	delete(k.kept, name) // whoever has taken the files has them
	return nil
}

// TestEarlierDisks: disks that an earlier version attached by one connection for all of them are taken over. What is attached now has
// a connection of its own, and the earlier one ends with its last disk.
func TestEarlierDisks(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	root := t.TempDir()
	k := &keeper{kept: map[string][]*os.File{}}
	log := slog.New(slog.DiscardHandler)
	earlier := func() *fusefile.Exporter {
		return fusefile.NewExporter(fusefile.ExporterOptions{
			Dir: filepath.Join(root, "disks"), Item: "disks", Keeper: k, Writable: true, Log: log,
		})
	}
	each := func() *fusefile.Each {
		return fusefile.NewEach(fusefile.EachOptions{Dir: filepath.Join(root, "each"), Item: "each", Keeper: k, Writable: true, Log: log})
	}
	data := map[uint64]*blockdev.RAM{}
	for _, id := range []uint64{2, 3, 4} {
		var err error
		if data[id], err = blockdev.NewRAM(1 << 20); err != nil {
			t.Fatal(err)
		}
		if err := data[id].WriteAt(t.Context(), bytes.Repeat([]byte{byte(id)}, 4096), 4096); err != nil {
			t.Fatal(err)
		}
	}
	mustHave := func(d *loop.Disks, id uint64) {
		t.Helper()
		dev, err := d.Find(id)
		if err != nil || dev == "" {
			t.Fatalf("disk %d: %q, %v", id, dev, err)
		}
		f, err := os.Open(dev)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		got := make([]byte, 4096)
		if _, err := f.ReadAt(got, 4096); err != nil || got[7] != byte(id) {
			t.Errorf("disk %d has %d, %v", id, got[7], err)
		}
	}
	mounted := func(dir string) bool {
		var st, above unix.Stat_t
		if err := errors.Join(unix.Lstat(filepath.Join(root, dir), &st), unix.Lstat(root, &above)); err != nil {
			return false
		}
		return st.Dev != above.Dev
	}
	export1 := func(d *loop.Disks, id uint64) {
		t.Helper()
		p, err := d.Export(id, data[id], export.How{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = d.Drop(id) })
		if err := p.Release(); err != nil {
			t.Error(err)
		}
	}
	was := loop.NewDisks(log, earlier())
	export1(was, 2)
	export1(was, 3)
	if err := was.Stop(); err != nil {
		t.Fatal(err)
	}

	now := loop.NewDisks(log, each(), earlier())
	if taken, err := now.Take(k.kept); !taken || err != nil {
		t.Fatalf("taken %v, %v", taken, err)
	}
	if left, err := now.Left(); err != nil || len(left) != 2 || left[0].ID != 2 || left[1].ID != 3 {
		t.Fatalf("the kernel has %+v, %v", left, err)
	}
	if err := errors.Join(now.Adopt(2, data[2]), now.Adopt(3, data[3]), now.Start()); err != nil {
		t.Fatal(err)
	}
	export1(now, 4)
	for id := range data {
		mustHave(now, id)
	}
	if dev := each().File(4); filepath.Dir(dev) != filepath.Join(root, "each", "4") {
		t.Errorf("exported as %s", dev)
	}
	if err := errors.Join(now.Withdraw(context.Background(), 2), now.Grow(3)); err != nil {
		t.Error(err)
	}
	if !mounted("disks") {
		t.Error("the earlier connection has ended before its last disk")
	}
	if err := now.Withdraw(context.Background(), 3); err != nil {
		t.Error(err)
	}
	if mounted("disks") || !mounted("each/4") {
		t.Error("the earlier connection has not ended with its last disk, or the other one has")
	}
	mustHave(now, 4)
	if err := now.Withdraw(context.Background(), 4); err != nil || mounted("each/4") {
		t.Errorf("withdrawn: %v", err)
	}
	if left, err := now.Left(); err != nil || len(left) != 0 {
		t.Errorf("left: %+v, %v", left, err)
	}
	if err := now.End(); err != nil {
		t.Error(err)
	}
}

// stays is a way of an earlier version that does not end until it is told to.
type stays struct {
	loop.Files
	err  error
	asks int
}

func (s *stays) Withdraw(context.Context, uint64) error { return nil }
func (s *stays) Start() error                           { return nil }
func (s *stays) End() error                             { s.asks++; return s.err }

// TestEarlierStays: what an earlier version left and does not end is nobody's trouble. It is asked again as disks go, until it ends.
func TestEarlierStays(t *testing.T) {
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	was := &stays{err: errors.New("busy")}
	d := loop.NewDisks(log, &stays{}, was)
	if err := errors.Join(d.Start(), d.Withdraw(t.Context(), 2)); err != nil || was.asks != 2 {
		t.Errorf("asked to end %d times: %v", was.asks, err)
	}
	was.err = nil
	for range 3 {
		if err := d.Withdraw(t.Context(), 2); err != nil {
			t.Error(err)
		}
	}
	if was.asks != 3 {
		t.Errorf("asked to end %d times: it had ended", was.asks)
	}
}
