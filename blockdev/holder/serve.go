package holder

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev/slots"
	"github.com/remora-storage/remora/internal/peer"
)

// look is how often a holder looks whether its root is still there, and whether anything needs it.
const look = 2 * time.Second

// Options of Serve.
type Options struct {
	Root string
	Text string // who we are
	// Idle is for how long nobody may have come, with nothing here that anything depends on, before the holder ends. 0 is a minute.
	Idle time.Duration
	Log  *slog.Logger
}

// Serve is a holder's process: it keeps what the root's daemon gives it until the daemon says quit, or goes without leaving
// anything here; until the root is gone; or until nothing depends on what is here, and no daemon has come for a while. The end of
// ctx asks it to end as soon as no daemon is here and nothing depends on it.
func Serve(ctx context.Context, opts Options) error {
	root, log := opts.Root, opts.Log
	l, lock, err := listen(root)
	if err != nil {
		return err
	}
	defer lock.Close()
	asked := ctx.Done()
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	h := &server{
		root: root, text: opts.Text, idle: cmp.Or(opts.Idle, time.Minute), log: log, stop: stop, left: time.Now(),
		items: map[string][]*os.File{}, watches: map[string]*watch{},
	}
	h.store, h.items = openStore(log)
	var started sync.WaitGroup
	defer h.close()
	defer started.Wait()
	defer stop()
	started.Go(func() { h.watchNeed(ctx, asked) })
	started.Go(func() {
		<-ctx.Done()
		l.Close()
		h.disconnect(nil)
	})
	h.store.ready()
	log.Info("holding", "root", root)
	for {
		c, err := l.AcceptUnix()
		if err != nil && ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		if err := checkPeer(c); err != nil {
			log.Warn("connection refused", "err", err)
			c.Close()
			continue
		}
		started.Go(func() { h.serve(c) })
	}
}

// checkPeer lets root in.
func checkPeer(c *net.UnixConn) error {
	cred, err := peer.Of(c)
	if err != nil {
		return err
	}
	if int(cred.Uid) != os.Geteuid() {
		return fmt.Errorf("process %d of user %d is not the daemon", cred.Pid, cred.Uid)
	}
	return nil
}

// server is a holder.
type server struct {
	root, text string
	idle       time.Duration
	log        *slog.Logger
	stop       context.CancelFunc
	store      *fdStore

	mu      sync.Mutex    // guards the fields below
	daemon  *net.UnixConn // the daemon that said hello last; it is the only one that is listened to
	left    time.Time     // when the last one has gone
	items   map[string][]*os.File
	watches map[string]*watch

	sending sync.Mutex // one frame at a time; taken after mu
}

// serve talks to one daemon until it goes, or another comes.
func (h *server) serve(c *net.UnixConn) {
	defer h.disconnect(c)
	buf := make([]byte, maxFrame)
	hello := false
	for {
		f, err := receive(c, buf)
		if err != nil {
			if hello && !errors.Is(err, net.ErrClosed) {
				h.log.Info("daemon has gone", "err", err)
			}
			return
		}
		if f.op == opHello {
			hello = h.welcome(c, &f)
			continue
		}
		if !hello {
			closeAll(f.files)
			return
		}
		if err := h.handle(c, &f); err != nil {
			closeAll(f.files)
			h.send(c, frame{op: opFailed, text: err.Error()})
		}
	}
}

// welcome makes the caller the daemon.
func (h *server) welcome(c *net.UnixConn, f *frame) bool {
	closeAll(f.files)
	if f.version != Version {
		h.send(c, frame{op: opFailed, text: fmt.Sprintf("this holder (%s) speaks version %d, the daemon version %d: "+
			"run snapctl detach --all with the older remorad, then start the newer", h.text, Version, f.version)})
		return false
	}
	h.mu.Lock()
	old := h.daemon
	h.daemon = c
	h.mu.Unlock()
	if old != nil && old != c {
		old.Close()
	}
	h.log.Info("daemon is here", "daemon", f.text)
	h.send(c, frame{op: opWelcome, number: uint32(os.Getpid()), text: h.text})
	return true
}

func (h *server) handle(c *net.UnixConn, f *frame) error {
	h.mu.Lock()
	current := h.daemon == c
	h.mu.Unlock()
	if !current {
		return errors.New("another daemon has taken over")
	}
	switch f.op {
	case opAnswered:
		closeAll(f.files)
		h.mu.Lock()
		defer h.mu.Unlock()
		for _, w := range h.watches { // there is one
			w.answered(int(f.number), f.which)
		}
		return nil
	case opPut:
		h.put(f.name, f.files)
	case opDrop:
		h.put(f.name, nil)
	case opList:
		return h.list(c)
	case opWatch:
		return h.watch(c, f.name)
	case opQuit:
		h.log.Info("told to quit")
		h.send(c, frame{op: opDone})
		h.stop()
		return nil
	default:
		return fmt.Errorf("operation %d is not known to version %d", f.op, Version)
	}
	h.send(c, frame{op: opDone})
	return nil
}

func (h *server) put(name string, files []*os.File) {
	h.mu.Lock()
	old, w := h.items[name], h.watches[name]
	delete(h.items, name)
	delete(h.watches, name)
	if len(files) > 0 {
		h.items[name] = files
	}
	h.mu.Unlock()
	if w != nil { // of a group that this name no longer is
		w.close()
	}
	closeAll(old)
	h.store.put(name, files)
}

func (h *server) list(c *net.UnixConn) error {
	h.mu.Lock()
	items := make(map[string][]*os.File, len(h.items))
	for name, files := range h.items {
		items[name] = files
	}
	h.mu.Unlock()
	for name, files := range items { // only this connection changes them
		h.send(c, frame{op: opItem, name: name, files: files})
	}
	h.send(c, frame{op: opDone})
	return nil
}

// watch begins to read a group, or tells a new daemon what waits.
func (h *server) watch(c *net.UnixConn, name string) error {
	h.mu.Lock()
	files, w := h.items[name], h.watches[name]
	h.mu.Unlock()
	if w != nil {
		h.send(c, frame{op: opDone})
		w.offer()
		return nil
	}
	if len(files) != 2 {
		return fmt.Errorf("watch %q: want a group and its memory, have %d files", name, len(files))
	}
	group, err := Dup(files[0])
	if err != nil {
		return err
	}
	memFile, err := Dup(files[1])
	if err != nil {
		group.Close()
		return err
	}
	mem, err := slots.Open(memFile)
	if err != nil {
		group.Close()
		return err
	}
	if mem.Size() < eventSlot {
		group.Close()
		mem.Close()
		return fmt.Errorf("watch %q: slots of %d bytes", name, mem.Size())
	}
	h.send(c, frame{op: opDone})
	w = startWatch(group, mem, func(slot int) {
		h.mu.Lock()
		to := h.daemon
		h.mu.Unlock()
		if to != nil {
			h.send(to, frame{op: opEvent, number: uint32(slot)}) // lost with the daemon: the next one is told
		}
	})
	h.mu.Lock()
	h.watches[name] = w
	h.mu.Unlock()
	return nil
}

// send writes to a daemon. One that does not read any more is as good as gone.
func (h *server) send(c *net.UnixConn, f frame) {
	h.sending.Lock()
	defer h.sending.Unlock()
	if err := send(c, f); err != nil {
		h.log.Debug("frame not sent", "op", f.op, "err", err)
	}
}

// disconnect closes a daemon's connection, or the current one if c is nil.
func (h *server) disconnect(c *net.UnixConn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if c == nil {
		c = h.daemon
	}
	if c != nil {
		c.Close()
	}
	if h.daemon != c || c == nil {
		return
	}
	h.daemon, h.left = nil, time.Now()
	if len(h.items) == 0 {
		h.log.Info("nothing to hold, and nobody to hold it for")
		h.stop()
	}
}

// watchNeed ends the holder when its root is no longer there, since nobody will ever come for what it keeps, and when nothing
// depends on that.
func (h *server) watchNeed(ctx context.Context, asked <-chan struct{}) {
	var own unix.Stat_t
	if err := unix.Stat(h.root, &own); err != nil {
		h.stop()
		return
	}
	tick := time.NewTicker(look)
	defer tick.Stop()
	idle := h.idle
	for {
		select {
		case <-ctx.Done():
			return
		case <-asked:
			asked, idle = nil, 0
			h.mu.Lock()
			needed, daemon := needed(h.items), h.daemon != nil
			h.mu.Unlock()
			h.log.Info("asked to end", "needed", needed, "daemon", daemon)
		case <-tick.C:
		}
		if h.rootGone(own) || h.endIdle(idle) {
			h.stop()
			return
		}
	}
}

// rootGone reports whether the root is no longer the directory that it was.
func (h *server) rootGone(own unix.Stat_t) bool {
	var now unix.Stat_t
	err := unix.Stat(h.root, &now)
	if err == nil && now.Ino == own.Ino && now.Dev == own.Dev || err != nil && !errors.Is(err, unix.ENOENT) {
		return false // a file system in trouble is not a root that has gone
	}
	h.log.Warn("root has gone, ending", "root", h.root)
	return true
}

// endIdle reports whether no daemon was here for so long, and nothing depends on what is here.
func (h *server) endIdle(idle time.Duration) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.daemon != nil || time.Since(h.left) < idle || needed(h.items) {
		return false
	}
	h.log.Info("nothing depends on what is here, ending", "kept", len(h.items))
	return true
}

func (h *server) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, w := range h.watches {
		w.close()
	}
	for name, files := range h.items {
		closeAll(files)
		h.store.put(name, nil)
	}
}
