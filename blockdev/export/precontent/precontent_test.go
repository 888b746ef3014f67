package precontent_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev/export/precontent"
	"github.com/remora-storage/remora/blockdev/holder"
	"github.com/remora-storage/remora/blockdev/slots"
)

// image is a file whose bytes come from memory, block by block, when they are asked for.
type image struct {
	f     *os.File
	data  []byte
	fills atomic.Int64

	mu    sync.Mutex
	err   error
	delay time.Duration

	hold chan struct{} // nothing comes before it is closed; may be nil
}

const block = 4096

// newImage makes an image of which the first block is present.
func newImage(t *testing.T, dir string, size int) *image {
	t.Helper()
	i := &image{data: make([]byte, size)}
	r := rand.New(rand.NewPCG(1, uint64(size)))
	for k := range i.data {
		i.data[k] = byte(r.Uint32() | 1) // no zero, so that a hole shows
	}
	f, err := os.Create(filepath.Join(dir, fmt.Sprint("image-", size)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := f.WriteAt(i.data[:block], 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(int64(size)); err != nil {
		t.Fatal(err)
	}
	i.f = f
	return i
}

func (i *image) Image() *os.File { return i.f }

func (i *image) set(err error, delay time.Duration) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.err, i.delay = err, delay
}

func (i *image) Fill(ctx context.Context, off, n int64) error {
	i.mu.Lock()
	err, delay := i.err, i.delay
	i.mu.Unlock()
	i.fills.Add(1)
	if i.hold != nil {
		select {
		case <-i.hold:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	select {
	case <-time.After(delay):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if err != nil {
		return err
	}
	if n == 0 || n > int64(len(i.data))-off {
		n = int64(len(i.data)) - off
	}
	_, err = i.f.WriteAt(i.data[off:off+n], off)
	return err
}

func newGroup(t *testing.T) (*precontent.Group, *holder.Local) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("fanotify needs root")
	}
	keeper := holder.NewLocal()
	g, err := precontent.New(keeper, "test", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Skip("no pre-content events here: ", err)
	}
	t.Cleanup(func() {
		if err := errors.Join(g.Close(), keeper.Close()); err != nil {
			t.Error(err)
		}
	})
	if err := g.Start(); err != nil {
		t.Fatal(err)
	}
	return g, keeper
}

// TestReadersSeeTheBytes: many readers, by read(2), mmap and direct I/O, see what was missing.
func TestReadersSeeTheBytes(t *testing.T) {
	g, _ := newGroup(t)
	i := newImage(t, t.TempDir(), 8<<20)
	if err := g.Mark("one", i); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for w := range 16 {
		all.Go(func() {
			flags := os.O_RDONLY
			if w%4 == 3 {
				flags |= unix.O_DIRECT
			}
			f, err := os.OpenFile(i.f.Name(), flags, 0)
			if err != nil {
				t.Error(err)
				return
			}
			defer f.Close()
			if w%4 == 2 {
				readMapped(t, f, i.data)
				return
			}
			r := rand.New(rand.NewPCG(2, uint64(w)))
			p := alignedBlock(t)
			for range 200 {
				off := int64(r.IntN(len(i.data)/block)) * block
				if _, err := f.ReadAt(p, off); err != nil || !bytes.Equal(p, i.data[off:off+block]) {
					t.Errorf("reader %d at %d: %v", w, off, err)
					return
				}
			}
		})
	}
	all.Wait()
}

func alignedBlock(t *testing.T) []byte {
	p, err := unix.Mmap(-1, 0, block, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Error(err)
	}
	return p
}

func readMapped(t *testing.T, f *os.File, want []byte) {
	p, err := unix.Mmap(int(f.Fd()), 0, len(want), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Error(err)
		return
	}
	defer unix.Munmap(p)
	if !bytes.Equal(p, want) {
		t.Error("mapped bytes differ")
	}
}

// TestOpenedBeforeTheMark: such a file never raises events. So nobody but us may have it open then,
// and we may write by it.
func TestOpenedBeforeTheMark(t *testing.T) {
	g, _ := newGroup(t)
	i := newImage(t, t.TempDir(), 1<<20)
	early, err := os.Open(i.f.Name())
	if err != nil {
		t.Fatal(err)
	}
	defer early.Close()
	if err := g.Mark("one", i); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, block)
	if _, err := early.ReadAt(p, 8*block); err != nil || !bytes.Equal(p, make([]byte, block)) {
		t.Errorf("a file opened before its mark: %v, and not zeros", err)
	}
	if n := i.fills.Load(); n != 0 {
		t.Errorf("%d fills", n)
	}
}

// TestFloodedQueue: far more readers than a queue of the usual size holds, all right.
func TestFloodedQueue(t *testing.T) {
	g, _ := newGroup(t)
	i := newImage(t, t.TempDir(), 4<<20)
	i.set(nil, 100*time.Millisecond)
	if err := g.Mark("one", i); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for k := range 500 {
		all.Go(func() {
			f, err := os.OpenFile(i.f.Name(), os.O_RDONLY|unix.O_DIRECT, 0)
			if err != nil {
				t.Error(err)
				return
			}
			defer f.Close()
			p := alignedBlock(t)
			off := int64(1+k%(len(i.data)/block-1)) * block
			if _, err := f.ReadAt(p, off); err != nil || !bytes.Equal(p, i.data[off:off+block]) {
				t.Errorf("at %d: %v", off, err)
			}
		})
	}
	all.Wait()
}

// TestDenied: a reader sees ENOSPC and EIO, and a later read succeeds.
func TestDenied(t *testing.T) {
	g, _ := newGroup(t)
	i := newImage(t, t.TempDir(), 1<<20)
	if err := g.Mark("one", i); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(i.f.Name())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := make([]byte, block)
	for _, want := range []unix.Errno{unix.ENOSPC, unix.EIO} {
		i.set(fmt.Errorf("as the test says: %w", want), 0)
		if _, err := f.ReadAt(p, 4*block); !errors.Is(err, want) {
			t.Errorf("got %v, want %v", err, want)
		}
	}
	i.set(nil, 0)
	if _, err := f.ReadAt(p, 4*block); err != nil || !bytes.Equal(p, i.data[4*block:5*block]) {
		t.Errorf("later: %v", err)
	}
}

// TestForgotten: reads of a removed image's holes fail; they never give zeros.
func TestForgotten(t *testing.T) {
	g, _ := newGroup(t)
	i := newImage(t, t.TempDir(), 1<<20)
	if err := g.Mark("one", i); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(i.f.Name())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := errors.Join(g.Forget("one"), i.f.Close(), os.Remove(i.f.Name())); err != nil {
		t.Fatal(err)
	}
	if _, err := f.ReadAt(make([]byte, block), 4*block); !errors.Is(err, unix.EIO) {
		t.Errorf("got %v, want EIO", err)
	}
}

// TestUnmarked: a complete image asks nobody, not even where it was open before.
func TestUnmarked(t *testing.T) {
	g, _ := newGroup(t)
	i := newImage(t, t.TempDir(), 1<<20)
	if err := g.Mark("one", i); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(i.f.Name())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := errors.Join(i.Fill(t.Context(), 0, 0), g.Unmark("one", i)); err != nil {
		t.Fatal(err)
	}
	fills := i.fills.Load()
	p := make([]byte, len(i.data))
	if _, err := f.ReadAt(p, 0); err != nil || !bytes.Equal(p, i.data) {
		t.Error(err)
	}
	if n := i.fills.Load(); n != fills {
		t.Errorf("%d reads were asked for", n-fills)
	}
}

// TestReaderKilled: a reader that is killed while it waits ends at once, and nobody fills for it
// for ever.
func TestReaderKilled(t *testing.T) {
	g, _ := newGroup(t)
	i := newImage(t, t.TempDir(), 1<<20)
	i.set(nil, time.Hour)
	if err := g.Mark("one", i); err != nil {
		t.Fatal(err)
	}
	c := exec.Command("cat", i.f.Name())
	c.Stdout = io.Discard
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	for i.fills.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	if err := c.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Fatal("a killed reader does not end")
	}
	// The group's Close, which ends this test, returns when nothing is being filled any more.
}

// capture is a holder that dies at the worst moment: it keeps everything and reads nothing.
type capture struct {
	files []*os.File
	mem   *slots.Slots
	emit  func(int)
}

func (c *capture) Put(name string, files ...*os.File) error {
	if len(files) == 2 {
		c.files = files
	}
	return nil
}
func (c *capture) Drop(string) error { return nil }
func (c *capture) Watch(_ string, mem *slots.Slots, emit func(int)) error {
	c.mem, c.emit = mem, emit
	return nil
}
func (c *capture) Answered(*holder.Event) {}

// diedReading is a group whose holder died when it had read one event: read(2) had filled the slot, and nothing came after it.
// The event is of a read of the image called first.
func diedReading(t *testing.T, first *image, others ...*image) (g *precontent.Group, dead *capture) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("fanotify needs root")
	}
	dead = &capture{}
	g, err := precontent.New(dead, "test", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Skip("no pre-content events here: ", err)
	}
	for k, i := range append(others, first) {
		if err := g.Mark(fmt.Sprint(k), i); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.Start(); err != nil {
		t.Fatal(err)
	}
	readBlock(t, first, 8)
	slot := dead.mem.Slot(0)
	*(*uint32)(unsafe.Pointer(&slot[104])) = 1
	for n := 0; n <= 0; {
		n, err = unix.Read(fdOf(t, dead.files[0]), slot[:80])
		if err != nil && !errors.Is(err, unix.EAGAIN) {
			t.Fatal(err)
		}
	}
	unix.Close(int(int32(binary.NativeEndian.Uint32(slot[16:])))) // as death does
	return g, dead
}

// readBlock reads a block of an image in the background, by a descriptor of its own. ended is closed when that succeeded or failed.
func readBlock(t *testing.T, i *image, number int) (ended chan struct{}) {
	ended = make(chan struct{})
	go func() {
		defer close(ended)
		f, err := os.Open(i.f.Name())
		if err != nil {
			t.Error(err)
			return
		}
		defer f.Close()
		p, off := make([]byte, block), int64(number*block)
		if _, err := f.ReadAt(p, off); err != nil || !bytes.Equal(p, i.data[off:off+block]) {
			t.Errorf("at %d: %v, or other bytes", off, err)
		}
	}()
	return ended
}

// inherit lets a new holder take over what a dead one has left.
func (c *capture) inherit(t *testing.T) *holder.Local {
	t.Helper()
	heir := holder.NewLocal()
	if err := errors.Join(heir.Put("events", c.files...), heir.Watch("events", c.mem, func(slot int) { c.emit(slot) })); err != nil {
		t.Fatal(err)
	}
	return heir
}

// awaitAnswer waits until the first event of a dead holder has its answer, and tells the new one.
func (c *capture) awaitAnswer(heir *holder.Local) {
	slot := c.mem.Slot(0)
	e := holder.Event{Slot: 0, Sequence: binary.NativeEndian.Uint64(slot[96:])}
	for atomic.LoadUint32((*uint32)(unsafe.Pointer(&slot[104]))) != 3 {
		time.Sleep(time.Millisecond)
	}
	heir.Answered(&e) // what the group told the dead one
}

// TestHolderDiedWhileReading: an event that a holder had read when it died, before it could even
// look which file it is of, is answered right.
func TestHolderDiedWhileReading(t *testing.T) {
	dir := t.TempDir()
	one, other := newImage(t, dir, 1<<20), newImage(t, dir, 2<<20)
	g, dead := diedReading(t, one, other)
	defer g.Stop()
	second := readBlock(t, other, 16)
	heir := dead.inherit(t)
	defer heir.Close()
	for one.fills.Load() == 0 || other.fills.Load() == 0 { // each, since the file is not known
		time.Sleep(time.Millisecond)
	}
	dead.awaitAnswer(heir)
	<-second
}

// TestUnansweredAfterHolderDied: while an event of a dead holder cannot be answered, others' reads go on, and none of the answers
// is taken for another's.
func TestUnansweredAfterHolderDied(t *testing.T) {
	dir := t.TempDir()
	silent, other := newImage(t, dir, 1<<20), newImage(t, dir, 2<<20)
	answers := make(chan struct{})
	silent.hold = answers
	g, dead := diedReading(t, silent, other)
	defer g.Stop()
	heir := dead.inherit(t)
	defer heir.Close()
	for n := range 20 { // one after the other: each gets the lowest number that is free
		<-readBlock(t, other, 16+n)
	}
	late := readBlock(t, silent, 40)
	select {
	case <-late:
		t.Error("read of an image that nothing came of")
	default:
	}
	close(answers)
	<-late
	dead.awaitAnswer(heir)
}

func fdOf(t *testing.T, f *os.File) (fd int) {
	raw, err := f.SyscallConn()
	if err == nil {
		err = raw.Control(func(n uintptr) { fd = int(n) })
	}
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

// newEvents makes a fanotify group and the memory of its events.
func newEvents(t *testing.T, n int) (group *os.File, mem *slots.Slots) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("fanotify needs root")
	}
	const reportFDError = 0x2000
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_PRE_CONTENT|unix.FAN_UNLIMITED_QUEUE|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK|reportFDError,
		unix.O_RDONLY|unix.O_LARGEFILE|unix.O_CLOEXEC)
	if err != nil {
		t.Skip("no pre-content events here: ", err)
	}
	if mem, err = slots.New("events", n, 128); err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), "fanotify"), mem
}

// TestHeldAgain: who fails to open an image that an earlier process has marked gets its descriptor again, and can write through it
// without being asked for what it writes.
func TestHeldAgain(t *testing.T) {
	group, mem := newEvents(t, 8)
	keeper, img := holder.NewLocal(), newImage(t, t.TempDir(), 1<<20)
	before, err := holder.Dup(img.f)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.FanotifyMark(fdOf(t, group), unix.FAN_MARK_ADD, 0x00100000, unix.AT_FDCWD, img.f.Name()); err != nil {
		t.Fatal(err)
	}
	gone, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	kept := map[string][]*os.File{"events/test": {group, mem.File()}, "image/test/a": {before}, "image/test/gone": {gone}}
	g, err := precontent.Adopt(keeper, "test", kept, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		f, err := g.Held("a")
		if err != nil || f == nil {
			t.Fatal(f, err)
		}
		if _, err := f.WriteAt(make([]byte, block), 0); err != nil { // for ever through another one
			t.Error(err)
		}
		f.Close()
	}
	if err := errors.Join(keeper.Put("events/test", group, mem.File()), g.Start()); err != nil {
		t.Fatal(err)
	}
	if f, err := g.Held("a"); err != nil || f == nil {
		t.Errorf("after the start: %v, %v", f, err)
	}
	if err := g.Know("a", img); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"a", "gone", "never"} {
		if f, err := g.Held(id); err != nil || f != nil {
			t.Errorf("%s: %v, %v", id, f, err)
		}
	}
	<-readBlock(t, img, 16)
	if err := errors.Join(g.Close(), keeper.Close()); err != nil {
		t.Error(err)
	}
}

// TestCrowd: an image for whose bytes many readers wait for ever leaves room for the readers of others. What exceeds its share
// fails.
func TestCrowd(t *testing.T) {
	const slotsThere = 32
	file, mem := newEvents(t, slotsThere)
	keeper := holder.NewLocal()
	g, err := precontent.Adopt(keeper, "test", map[string][]*os.File{"events/test": {file, mem.File()}}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(keeper.Put("events/test", file, mem.File()), g.Start()); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(g.Close(), keeper.Close()); err != nil {
			t.Error(err)
		}
	}()
	dir := t.TempDir()
	silent, other := newImage(t, dir, 1<<20), newImage(t, dir, 2<<20)
	silent.hold = make(chan struct{})
	if err := errors.Join(g.Mark("silent", silent), g.Mark("other", other)); err != nil {
		t.Fatal(err)
	}
	results := make(chan error)
	for n := range 2 * slotsThere {
		go func() {
			f, err := os.Open(silent.f.Name())
			if err == nil {
				_, err = f.ReadAt(make([]byte, block), int64(1+n)*2*block)
				f.Close()
			}
			results <- err
		}()
	}
	for range 2*slotsThere - slotsThere/2 {
		if err := <-results; !errors.Is(err, unix.EIO) {
			t.Errorf("beyond its share a read gives %v", err)
		}
	}
	for n := range 20 {
		<-readBlock(t, other, 16+n)
	}
	close(silent.hold)
	for range slotsThere / 2 {
		if err := <-results; err != nil {
			t.Errorf("within its share: %v", err)
		}
	}
	<-readBlock(t, silent, 40)
}
