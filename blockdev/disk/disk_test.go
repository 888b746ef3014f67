package disk_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/blockdev/disk"
	"github.com/remora-storage/remora/blockdev/export"
	"github.com/remora-storage/remora/blockdev/mounts"
)

// A kernel has block devices as long as it runs, and a way to have them as long as a process does.
type kernel struct {
	devices map[uint64]string // by number
	busy    map[uint64]bool
	served  map[uint64]blockdev.Device
	calls   []string
	sizes   map[uint64]int64 // of devices, 1 MiB by default
	dropped map[uint64]bool
	lost    uint64     // its connection has ended
	mu      sync.Mutex // guards all
	holds   map[uint64]held
}

// held is a device that is let go when it is told to.
type held struct{ begun, end chan struct{} }

// hold returns what tells and ends the wait of Withdraw.
func (k *kernel) hold(id uint64) held {
	h := held{make(chan struct{}), make(chan struct{})}
	k.holds[id] = h
	return h
}

func newKernel() *kernel {
	return &kernel{
		devices: map[uint64]string{}, busy: map[uint64]bool{}, served: map[uint64]blockdev.Device{}, holds: map[uint64]held{},
		sizes: map[uint64]int64{}, dropped: map[uint64]bool{},
	}
}

func (k *kernel) call(name string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.calls = append(k.calls, name)
	return nil
}

// kill ends the process that serves.
func (k *kernel) kill() { clear(k.served); k.calls = nil }

func (k *kernel) Backend() blockdev.Backend                { return "toy" }
func (k *kernel) Made(mounts.Mount) export.Made            { return export.NotMade }
func (k *kernel) Take(map[string][]*os.File) (bool, error) { return true, nil }
func (k *kernel) Start() error                             { return k.call("start") }
func (k *kernel) Stop() error                              { return k.call("stop") }
func (k *kernel) End() error                               { return k.call("end") }
func (k *kernel) Find(id uint64) (string, error)           { return k.devices[id], nil }
func (k *kernel) Left() (left []export.Block, err error) {
	for id, path := range k.devices {
		left = append(left, export.Block{ID: id, Path: path, Size: cmp.Or(k.sizes[id], 1<<20), How: export.How{Sector: 512}})
	}
	return left, nil
}
func (k *kernel) Grow(id uint64) error {
	k.sizes[id] = k.served[id].Size()
	return k.call("grow")
}

func (k *kernel) Adopt(id uint64, dev blockdev.Device) error {
	if id == k.lost {
		return export.ErrLost
	}
	k.served[id] = dev
	return nil
}

func (k *kernel) Export(id uint64, dev blockdev.Device, how export.How) (export.Path, error) {
	if how.Sector == 8192 {
		return nil, errors.New("no such sectors")
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.devices[id], k.served[id] = fmt.Sprintf("/dev/toy%d", id), dev
	return export.File(k.devices[id]), nil
}

func (k *kernel) Withdraw(_ context.Context, id uint64) error {
	if k.busy[id] {
		return unix.EBUSY
	}
	if h, ok := k.holds[id]; ok {
		close(h.begun)
		<-h.end
	}
	if _, err := k.served[id].ReadAt(context.Background(), make([]byte, 512), 0); err != nil {
		return err // as a flush does
	}
	return k.Drop(id)
}

func (k *kernel) Drop(id uint64) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.devices, id)
	delete(k.served, id)
	k.dropped[id] = true
	return nil
}

// store opens disks by name.
type store struct {
	sizes  map[string]int64
	closed map[string]int
}

type bytesOf struct {
	*blockdev.RAM
	name string
	s    *store
}

func (b bytesOf) Close() error { b.s.closed[b.name]++; return b.RAM.Close() }

func (s *store) open(_ context.Context, source string, _ bool) (disk.Device, error) {
	size, ok := s.sizes[source]
	if !ok {
		return nil, fmt.Errorf("no %s", source)
	}
	r, err := blockdev.NewRAM(size)
	return bytesOf{r, source, s}, err
}

func newStore() *store {
	return &store{sizes: map[string]int64{"a": 1 << 20, "b": 2 << 20}, closed: map[string]int{}}
}

func open(t *testing.T, root string, k *kernel, s *store, taken bool) *disk.Disks {
	t.Helper()
	d, err := disk.Open(t.Context(), disk.Options{
		Root: root, Way: k, Taken: taken, Outlive: true, Open: s.open, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func attach(t *testing.T, d *disk.Disks, source string) disk.Disk {
	t.Helper()
	k, err := d.Attach(t.Context(), source, false, 512)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// TestDisksTakenOver: the next process serves what is attached under the same numbers, and new numbers follow.
func TestDisksTakenOver(t *testing.T) {
	root, k, s := t.TempDir(), newKernel(), newStore()
	d := open(t, root, k, s, false)
	a, b := attach(t, d, "a"), attach(t, d, "b")
	if again := attach(t, d, "a"); again != a {
		t.Errorf("attached again: %+v, want %+v", again, a)
	}
	if _, err := d.Attach(t.Context(), "a", true, 512); err == nil {
		t.Error("attached in two ways")
	}
	if _, err := d.Attach(t.Context(), "c", false, 512); err == nil {
		t.Error("attached what is not there")
	}
	delete(k.devices, b.Node) // somebody ends it
	k.kill()
	d = open(t, root, k, s, true)
	if got := d.List(); len(got) != 1 || got[0] != a || k.served[a.Node] == nil || len(k.served) != 1 {
		t.Errorf("taken over %+v, serving %v", got, k.served)
	}
	if strings.Join(k.calls, " ") != "start" {
		t.Errorf("calls %v", k.calls)
	}
	if !k.dropped[b.Node] || k.dropped[a.Node] {
		t.Errorf("dropped %v: what disk %d was read by is left", k.dropped, b.Node)
	}
	if c := attach(t, d, "b"); c.Node <= b.Node {
		t.Errorf("number %d again", c.Node)
	}
	if err := d.Close(); err != nil || k.calls[len(k.calls)-1] != "stop" || len(k.devices) != 2 {
		t.Errorf("closed: %v, calls %v, devices %v", err, k.calls, k.devices)
	}
}

// TestDisksEnded: where nobody has kept what they depend on, they are let go, and the record says so.
func TestDisksEnded(t *testing.T) {
	root, k, s := t.TempDir(), newKernel(), newStore()
	attach(t, open(t, root, k, s, false), "a")
	k.kill()
	d := open(t, root, k, s, false)
	if len(d.List()) != 0 || len(k.devices) != 0 || strings.Join(k.calls, " ") != "end" {
		t.Errorf("disks %v, devices %v, calls %v", d.List(), k.devices, k.calls)
	}
	if d = open(t, root, k, s, true); len(d.List()) != 0 {
		t.Errorf("back again: %v", d.List())
	}
}

// TestDetach: one in use stays, one whose bytes are gone is dropped, and the device is closed once.
func TestDetach(t *testing.T) {
	root, k, s := t.TempDir(), newKernel(), newStore()
	d := open(t, root, k, s, false)
	a, b := attach(t, d, "a"), attach(t, d, "b")
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // waits for no user that may be passing
	k.busy[a.Node] = true
	if _, err := d.Detach(ctx, "a"); !errors.Is(err, disk.ErrInUse) || len(d.List()) != 2 {
		t.Errorf("detached in use: %v", err)
	}
	k.busy[a.Node] = false
	if got, err := d.Detach(ctx, a.Path); err != nil || got.Node != a.Node || s.closed["a"] != 1 {
		t.Errorf("detached %+v, %v, closed %d times", got, err, s.closed["a"])
	}
	if got, err := d.Detach(ctx, "a"); err != nil || got.Path != "" {
		t.Errorf("detached again: %+v, %v", got, err)
	}
	if len(k.calls) > 0 {
		t.Errorf("calls %v while a disk is attached", k.calls)
	}
	k.kill()
	s.sizes["b"] = 1 << 20 // it has become smaller: these are other bytes
	d = open(t, root, k, s, true)
	if got := d.List(); len(got) != 1 || got[0].Reason == "" || got[0].Path != b.Path {
		t.Errorf("attached: %+v", got)
	}
	if _, err := d.Detach(ctx, "b"); err != nil || len(k.devices) != 0 {
		t.Errorf("detached what is lost: %v, devices %v", err, k.devices)
	}
	attach(t, d, "a")
}

// TestDetachWaits: a device of one disk that is not let go, since its store is away, keeps nobody from the others; who wants the
// same disk may leave, and has it afterwards.
func TestDetachWaits(t *testing.T) {
	root, k, s := t.TempDir(), newKernel(), newStore()
	d := open(t, root, k, s, false)
	a := attach(t, d, "a")
	waits := k.hold(a.Node)
	detached := make(chan error, 1)
	go func() {
		_, err := d.Detach(t.Context(), a.Path)
		detached <- err
	}()
	<-waits.begun
	b := attach(t, d, "b")
	if err := d.Grow(t.Context(), "b"); err != nil {
		t.Error(err)
	}
	if got, err := d.Detach(t.Context(), b.Path); err != nil || got.Node != b.Node {
		t.Errorf("detached %+v, %v", got, err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("has no time"))
	if _, err := d.Attach(ctx, "a", false, 512); err == nil || !strings.Contains(err.Error(), "has no time") {
		t.Errorf("attached while it is detached: %v", err)
	}
	if _, err := d.Detach(ctx, a.Path); err == nil || !strings.Contains(err.Error(), "has no time") {
		t.Errorf("detached twice: %v", err)
	}
	close(waits.end)
	if err := <-detached; err != nil {
		t.Error(err)
	}
	if again := attach(t, d, "a"); again.Node <= b.Node {
		t.Errorf("attached again as %+v", again)
	}
	if d = open(t, root, k, s, true); len(d.List()) != 1 {
		t.Errorf("written down: %+v", d.List())
	}
}

// TestAdoptLost: a disk whose connection has ended ends, and no other one.
func TestAdoptLost(t *testing.T) {
	root, k, s := t.TempDir(), newKernel(), newStore()
	d := open(t, root, k, s, false)
	a, b := attach(t, d, "a"), attach(t, d, "b")
	k.kill()
	k.lost = a.Node
	d = open(t, root, k, s, true)
	if got := d.List(); len(got) != 1 || got[0] != b || len(k.devices) != 1 || s.closed["a"] != 1 {
		t.Errorf("taken over: %+v, devices %v, closed %v", got, k.devices, s.closed)
	}
}

// TestAttachFails: what the kernel refuses is not written down, and its bytes are closed.
func TestAttachFails(t *testing.T) {
	root, k, s := t.TempDir(), newKernel(), newStore()
	d := open(t, root, k, s, false)
	for _, sector := range []int{8192, 3 << 20} {
		if _, err := d.Attach(t.Context(), "a", false, sector); err == nil {
			t.Errorf("sectors of %d", sector)
		}
	}
	if d = open(t, root, k, s, true); len(d.List()) != 0 || s.closed["a"] != 2 {
		t.Errorf("disks %v, closed %d times", d.List(), s.closed["a"])
	}
}

// TestGrow: the record knows the new size, and a source without a disk is no error.
func TestGrow(t *testing.T) {
	root, k, s := t.TempDir(), newKernel(), newStore()
	d := open(t, root, k, s, false)
	attach(t, d, "a")
	if err := d.Grow(t.Context(), "b"); err != nil || len(k.calls) != 0 {
		t.Errorf("grown what is not attached: %v, %v", err, k.calls)
	}
	if err := d.Grow(t.Context(), "a"); err != nil || strings.Join(k.calls, " ") != "grow" {
		t.Errorf("grown: %v, %v", err, k.calls)
	}
}

// TestFit: a device whose growing was cut short, or that was not written down, gets the size of its bytes after the start, and the
// record knows. Others are left alone, and what is done with a disk meanwhile is waited for.
func TestFit(t *testing.T) {
	root, k, s := t.TempDir(), newKernel(), newStore()
	d := open(t, root, k, s, false)
	a, b := attach(t, d, "a"), attach(t, d, "b")
	k.sizes[b.Node] = 2 << 20
	k.kill()
	s.sizes["a"] = 3 << 20
	d = open(t, root, k, s, true)
	if strings.Join(k.calls, " ") != "start" {
		t.Fatalf("calls %v before the start has ended", k.calls)
	}
	d.Fit(t.Context())
	if strings.Join(k.calls, " ") != "start grow" || k.sizes[a.Node] != 3<<20 {
		t.Errorf("calls %v, sizes %v", k.calls, k.sizes)
	}
	d.Fit(t.Context())
	if len(k.calls) != 2 {
		t.Errorf("calls %v", k.calls)
	}
	k.kill()
	if d = open(t, root, k, s, true); d.Find("a").Size != 3<<20 || d.Find("b").Size != 2<<20 {
		t.Errorf("written down: %+v", d.List())
	}
	waits := k.hold(b.Node)
	detached := make(chan error, 1)
	go func() {
		_, err := d.Detach(t.Context(), "b")
		detached <- err
	}()
	<-waits.begun
	k.sizes[b.Node] = 1 << 20
	gone, leave := context.WithCancel(t.Context())
	leave()
	if d.Fit(gone); len(k.calls) != 1 {
		t.Errorf("calls %v while it is detached", k.calls)
	}
	close(waits.end)
	if err := <-detached; err != nil {
		t.Error(err)
	}
}
