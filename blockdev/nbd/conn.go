package nbd

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"
	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev"
)

// conn is a connection's second phase: requests and answers.
type conn struct {
	x          *export
	log        *slog.Logger
	sock       net.Conn
	structured bool
	meta       bool
	out        *sender

	in    *receiver
	flush func() // sends what is ready

	payloads, answers *budget // of writes and of reads

	ctx     context.Context // of its requests; ends when nobody waits for them any more
	cancel  context.CancelFunc
	work    chan *request
	idle    atomic.Int32 // workers that have nothing to do, less requests that wait for one
	workers int
	working sync.WaitGroup

	gone    atomic.Bool   // the client was seen to have gone
	drained chan struct{} // closed when no request is being carried out, and none will be
}

const (
	maxWorkers = 256  // requests of a connection that are carried out at once
	maxQueued  = 1024 // that wait for a worker

	// Bytes of answers in memory where the device makes them faster than the client takes them: more would
	// only push each other out of the processor's caches.
	quickAnswers = 4 << 20
)

func newConn(x *export, h *handshake, log *slog.Logger) *conn {
	out := newSender(h.conn)
	answers := maxRequest
	if x.quick != nil {
		answers = quickAnswers
	}
	return &conn{
		x: x, log: log, sock: h.conn, structured: h.structured, meta: h.meta,
		in: newReceiver(h.conn), out: out, flush: out.flush,
		payloads: newBudget(maxRequest), answers: newBudget(answers),
		work: make(chan *request, maxQueued), drained: make(chan struct{}),
	}
}

var (
	errLeft    = errors.New("disconnected")
	errStopped = errors.New("the server stops")
)

// run serves the client until it disconnects, breaks the protocol or is gone, or ctx ends. It
// says why.
func (c *conn) run(ctx context.Context) error {
	c.ctx, c.cancel = context.WithCancel(context.WithoutCancel(ctx))
	defer c.cancel()
	var sending sync.WaitGroup
	sending.Go(c.out.loop)
	stopping := context.AfterFunc(ctx, func() {
		_ = c.sock.SetReadDeadline(time.Unix(1, 0)) // wakes the reader; a closed socket has woken it
	})
	err := c.read()
	stopping()
	switch {
	case ctx.Err() != nil && errors.Is(err, os.ErrDeadlineExceeded):
		err = errStopped
	case !errors.Is(err, errLeft):
		c.cancel() // nobody waits for an answer
		c.answers.close()
	}
	// Requests end now, by themselves or by being told to.
	give := time.AfterFunc(stopGrace, func() { c.cancel(); c.answers.close() })
	close(c.work)
	c.working.Wait()
	give.Stop()
	close(c.drained)
	_ = c.sock.SetWriteDeadline(time.Now().Add(stopGrace)) // a closed socket needs none
	if serr := c.out.finish(); serr != nil && errors.Is(err, errLeft) {
		err = serr
	}
	close(c.out.wake)
	sending.Wait()
	return err
}

// hungUp reports whether the client has gone, also if there are requests of it that were not read yet.
func (c *conn) hungUp() bool {
	if c.gone.Load() {
		return true
	}
	sock := c.sock
	if t, ok := sock.(*tls.Conn); ok {
		sock = t.NetConn()
	}
	raw := rawConn(sock)
	if raw == nil {
		return false
	}
	hup := false
	if err := raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		n, err := unix.Poll(p, 0)
		hup = err == nil && n > 0 && p[0].Revents&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR) != 0
	}); err != nil {
		return true // closed
	}
	return hup
}

// read takes requests from the socket until the client disconnects or an error ends the connection.
func (c *conn) read() error {
	defer c.gone.Store(true)
	for {
		h, err := c.in.need(requestLen, c.flush)
		if err != nil {
			return err
		}
		if magic := binary.BigEndian.Uint32(h); magic != protocol.TRANSMISSION_MAGIC_REQUEST {
			return fmt.Errorf("%w: request %#x", errProtocol, magic)
		}
		flags, cmd := binary.BigEndian.Uint16(h[4:]), binary.BigEndian.Uint16(h[6:])
		handle, off, n := binary.BigEndian.Uint64(h[8:]), binary.BigEndian.Uint64(h[16:]), int(binary.BigEndian.Uint32(h[24:]))
		switch cmd {
		case protocol.TRANSMISSION_TYPE_REQUEST_DISC:
			return errLeft
		case protocol.TRANSMISSION_TYPE_REQUEST_WRITE:
			err = c.write(c.newRequest(cmd, flags, handle, int64(off), n))
		default:
			c.in.exact = false
			r := c.newRequest(cmd, flags, handle, int64(off), n)
			if code, why := c.refuses(r); code != 0 {
				c.answer(r, code, why)
			} else if !c.now(r) {
				c.dispatch(r)
			}
		}
		if err != nil {
			return err
		}
	}
}

// refuses says what is wrong with a request, before anything is done for it.
func (c *conn) refuses(r *request) (code uint32, why string) {
	known := cfFUA // clients may set it on every command
	switch r.cmd {
	case protocol.TRANSMISSION_TYPE_REQUEST_READ:
		known |= cfDF
	case cmdZeroes:
		known |= cfNoHole | cfFastZero
	case cmdStatus:
		known |= cfReqOne
		if !c.meta {
			return protocol.TRANSMISSION_ERROR_EINVAL, "no meta context was chosen"
		}
		if r.n == 0 {
			return protocol.TRANSMISSION_ERROR_EINVAL, "no bytes"
		}
	case protocol.TRANSMISSION_TYPE_REQUEST_WRITE, cmdTrim, cmdCache, cmdFlush:
	default:
		return protocol.TRANSMISSION_ERROR_EINVAL, "this command is not known"
	}
	if r.flags&^known != 0 {
		return protocol.TRANSMISSION_ERROR_EINVAL, "these flags are not known"
	}
	switch r.cmd {
	case protocol.TRANSMISSION_TYPE_REQUEST_WRITE, cmdTrim, cmdZeroes:
		if c.x.writer == nil {
			return protocol.TRANSMISSION_ERROR_EPERM, "read-only"
		}
	case cmdFlush:
		return 0, ""
	}
	if err := blockdev.Check(c.x.Device, r.off, int64(r.n)); err != nil {
		return rangeError(err, r.cmd), err.Error()
	}
	inMemory := r.cmd == protocol.TRANSMISSION_TYPE_REQUEST_READ || r.cmd == protocol.TRANSMISSION_TYPE_REQUEST_WRITE
	if inMemory && r.n > maxRequest {
		return protocol.TRANSMISSION_ERROR_EINVAL, "larger than the largest block"
	}
	return 0, ""
}

// answer ends a request with an error, or with success and no data for code 0. The reader sends it before it
// waits for more.
func (c *conn) answer(r *request, code uint32, why string) {
	if code != 0 {
		c.log.Debug("request refused", "cmd", r.cmd, "off", r.off, "len", r.n, "reason", why)
		r.fail(code, why)
	} else {
		r.succeed(nil)
	}
	c.out.add(r)
}

// write reads a write's payload and has the write carried out.
func (c *conn) write(r *request) error {
	if code, why := c.refuses(r); code != 0 {
		if err := c.in.skip(r.n, c.flush); err != nil {
			r.release()
			return err
		}
		c.answer(r, code, why)
		return nil
	}
	if m := c.x.mapped; m != nil && r.flags&cfFUA == 0 {
		if err := c.in.fill(m.View(r.off, int64(r.n), true), c.flush); err != nil {
			r.release()
			return err
		}
		c.answer(r, 0, "")
		return nil
	}
	if !c.payloads.try(r.n) {
		c.flush()
		c.payloads.take(r.n) // nobody closes it: earlier writes end
	}
	r.lend(c.payloads, r.n)
	if err := c.in.fill(r.buf.p, c.flush); err != nil {
		r.release()
		return err
	}
	// A large payload takes so long to copy that the next one, if there is one, is better read meanwhile.
	beside := r.n >= bigPayload && c.in.more()
	if q := c.x.quick; q != nil && r.flags&cfFUA == 0 && !beside && q.WriteNow(r.buf.p, r.off) {
		r.dropBuffer()
		c.answer(r, 0, "")
		return nil
	}
	c.dispatch(r)
	return nil
}

// now answers a request that waits for nothing.
func (c *conn) now(r *request) bool {
	if r.cmd != protocol.TRANSMISSION_TYPE_REQUEST_READ {
		return false
	}
	if m := c.x.mapped; m != nil {
		r.succeed(m.View(r.off, int64(r.n), false))
		c.out.add(r)
		return true
	}
	q := c.x.quick
	if q == nil || !c.answers.try(r.n) {
		return false
	}
	r.lend(c.answers, r.n)
	if !q.ReadNow(r.buf.p, r.off) {
		r.dropBuffer()
		return false
	}
	r.succeed(r.buf.p)
	c.out.add(r)
	return true
}

// dispatch gives a request to a worker, a new one if all have something to do.
func (c *conn) dispatch(r *request) {
	if c.idle.Add(-1) < 0 && c.workers < maxWorkers {
		c.workers++
		c.idle.Add(1)
		c.working.Go(c.worker)
	}
	select {
	case c.work <- r:
	default:
		c.flush()
		c.work <- r
	}
}

func (c *conn) worker() {
	for r := range c.work {
		c.carryOut(r)
		c.out.add(r)
		c.idle.Add(1)
		c.flush()
	}
}
