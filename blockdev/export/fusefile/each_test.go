package fusefile_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/blockdev/export"
	"github.com/remora-storage/remora/blockdev/export/fusefile"
	"github.com/remora-storage/remora/blockdev/holder"
)

// keeper keeps descriptors as a holder does.
type keeper struct {
	holder.Keeper
	t    *testing.T
	mu   sync.Mutex // guards kept
	kept map[string][]*os.File
}

func (k *keeper) Put(name string, files ...*os.File) error {
	all := dups(k.t, files)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.kept[name] = all
	return nil
}

func (k *keeper) Drop(name string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, f := range k.kept[name] {
		f.Close()
	}
	delete(k.kept, name)
	return nil
}

// all returns copies of what is kept.
func (k *keeper) all() map[string][]*os.File {
	k.mu.Lock()
	defer k.mu.Unlock()
	all := map[string][]*os.File{}
	for name, files := range k.kept {
		all[name] = dups(k.t, files)
	}
	return all
}

// slow is memory whose writes wait until they are let.
type slow struct {
	*blockdev.RAM
	begun, let chan struct{}
}

func (s *slow) WriteAt(ctx context.Context, p []byte, off int64) error {
	s.begun <- struct{}{}
	select {
	case <-s.let:
		return s.RAM.WriteAt(ctx, p, off)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func newRAM(t *testing.T) *blockdev.RAM {
	t.Helper()
	r, err := blockdev.NewRAM(4 << 20)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

const mostRequests = 64 // of one connection

// page is what a writer writes.
func page(i int) []byte {
	p := blockdev.AlignedBuffer(4096)
	for at := 0; at < len(p); at += 4 {
		binary.LittleEndian.PutUint32(p[at:], uint32(i))
	}
	return p
}

// TestEachAlone: one device whose every request waits leaves another one alone, also when the next process takes both over: that
// one serves the other while the first one still waits.
func TestEachAlone(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := filepath.Join(t.TempDir(), "each")
	k := &keeper{t: t, kept: map[string][]*os.File{}}
	opts := fusefile.EachOptions{Dir: dir, Item: "each", Keeper: k, Writable: true, Log: slog.New(slog.DiscardHandler)}
	hung, other := &slow{newRAM(t), make(chan struct{}, 4*mostRequests), make(chan struct{})}, newRAM(t)
	each := fusefile.NewEach(opts)
	for id, dev := range map[uint64]blockdev.Device{2: hung, 3: other} {
		if _, err := each.Export(id, dev, export.How{}); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.OpenFile(each.File(2), os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	o, err := os.OpenFile(each.File(3), os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	var writers sync.WaitGroup
	for i := range 2 * mostRequests {
		writers.Go(func() {
			p := page(i)
			if _, err := f.WriteAt(p, int64(i)<<12); err != nil {
				t.Errorf("write %d: %v", i, err)
			}
		})
	}
	for range mostRequests { // no other one finds room
		<-hung.begun
	}
	mustRead := func(when string) {
		t.Helper()
		if n, err := o.ReadAt(blockdev.AlignedBuffer(4096), 0); n != 4096 || err != nil {
			t.Errorf("read of the other device %s: %d bytes, %v", when, n, err)
		}
	}
	mustRead("beside it")
	if err := each.Stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := each.Export(4, other, export.How{}); !errors.Is(err, export.ErrOver) {
		t.Errorf("exported after the end: %v", err)
	}

	each = fusefile.NewEach(opts)
	kept := k.all()
	kept["each/x"], kept["each/9"], kept["other/2"] = nil, dups(t, []*os.File{o}), nil
	if taken, err := each.Take(kept); !taken || err != nil || len(kept) != 3 {
		t.Fatalf("taken %v, %v; left %v", taken, err, kept)
	}
	if err := errors.Join(each.Adopt(2, hung), each.Adopt(3, other), each.Start()); err != nil {
		t.Fatal(err)
	}
	if err := each.Adopt(9, other); !errors.Is(err, export.ErrLost) {
		t.Errorf("adopted what is not there: %v", err)
	}
	mustRead("taken over")
	close(hung.let)
	writers.Wait()
	for i := range 2 * mostRequests {
		got := make([]byte, 4096)
		if _, err := hung.ReadAt(t.Context(), got, int64(i)<<12); err != nil || !bytes.Equal(got, page(i)) {
			t.Errorf("write %d left %v…, %v", i, got[:4], err)
		}
	}
	if err := errors.Join(f.Close(), o.Close(), each.Withdraw(t.Context(), 2)); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 || len(k.kept) != 1 {
		t.Errorf("left: %v, %v; kept %v", left, err, k.kept)
	}
	if err := each.End(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) || len(k.kept) != 0 {
		t.Errorf("after the end: %v; kept %v", err, k.kept)
	}
}

// TestEachUnused: a start ends what an earlier process left that nobody adopts: one whose device was never made, or went, and one that
// was mounted and not given to the keeper yet.
func TestEachUnused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := filepath.Join(t.TempDir(), "each")
	k := &keeper{t: t, kept: map[string][]*os.File{}}
	opts := fusefile.EachOptions{Dir: dir, Item: "each", Keeper: k, Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	each, dev := fusefile.NewEach(opts), newRAM(t)
	for _, id := range []uint64{2, 3} {
		if _, err := each.Export(id, dev, export.How{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := each.Stop(); err != nil {
		t.Fatal(err)
	}
	kept := k.all()
	unkept := fusefile.NewEach(fusefile.EachOptions{Dir: dir, Item: "each", Log: opts.Log})
	if _, err := unkept.Export(4, dev, export.How{}); err != nil {
		t.Fatal(err)
	}
	if err := unkept.Stop(); err != nil {
		t.Fatal(err)
	}

	each = fusefile.NewEach(opts)
	t.Cleanup(func() {
		if err := each.End(); err != nil {
			t.Error(err)
		}
	})
	if taken, err := each.Take(kept); !taken || err != nil {
		t.Fatalf("taken %v, %v", taken, err)
	}
	if err := each.Adopt(3, dev); err != nil {
		t.Fatal(err)
	}
	if _, err := each.Export(5, dev, export.How{}); err != nil {
		t.Fatal(err)
	}
	if err := each.Start(); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(dir)
	var names []string
	for _, l := range left {
		names = append(names, l.Name())
	}
	if err != nil || !slices.Equal(names, []string{"3", "5"}) {
		t.Errorf("left: %v, %v", names, err)
	}
	if names := slices.Sorted(maps.Keys(k.kept)); !slices.Equal(names, []string{"each/3", "each/5"}) {
		t.Errorf("kept: %v", names)
	}
	for _, id := range []uint64{3, 5} {
		if got, err := os.ReadFile(each.File(id)); err != nil || int64(len(got)) != dev.Size() {
			t.Errorf("file %d: %d bytes, %v", id, len(got), err)
		}
	}
}
