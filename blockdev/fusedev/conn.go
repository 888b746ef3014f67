package fusedev

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev/slots"
)

// Options of a connection.
type Options struct {
	// AnyUser lets every user use the mount, the kernel checking permissions by the files'
	// modes; otherwise only root may.
	AnyUser bool
	// Writable takes writes, fsync and fallocate. What was carried out before a process died is not carried
	// out again by the next one, and what may have been is, before anything new is.
	Writable bool
	Log      *slog.Logger
}

// shape is how a connection's slots are used.
type shape struct {
	slots   int
	size    int // bytes of a slot
	lead    int // bytes of a slot before the request
	request int // bytes of the longest request
}

func (o Options) shape() shape {
	if o.Writable {
		return shape{writeSlots, pageSize + maxWrite, writeLead, pageSize - writeLead + maxWrite}
	}
	return shape{requestSlots, requestSize, 0, requestSize}
}

// A Conn is a mounted FUSE connection.
type Conn struct {
	dir    string
	dev    *os.File
	mem    *slots.Slots
	shape  shape
	opts   Options
	number uint32 // the kernel's, for /sys/fs/fuse/connections

	mu       sync.Mutex // guards the fields below
	inflight map[uint64]*request
	stopping chan struct{}
	served   chan struct{} // closed when the loop has ended; nil before Serve
}

const (
	maxRequest = 1 << 20 // bytes of the largest read
	pageSize   = 4096

	requestSlots = 8192 // requests at once, waiting readers among them
	// The kernel insists on a buffer of 8 KiB. We take no writes, so no request is longer.
	requestSize = 8192

	// A write's payload begins on a page of its slot, as direct I/O wants it. Before the request lies what became
	// of it.
	maxWrite   = 256 << 10
	writeLead  = pageSize - inHeader - writeHeader
	writeSlots = 64 // of one disk: 16.6 MB once they were all used, half of them by a loop device
)

// background is how many requests that nobody in particular waits for may be under way: reads that wait
// for a registry count as such, and must not hold up the others, and so do a loop device's.
func (s shape) background() uint16 { return uint16(s.slots / 2) }

// Background returns how many requests that nobody in particular waits for may be under way. Whoever mounted the connection has
// told the kernel so.
func (c *Conn) Background() int { return c.mem.Len() / 2 }

// Mount makes a connection and mounts it on dir, which must exist.
func Mount(dir string, opts Options) (*Conn, error) {
	// Opened here: a descriptor that a child process inherited would keep readers hanging after
	// everybody's death, when they should fail.
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/fuse: %w (is the fuse module loaded?)", err)
	}
	shape := opts.shape()
	mem, err := slots.New("fuse", shape.slots, shape.size)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,max_read=%d", fd, maxRequest)
	if opts.AnyUser {
		options += ",allow_other,default_permissions"
	}
	if err := unix.Mount("remora", dir, "fuse.remora", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		unix.Close(fd)
		return nil, errors.Join(fmt.Errorf("mount FUSE on %s: %w", dir, err), mem.Close())
	}
	// Not before: a descriptor that is polled while it is not mounted is never woken again.
	return newConn(dir, os.NewFile(uintptr(fd), "/dev/fuse"), mem, opts), nil
}

// Adopt takes over a connection that an earlier process mounted on dir, by what its Files
// returned. The files belong to the Conn from now on.
func Adopt(dir string, files []*os.File, opts Options) (*Conn, error) {
	if len(files) != 2 {
		for _, f := range files {
			f.Close()
		}
		return nil, fmt.Errorf("adopt FUSE connection of %s: %d files", dir, len(files))
	}
	mem, err := slots.Open(files[1])
	if err != nil {
		files[0].Close()
		return nil, fmt.Errorf("adopt FUSE connection of %s: %w", dir, err)
	}
	if mem.Size() != opts.shape().size {
		return nil, errors.Join(fmt.Errorf("adopt FUSE connection of %s: slots of %d bytes", dir, mem.Size()), files[0].Close(), mem.Close())
	}
	return newConn(dir, files[0], mem, opts), nil
}

func newConn(dir string, dev *os.File, mem *slots.Slots, opts Options) *Conn {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	return &Conn{dir: dir, dev: dev, mem: mem, shape: opts.shape(), opts: opts, inflight: map[uint64]*request{}, stopping: make(chan struct{})}
}

// Files returns what another process must keep so that the connection outlives this one.
func (c *Conn) Files() []*os.File { return []*os.File{c.dev, c.mem.File()} }

// Dir returns where the connection is mounted.
func (c *Conn) Dir() string { return c.dir }

// Start serves fs until Stop or Unmount. What an earlier process left unanswered comes first; Start does not wait for that.
func (c *Conn) Start(fs fuse.RawFileSystem) error {
	c.served = make(chan struct{})
	l := &loop{c: c, fs: fs}
	go func() {
		defer close(c.served)
		l.run()
	}()
	// What the kernel knows by itself: asked for more, it would ask us, and wait until what an earlier process left is done.
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, c.dir, unix.AT_SYMLINK_NOFOLLOW|unix.AT_STATX_DONT_SYNC, 0, &st); err != nil {
		return fmt.Errorf("stat FUSE mount %s: %w", c.dir, err)
	}
	c.number = st.Dev_minor
	return nil
}

// Stop ends serving and leaves the connection to whoever keeps its Files: requests that are not
// answered yet stay in their slots, and their readers wait.
func (c *Conn) Stop() error {
	close(c.stopping)
	_ = c.dev.SetReadDeadline(time.Unix(1, 0)) // wakes the loop; the description is not touched
	if c.served != nil {
		<-c.served
	}
	return errors.Join(c.dev.Close(), c.mem.Close())
}

// Unmount ends the connection for everybody: whatever the kernel has mounted on one of its files
// fails from now on.
func (c *Conn) Unmount() error {
	// Detached rather than unmounted: a mount on one of the files must not keep us here.
	if err := unix.Unmount(c.dir, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", c.dir, err)
	}
	// Somebody may still use a file. Ending the connection fails them now instead of never.
	abort := "/sys/fs/fuse/connections/" + strconv.FormatUint(uint64(c.number), 10) + "/abort"
	if err := os.WriteFile(abort, []byte("1"), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
		c.opts.Log.Info("FUSE connection stays until the process ends", "err", err)
	}
	return c.Stop()
}

// Forget tells the kernel to drop what it knows of a name.
func (c *Conn) Forget(parent uint64, name string) {
	body := make([]byte, 16+len(name)+1) // struct fuse_notify_inval_entry_out
	putUint64(body, parent)
	putUint32(body[8:], uint32(len(name)))
	copy(body[16:], name)
	if err := c.write(notifyInvalEntry, 0, body); err != nil && !errors.Is(err, unix.ENOENT) {
		c.opts.Log.Debug("name not forgotten", "name", name, "err", err)
	}
}
