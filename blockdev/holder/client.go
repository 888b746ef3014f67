package holder

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/remora-storage/remora/blockdev/slots"
)

// A Keeper keeps descriptors and reads fanotify groups: a Client, or a Local without a process
// of its own.
type Keeper interface {
	// Put keeps files under a name, instead of those that had it. The files stay the
	// caller's, who keeps them open until after Drop.
	Put(name string, files ...*os.File) error
	// Drop forgets a name.
	Drop(name string) error
	// Watch reads the events of the group that was put under a name, together with the
	// memory of its events, and calls emit with the slot of each that waits. A slot may be
	// emitted twice. emit must not block.
	Watch(name string, mem *slots.Slots, emit func(slot int)) error
	// Answered says that an event is answered.
	Answered(e *Event)
}

// ClientOptions say how a holder is found.
type ClientOptions struct {
	Root string
	// Start makes a holder for the root, whose socket then appears. nil only waits: somebody
	// else, systemd say, starts it.
	Start func() error
	Text  string // who we are, for the holder's log
	Log   *slog.Logger
}

// A Client is a daemon's connection to its holder. When the holder dies it starts another and
// gives it everything.
type Client struct {
	opts ClientOptions
	ctx  context.Context // ends in Close
	stop context.CancelFunc

	started sync.WaitGroup

	calls sync.Mutex // one call at a time; taken before mu

	mu      sync.Mutex // guards the fields below
	conn    *net.UnixConn
	alive   bool // conn is
	replies chan frame
	pid     int
	items   map[string][]*os.File
	emits   map[string]func(slot int)
	quiet   bool // the holder was told to quit
	closing bool // whoever calls Close gives everything to a new holder, if it must be
}

const (
	connectTimeout = 10 * time.Second
	connectStep    = 2 * time.Millisecond
	again          = time.Second     // after everything could not be handed over
	startAgain     = 3 * time.Second // after a holder was started that does not come up
)

// Connect finds the holder of a root, or starts one, and returns what it has kept: the files
// belong to the caller.
func Connect(opts ClientOptions) (*Client, map[string][]*os.File, error) {
	c := &Client{opts: opts, items: map[string][]*os.File{}, emits: map[string]func(int){}}
	c.ctx, c.stop = context.WithCancel(context.Background())
	conn, pid, err := c.reach()
	if err != nil {
		c.stop()
		return nil, nil, err
	}
	c.attach(conn, pid)
	kept := map[string][]*os.File{}
	if err := c.call(frame{op: opList}, func(f frame) { kept[f.name] = f.files }); err != nil {
		for _, files := range kept {
			closeAll(files)
		}
		return nil, nil, errors.Join(fmt.Errorf("ask the holder what it has: %w", err), c.Close())
	}
	c.mu.Lock()
	for name, files := range kept {
		c.items[name] = files
	}
	c.mu.Unlock()
	return c, kept, nil
}

// reach connects, starting a holder if nobody answers, and says hello. A holder that is just
// ending is tried again, and then another one is started.
func (c *Client) reach() (conn *net.UnixConn, pid int, err error) {
	ctx, cancel := context.WithTimeout(c.ctx, connectTimeout)
	defer cancel()
	var started time.Time
	for {
		conn, err = dial(ctx, c.opts.Root)
		if err == nil {
			if pid, err = c.greet(conn); err == nil {
				return conn, pid, nil
			}
			conn.Close()
			if errors.Is(err, errVersion) {
				return nil, 0, err
			}
			started = time.Time{}
		}
		// One that does not come up may have ended again.
		if time.Since(started) > startAgain && c.opts.Start != nil {
			if serr := c.opts.Start(); serr != nil {
				return nil, 0, fmt.Errorf("start a holder: %w", serr)
			}
			started = time.Now()
		}
		select {
		case <-time.After(connectStep):
		case <-ctx.Done():
			return nil, 0, fmt.Errorf("connect to the holder of %s: %w", c.opts.Root, err)
		}
	}
}

var errVersion = errors.New("the holder speaks another version")

func (c *Client) greet(conn *net.UnixConn) (pid int, err error) {
	if err := send(conn, frame{op: opHello, text: c.opts.Text}); err != nil {
		return 0, err
	}
	f, err := receive(conn, make([]byte, maxFrame))
	switch {
	case err != nil:
		return 0, err
	case f.op == opFailed:
		return 0, fmt.Errorf("%w: %s", errVersion, f.text)
	case f.op != opWelcome || f.version != Version:
		return 0, fmt.Errorf("%w: %d, this remorad %d", errVersion, f.version, Version)
	}
	return int(f.number), nil
}

// attach begins to read from a connection.
func (c *Client) attach(conn *net.UnixConn, pid int) {
	replies := make(chan frame, 1)
	c.mu.Lock()
	c.conn, c.alive, c.replies, c.pid = conn, true, replies, pid
	if c.ctx.Err() != nil { // leave has closed the one before
		conn.Close()
	}
	c.mu.Unlock()
	c.started.Go(func() { c.read(conn, replies) })
}

// read takes what the holder says, until the connection ends.
func (c *Client) read(conn *net.UnixConn, replies chan frame) {
	defer close(replies)
	buf := make([]byte, maxFrame)
	for {
		f, err := receive(conn, buf)
		if err != nil {
			conn.Close()
			c.mu.Lock()
			lost := c.conn == conn && !c.quiet && !c.closing
			if c.conn == conn {
				c.alive = false
			}
			c.mu.Unlock()
			if lost {
				c.opts.Log.Warn("the holder has gone; starting another", "err", err)
				c.started.Go(c.recover)
			}
			return
		}
		if f.op == opEvent {
			c.mu.Lock()
			emits := c.emits
			c.mu.Unlock()
			for _, emit := range emits { // there is one
				emit(int(f.number))
			}
			continue
		}
		select {
		case replies <- f:
		case <-c.ctx.Done():
			closeAll(f.files)
			return
		}
	}
}

// recover gives everything to a new holder. Until it has succeeded this process is the only one
// that keeps it.
func (c *Client) recover() {
	c.calls.Lock()
	defer c.calls.Unlock()
	for c.ctx.Err() == nil {
		c.mu.Lock()
		done := c.alive || c.closing
		c.mu.Unlock()
		if done {
			return
		}
		err := c.handOver()
		if err == nil {
			c.opts.Log.Info("a new holder has everything", "pid", c.PID())
			return
		}
		c.opts.Log.Error("no holder: mounts will not survive this process", "err", err)
		select {
		case <-time.After(again):
		case <-c.ctx.Done():
		}
	}
}

func (c *Client) handOver() error {
	conn, pid, err := c.reach()
	if err != nil {
		return err
	}
	c.attach(conn, pid)
	c.mu.Lock()
	items := make(map[string][]*os.File, len(c.items))
	for name, files := range c.items {
		items[name] = files
	}
	var watched []string
	for name := range c.emits {
		watched = append(watched, name)
	}
	c.mu.Unlock()
	for name, files := range items {
		if err := c.callLocked(frame{op: opPut, name: name, files: files}, nil); err != nil {
			return err
		}
	}
	for _, name := range watched {
		if err := c.callLocked(frame{op: opWatch, name: name}, nil); err != nil {
			return err
		}
	}
	return nil
}

func (c *Client) call(f frame, item func(frame)) error {
	c.calls.Lock()
	defer c.calls.Unlock()
	return c.callLocked(f, item)
}

// callLocked sends a frame and waits until the holder has done it.
func (c *Client) callLocked(f frame, item func(frame)) error {
	c.mu.Lock()
	conn, replies := c.conn, c.replies
	c.mu.Unlock()
	if err := send(conn, f); err != nil {
		conn.Close() // the reader finds out and recovers
		return err
	}
	for {
		r, ok := <-replies
		switch {
		case !ok:
			return errLost
		case r.op == opDone:
			return nil
		case r.op == opItem && item != nil:
			item(r)
		case r.op == opFailed:
			return errors.New(r.text)
		default:
			closeAll(r.files)
			return fmt.Errorf("%w: answer %d", errFrame, r.op)
		}
	}
}

var errLost = errors.New("the holder has gone")

// Put implements Keeper. While no holder is there the files are kept here, and given to the next.
func (c *Client) Put(name string, files ...*os.File) error {
	c.mu.Lock()
	c.items[name] = files
	c.mu.Unlock()
	return c.forgiving(frame{op: opPut, name: name, files: files})
}

// Drop implements Keeper.
func (c *Client) Drop(name string) error {
	c.mu.Lock()
	delete(c.items, name)
	delete(c.emits, name)
	c.mu.Unlock()
	return c.forgiving(frame{op: opDrop, name: name})
}

// forgiving makes a call. A holder that dies meanwhile is no error: the next one is told.
func (c *Client) forgiving(f frame) error {
	err := c.call(f, nil)
	var op *net.OpError
	if errors.Is(err, errLost) || errors.As(err, &op) {
		return nil
	}
	return err
}

// Watch implements Keeper.
func (c *Client) Watch(name string, _ *slots.Slots, emit func(slot int)) error {
	c.mu.Lock()
	c.emits = map[string]func(int){name: emit}
	c.mu.Unlock()
	return c.forgiving(frame{op: opWatch, name: name})
}

// Answered implements Keeper.
func (c *Client) Answered(e *Event) {
	c.mu.Lock()
	conn := c.conn
	c.mu.Unlock()
	// If the holder is gone, the memory says that this event is answered.
	_ = send(conn, frame{op: opAnswered, number: uint32(e.Slot), which: uint32(e.Sequence)})
}

// PID returns the holder's process.
func (c *Client) PID() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pid
}

// Quit ends the holder and with it everything that only it keeps, and closes the client.
func (c *Client) Quit() error {
	c.mu.Lock()
	c.quiet = true
	c.mu.Unlock()
	err := c.forgiving(frame{op: opQuit})
	return errors.Join(err, c.Close())
}

// Close leaves the holder alone with what it keeps. If it has died, another one has everything
// before Close returns; an error says that none could be had.
func (c *Client) Close() error {
	// A holder that does not answer, or does not come up, does not keep us.
	defer time.AfterFunc(connectTimeout, c.leave).Stop()
	err := c.settle()
	c.leave()
	c.started.Wait()
	return err
}

// settle waits for the call and the hand-over that are under way, and gives everything to another
// holder if there is none that has it.
func (c *Client) settle() error {
	c.mu.Lock()
	c.closing = true
	c.mu.Unlock()
	c.calls.Lock()
	defer c.calls.Unlock()
	c.mu.Lock()
	idle := c.conn == nil || c.quiet || len(c.items) == 0
	want := len(c.items)
	c.mu.Unlock()
	if idle {
		return nil
	}
	has := 0
	err := c.callLocked(frame{op: opList}, func(f frame) { has++; closeAll(f.files) })
	if err == nil && has == want {
		return nil
	}
	if err := c.handOver(); err != nil {
		return fmt.Errorf("the holder has gone, and another could not be given what it kept: mounts do not survive this process: %w", err)
	}
	return nil
}

// leave ends everything that this client does.
func (c *Client) leave() {
	c.stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn != nil {
		c.conn.Close()
	}
}
