package fusedev

import (
	"encoding/binary"
	"errors"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// loop reads requests and has each answered by a worker, of which there are as many as requests under way.
type loop struct {
	c       *Conn
	fs      fuse.RawFileSystem
	started sync.WaitGroup
	work    chan job     // taken by workers that have none
	idle    atomic.Int32 // of them
	keeps   bool         // memory stays where it is once it was touched
	there   []bool       // slots whose pages are in memory for good
}

// maxIdle workers are kept: their stacks have grown to what requests need.
const maxIdle = 64

// A job is one request to be answered.
type job struct {
	r    *request
	slot int
	h    fuse.InHeader
	body []byte
}

// A request is one that the kernel waits for.
type request struct {
	pid    uint32        // of the thread that waits
	cancel chan struct{} // closed when its caller is being killed, or we stop
	once   sync.Once
	done   chan struct{} // closed when it is answered
}

func (r *request) leave() { r.once.Do(func() { close(r.cancel) }) }

// run serves until the connection ends or Stop is called.
func (l *loop) run() {
	c := l.c
	l.work = make(chan job)
	defer l.started.Wait()
	defer close(l.work)
	defer l.leaveAll()
	if !l.takeOver() {
		return
	}
	raw, err := c.dev.SyscallConn()
	if err != nil {
		return
	}
	if c.opts.Writable {
		err := c.mem.Keep()
		if err != nil {
			c.opts.Log.Debug("requests' memory may be swapped out", "err", err)
		}
		l.keeps, l.there = err == nil, make([]bool, c.mem.Len())
	}
	for {
		slot, ok := c.mem.Take(c.stopping)
		if !ok {
			return
		}
		p := l.room(slot)
		n, err := 0, error(nil)
		if rerr := raw.Read(func(fd uintptr) bool {
			n, err = unix.Read(int(fd), p)
			return !errors.Is(err, unix.EAGAIN)
		}); rerr != nil {
			c.mem.Release(slot)
			return // told to stop
		}
		switch {
		case err == nil:
			l.dispatch(slot, n)
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENOENT): // ENOENT: the caller has left
			c.mem.Release(slot)
		default: // ENODEV: unmounted; nothing else is possible
			c.mem.Release(slot)
			if !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.ECONNABORTED) {
				c.opts.Log.Error("FUSE connection fails", "dir", c.dir, "err", err)
			}
			return
		}
	}
}

// takeOver has everything answered that an earlier process had read and not answered. What changes something ends
// before anything new is read: a write that the kernel sends later must not be overtaken by an earlier one. It
// returns false if the loop is to end.
func (l *loop) takeOver() bool {
	c := l.c
	var changing []*request
	for i := c.mem.Len() - 1; i >= 0; i-- {
		p := c.mem.Slot(i)
		n := binary.NativeEndian.Uint32(p[c.shape.lead:])
		if n == 0 {
			c.mem.Release(i)
			continue
		}
		if r := l.dispatch(i, int(n)); r != nil {
			// Its caller's signal may have been told to the process that died.
			l.started.Go(r.interrupted)
			if c.opts.Writable {
				changing = append(changing, r)
			}
		}
	}
	for _, r := range changing {
		select {
		case <-r.done:
		case <-c.stopping:
			return false
		}
	}
	return true
}

// room prepares a slot for the next request, and returns where the kernel puts it. The slot is in use once the
// request's length is there.
func (l *loop) room(slot int) []byte {
	c := l.c
	p := c.mem.Slot(slot)
	if c.opts.Writable {
		// A page that is not there yet must be got while the kernel copies, which fails, and the request with it, if
		// this process is being killed.
		if !l.there[slot] {
			for at := 0; at < len(p); at += pageSize {
				p[at] = 0
			}
			l.there[slot] = l.keeps
		}
		clear(p[:outcomeLen])
	}
	p = p[c.shape.lead:]
	putUint32(p, 0)
	return p[:c.shape.request]
}

func (l *loop) leaveAll() {
	l.c.mu.Lock()
	defer l.c.mu.Unlock()
	for _, r := range l.c.inflight {
		r.leave()
	}
}

// dispatch has the request in a slot answered, and returns it. What needs no answer is done at once.
func (l *loop) dispatch(slot, n int) *request {
	c := l.c
	p := c.mem.Slot(slot)[c.shape.lead:]
	h, err := header(p[:min(n, len(p))])
	if err != nil {
		c.opts.Log.Error("FUSE request not understood", "err", err)
		l.free(slot)
		return nil
	}
	body := p[inHeader:h.Length]
	switch h.Opcode {
	case opForget, opBatchForget, opDestroy: // our nodes have no counts
		l.free(slot)
		return nil
	case opInterrupt:
		if len(body) >= 8 {
			c.mu.Lock()
			r := c.inflight[binary.NativeEndian.Uint64(body)]
			c.mu.Unlock()
			if r != nil {
				l.started.Go(r.interrupted)
			}
		}
		l.free(slot)
		return nil
	}
	r := &request{pid: h.Pid, cancel: make(chan struct{}), done: make(chan struct{})}
	c.mu.Lock()
	c.inflight[h.Unique] = r
	c.mu.Unlock()
	j := job{r, slot, h, body}
	select {
	case l.work <- j:
	default:
		l.started.Go(func() { l.works(j) })
	}
	return r
}

// works does one job, and what others come.
func (l *loop) works(j job) {
	for more := true; more; {
		l.do(j)
		if l.idle.Add(1) > maxIdle {
			l.idle.Add(-1)
			return
		}
		j, more = <-l.work
		l.idle.Add(-1)
	}
}

func (l *loop) do(j job) {
	defer close(j.r.done)
	kept := l.answer(j.r, j.slot, j.h, j.body)
	l.c.mu.Lock()
	delete(l.c.inflight, j.h.Unique)
	l.c.mu.Unlock()
	if !kept {
		l.free(j.slot)
	}
}

// free gives a slot back.
func (l *loop) free(slot int) {
	putUint32(l.c.mem.Slot(slot)[l.c.shape.lead:], 0)
	l.c.mem.Release(slot)
}

// answer carries a request out. It returns true if the request was left to the next process.
func (l *loop) answer(r *request, slot int, h fuse.InHeader, body []byte) (kept bool) {
	c := l.c
	out, done, status, known := l.outcome(slot)
	if !known {
		out, done, status = l.carryOut(r, h, body)
	}
	if done != nil {
		defer done()
	}
	if status != fuse.OK {
		select {
		case <-c.stopping: // it may have failed for that reason alone
			return true
		default:
		}
		out = nil
	}
	if !known && c.opts.Writable && (h.Opcode == opWrite || h.Opcode == opFallocate) {
		l.setOutcome(slot, out, status)
	}
	err := c.write(-int32(status), h.Unique, out)
	switch {
	case err == nil, errors.Is(err, unix.ENOENT): // the caller has left, or an earlier process had answered
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ECONNABORTED):
	default:
		c.opts.Log.Error("FUSE answer not sent", "op", h.Opcode, "len", len(out), "err", err)
		if status == fuse.OK {
			_ = c.write(-int32(unix.EIO), h.Unique) // the kernel must have some answer
		}
	}
	return false
}

// A slot of a writable connection begins with what became of its request. A process that was killed between
// carrying a write out and answering it must not have the next one carry it out again: the kernel may have had the
// answer, and a newer write of the same bytes may have been carried out since.
//
//	offset  size  field
//	0       4     1 if the request was carried out, 0 if it has to be
//	4       4     the error of the answer
//	8       4     bytes that were written, for a write
//	12      4     bytes of the answer behind its header
const outcomeLen = 16

func (l *loop) outcome(slot int) (out []byte, done func(), status fuse.Status, known bool) {
	if !l.c.opts.Writable {
		return nil, nil, fuse.OK, false
	}
	p := l.c.mem.Slot(slot)
	if atomic.LoadUint32((*uint32)(unsafe.Pointer(&p[0]))) == 0 {
		return nil, nil, fuse.OK, false
	}
	if binary.NativeEndian.Uint32(p[12:]) != 0 {
		out = written(binary.NativeEndian.Uint32(p[8:]))
	}
	return out, nil, fuse.Status(binary.NativeEndian.Uint32(p[4:])), true
}

func (l *loop) setOutcome(slot int, out []byte, status fuse.Status) {
	p := l.c.mem.Slot(slot)
	putUint32(p[4:], uint32(status))
	if len(out) > 0 {
		copy(p[8:12], out)
	}
	putUint32(p[12:], uint32(len(out)))
	atomic.StoreUint32((*uint32)(unsafe.Pointer(&p[0])), 1)
}

const killCheck = 50 * time.Millisecond

// interrupted is what becomes of a request whose caller got a signal. Reads of files are not given
// up for signals that do not kill: a Go program that is executed gets one every few milliseconds and
// would try for ever. The kernel tells of the first signal only, so the caller is looked at
// until the request is answered.
func (r *request) interrupted() {
	for {
		killed, there := r.killed()
		if killed {
			r.leave()
		}
		if killed || !there {
			return
		}
		select {
		case <-r.done:
			return
		case <-r.cancel:
			return
		case <-time.After(killCheck):
		}
	}
}

// killed reports whether SIGKILL waits for the caller, and whether the caller is there: nobody in
// particular waits for what the kernel reads ahead.
func (r *request) killed() (killed, there bool) {
	p, err := os.ReadFile("/proc/" + strconv.FormatUint(uint64(r.pid), 10) + "/status")
	if err != nil {
		return false, false
	}
	for line := range strings.Lines(string(p)) {
		set, ok := strings.CutPrefix(line, "SigPnd:")
		if !ok {
			set, ok = strings.CutPrefix(line, "ShdPnd:")
		}
		if !ok {
			continue
		}
		pending, err := strconv.ParseUint(strings.TrimSpace(set), 16, 64)
		if err == nil && pending&(1<<(uint(unix.SIGKILL)-1)) != 0 {
			return true, true
		}
	}
	return false, true
}
