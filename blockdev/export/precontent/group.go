package precontent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"github.com/remora-storage/remora/blockdev/holder"
	"github.com/remora-storage/remora/blockdev/slots"
	"github.com/remora-storage/remora/internal/fair"
)

// An Image is a sparse file that can be filled.
type Image interface {
	// Fill returns when every byte of [off, off+n) is in the file; n = 0 means up to its end.
	// It writes by a descriptor that was opened before the file was marked.
	Fill(ctx context.Context, off, n int64) error

	// Image returns that descriptor.
	Image() *os.File
}

// A Group is the fanotify group of all images.
type Group struct {
	keeper holder.Keeper
	name   string
	log    *slog.Logger
	group  *os.File
	mem    *slots.Slots

	life    context.Context
	stop    context.CancelFunc
	started sync.WaitGroup
	crowded rate.Sometimes // says that errCrowd is given

	mu     sync.Mutex // guards the fields below
	images map[inode]marked
	ids    map[string]inode
	kept   map[string]*os.File // adopted descriptors of images that are not known yet, by id
	taken  map[string]bool     // ids whose descriptors Held has given copies of
	busy   map[uint64]*reader  // by the sequence numbers of events that are being answered
	crowd  fair.Shares[inode]  // events that are being answered, by image
	over   bool
}

type inode struct{ dev, ino uint64 }

type marked struct {
	id    string
	image Image
}

const (
	// FAN_PRE_ACCESS and FAN_REPORT_FD_ERROR of <linux/fanotify.h>.
	preAccess     = 0x00100000
	reportFDError = 0x00002000

	eventsName = "events/"
	imageName  = "image/"
)

// New makes a group. Its name tells the groups of a holder apart. Close must be called.
func New(keeper holder.Keeper, name string, log *slog.Logger) (*Group, error) {
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_PRE_CONTENT|unix.FAN_UNLIMITED_QUEUE|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK|reportFDError,
		unix.O_RDONLY|unix.O_LARGEFILE|unix.O_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("fanotify group for pre-content events: %w (Linux 6.14 or later, and root)", err)
	}
	file := os.NewFile(uintptr(fd), "fanotify")
	mem, err := holder.NewEvents()
	if err != nil {
		file.Close()
		return nil, err
	}
	g := newGroup(keeper, name, file, mem, log)
	if err := keeper.Put(eventsName+name, file, mem.File()); err != nil {
		return nil, errors.Join(fmt.Errorf("give the fanotify group to the holder: %w", err), g.Close())
	}
	return g, nil
}

// Adopt takes the group and the images' descriptors over from what a holder has kept, and removes
// them from it. It returns nil if there is no such group. Nothing is answered before Start.
func Adopt(keeper holder.Keeper, name string, kept map[string][]*os.File, log *slog.Logger) (*Group, error) {
	files := kept[eventsName+name]
	delete(kept, eventsName+name)
	if len(files) != 2 {
		return nil, nil
	}
	mem, err := slots.Open(files[1])
	if err != nil {
		files[0].Close()
		return nil, err
	}
	g := newGroup(keeper, name, files[0], mem, log)
	g.kept = map[string]*os.File{}
	for item, files := range kept {
		if id, ok := strings.CutPrefix(item, imageName+name+"/"); ok && len(files) == 1 {
			g.kept[id] = files[0]
			delete(kept, item)
		}
	}
	return g, nil
}

func newGroup(keeper holder.Keeper, name string, file *os.File, mem *slots.Slots, log *slog.Logger) *Group {
	g := &Group{
		keeper: keeper, name: name, log: log, group: file, mem: mem,
		crowd:   fair.Shares[inode]{Limit: int64(mem.Len()), Most: int64(mem.Len() / 2)},
		crowded: rate.Sometimes{First: 1, Interval: 10 * time.Second},
		images:  map[inode]marked{}, ids: map[string]inode{}, busy: map[uint64]*reader{}, taken: map[string]bool{},
	}
	g.life, g.stop = context.WithCancel(context.Background())
	return g
}

// Start answers events from now on. Of an adopted group, all images must be known: events of
// others are denied.
func (g *Group) Start() error {
	var left []string // of images that are no more
	g.mu.Lock()
	for id := range g.kept {
		if !g.taken[id] {
			left = append(left, id)
		}
	}
	g.mu.Unlock()
	for _, id := range left {
		if err := g.keeper.Drop(g.item(id)); err != nil {
			g.log.Warn("descriptor of an image stays with the holder", "digest", id, "err", err)
		}
		g.let(id)
	}
	g.started.Go(g.watchReaders)
	return g.keeper.Watch(eventsName+g.name, g.mem, g.emit)
}

// Stop ends answering. Readers wait for the next process, if a holder has the group.
func (g *Group) Stop() error {
	g.mu.Lock()
	g.over = true
	g.mu.Unlock()
	g.stop()
	g.started.Wait()
	g.mu.Lock()
	for id, f := range g.kept {
		f.Close() // only a reference
		delete(g.kept, id)
	}
	g.mu.Unlock()
	return errors.Join(g.group.Close(), g.mem.Close())
}

// Close ends the group for everybody: what its images miss reads as zeros from now on, so no image
// may be mounted any more.
func (g *Group) Close() error {
	g.mu.Lock()
	var ids []string
	for id := range g.ids {
		ids = append(ids, id)
	}
	g.mu.Unlock()
	var errs []error
	for _, id := range ids {
		errs = append(errs, g.Forget(id))
	}
	return errors.Join(append(errs, g.keeper.Drop(eventsName+g.name), g.Stop())...)
}

func (g *Group) item(id string) string { return imageName + g.name + "/" + id }

// let closes an adopted descriptor, if there is one.
func (g *Group) let(id string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if f := g.kept[id]; f != nil {
		f.Close() // only a reference
		delete(g.kept, id)
	}
}

// Held returns the descriptor that an earlier process had of an image, or nil if the image was not marked: a copy, and another one
// each time until the image is known, for whoever fails to open the image may try again, and no other descriptor will do.
func (g *Group) Held(id string) (*os.File, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f := g.kept[id]
	if f == nil {
		return nil, nil
	}
	own, err := holder.Dup(f)
	if err != nil {
		return nil, fmt.Errorf("copy the descriptor of image %s: %w", id, err)
	}
	g.taken[id] = true
	return own, nil
}

// Taken reports whether Held has given an image's descriptor: its mark is there.
func (g *Group) Taken(id string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.taken[id]
}

// Knows reports whether an image was marked here, or connected by Know, and is so still.
func (g *Group) Knows(id string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, ok := g.ids[id]
	return ok
}

// Mark has the kernel ask for every read of an image's file by whoever opens it from now on.
func (g *Group) Mark(id string, img Image) error {
	if err := g.Know(id, img); err != nil {
		return err
	}
	if err := g.mark(unix.FAN_MARK_ADD, img.Image()); err != nil {
		return errors.Join(fmt.Errorf("mark image %s: %w", id, err), g.Forget(id))
	}
	return nil
}

// Know connects an image that an earlier process marked with what fills it.
func (g *Group) Know(id string, img Image) error {
	var st unix.Stat_t
	if err := unix.Fstat(fdOf(img.Image()), &st); err != nil {
		return fmt.Errorf("stat image %s: %w", id, err)
	}
	key := inode{st.Dev, st.Ino}
	g.mu.Lock()
	g.images[key], g.ids[id] = marked{id, img}, key
	g.mu.Unlock()
	if err := g.keeper.Put(g.item(id), img.Image()); err != nil {
		return fmt.Errorf("give the descriptor of image %s to the holder: %w", id, err)
	}
	g.let(id) // the image's own takes its place
	return nil
}

// Unmark lets the kernel read a complete image without asking. Every byte of it is in the file,
// and it is recorded that it is: a process that comes after this one must know as well.
func (g *Group) Unmark(id string, img Image) error {
	if err := g.mark(unix.FAN_MARK_REMOVE, img.Image()); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmark image %s: %w", id, err)
	}
	return g.Forget(id)
}

// Forget drops an image whose file is about to go. Its mark stays: whoever has the file open is
// denied what it misses.
func (g *Group) Forget(id string) error {
	g.mu.Lock()
	if key, ok := g.ids[id]; ok {
		delete(g.images, key)
		delete(g.ids, id)
	}
	g.mu.Unlock()
	defer g.let(id)
	return g.keeper.Drop(g.item(id))
}

// mark changes the mark of a file by one of its descriptors.
func (g *Group) mark(flags uint, f *os.File) error {
	raw, err := g.group.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := raw.Control(func(fd uintptr) {
		err = unix.FanotifyMark(int(fd), flags, preAccess, unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fdOf(f)))
	}); cerr != nil {
		return cerr
	}
	return err
}

// fdOf returns a descriptor's number without making it blocking. It must be open.
func fdOf(f *os.File) (fd int) {
	fd = -1
	if raw, err := f.SyscallConn(); err == nil {
		_ = raw.Control(func(n uintptr) { fd = int(n) }) // stays -1, an error of the next call
	}
	return fd
}
