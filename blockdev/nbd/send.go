package nbd

import (
	"encoding/binary"
	"errors"
	"net"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	smallAnswer = 32 << 10  // bytes; smaller ones go ahead of larger ones
	pieceSize   = 128 << 10 // bytes of a large answer that go at once, so that small ones can come between
	batchSmall  = 128       // answers in one system call
	batchBulk   = 4         // large ones, or pieces
	staysMixed  = 64        // batches after a small answer in which another is expected
	stageSize   = 64 << 10  // bytes of answers that become one TLS write
)

// sender sends a connection's answers. Whoever finds it idle sends what is ready, as far as the socket takes it
// without waiting; then the sender's own goroutine goes on.
type sender struct {
	sock net.Conn
	raw  syscall.RawConn // nil for TLS, whose writes may wait: only the goroutine makes them

	mu          sync.Mutex // guards the fields below
	small, bulk queue
	busy        bool      // somebody sends
	broken      error     // nothing can be sent any more
	idle        sync.Cond // it is not busy, or broken
	wake        chan struct{}

	// The fields below are his who sends.
	iov       []unix.Iovec
	iovSent   int        // of iov
	large     bool       // there is a large answer among it
	mixed     int        // how many more batches are short, since small answers come too
	batch     []*request // those of them that are sent with it
	heads     [batchBulk][chunkLen + 8]byte
	stage     []byte
	errno     syscall.Errno
	try, wait func(fd uintptr) bool
}

type queue struct{ first, last *request }

func (q *queue) push(r *request) {
	r.next = nil
	if q.first == nil {
		q.first = r
	} else {
		q.last.next = r
	}
	q.last = r
}

func (q *queue) pop() *request {
	r := q.first
	q.first, r.next = r.next, nil
	return r
}

func newSender(sock net.Conn) *sender {
	s := &sender{sock: sock, raw: rawConn(sock), wake: make(chan struct{}, 1)}
	s.idle.L = &s.mu
	s.try = func(fd uintptr) bool { s.errno = s.writev(fd); return true }
	s.wait = func(fd uintptr) bool { s.errno = s.writev(fd); return s.errno != unix.EAGAIN }
	return s
}

// add makes an answer ready. It is sent by the next flush.
func (s *sender) add(r *request) {
	s.mu.Lock()
	switch {
	case s.broken != nil:
		s.mu.Unlock()
		r.release()
		return
	case len(r.data) <= smallAnswer:
		s.small.push(r)
	default:
		s.bulk.push(r)
	}
	s.mu.Unlock()
}

// flush sends what is ready, or sees to it that somebody does.
func (s *sender) flush() {
	s.mu.Lock()
	if s.busy || s.broken != nil || !s.gatherLocked() {
		s.mu.Unlock()
		return
	}
	s.busy = true
	s.mu.Unlock()
	if s.raw != nil {
		for {
			if err := s.raw.Write(s.try); err != nil {
				s.fail(err)
				return
			}
			if s.errno == unix.EAGAIN {
				break
			}
			large := s.large
			if !s.sentBatch() {
				return
			}
			if large { // who flushes has other things to do than to send all of it
				break
			}
		}
	}
	s.wake <- struct{}{} // there is room: only who is busy sends this
}

// loop is the sender's goroutine. It ends when wake is closed.
func (s *sender) loop() {
	for range s.wake {
		for {
			var err error
			if s.raw != nil {
				err = s.raw.Write(s.wait)
			} else {
				err = s.writeStaged()
			}
			if err != nil {
				s.fail(err)
				break
			}
			if !s.sentBatch() {
				break
			}
		}
	}
}

// sentBatch follows a system call. It returns false if there is no more to do for who sends.
func (s *sender) sentBatch() bool {
	if s.errno != 0 {
		s.fail(s.errno)
		return false
	}
	for i, r := range s.batch {
		r.release()
		s.batch[i] = nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gatherLocked() {
		return true
	}
	s.busy = false
	s.idle.Broadcast()
	return false
}

// gatherLocked makes the next batch: small answers first, then some of the large ones.
func (s *sender) gatherLocked() bool {
	s.iov, s.iovSent, s.batch = s.iov[:0], 0, s.batch[:0]
	for s.small.first != nil && len(s.batch) < batchSmall {
		s.append(s.small.pop())
		s.mixed = staysMixed
	}
	most := 2 * pieceSize
	if s.large = s.bulk.first != nil; s.large && s.mixed > 0 {
		s.mixed--
		most = pieceSize
	}
	for i, bytes := 0, 0; i < batchBulk && bytes < most && s.bulk.first != nil; i++ {
		r := s.bulk.first
		if !r.pieces {
			bytes += len(r.data)
			s.append(s.bulk.pop())
			continue
		}
		n := min(pieceSize, len(r.data)-r.sent)
		flags := uint16(0)
		if r.sent+n == len(r.data) {
			flags = chunkDone
		}
		head := chunkHeader(s.heads[i][:], chunkData, flags, r.handle, 8+n)
		head = binary.BigEndian.AppendUint64(head, uint64(r.off)+uint64(r.sent))
		s.part(head)
		s.part(r.data[r.sent : r.sent+n])
		bytes += n
		if r.sent += n; r.sent == len(r.data) {
			s.batch = append(s.batch, s.bulk.pop())
		}
	}
	return len(s.iov) > 0
}

func (s *sender) append(r *request) {
	s.part(r.head)
	s.part(r.data)
	s.batch = append(s.batch, r)
}

func (s *sender) part(p []byte) {
	if len(p) == 0 {
		return
	}
	v := unix.Iovec{Base: &p[0]}
	v.SetLen(len(p))
	s.iov = append(s.iov, v)
}

// writev sends the batch until it is sent or the socket is full.
func (s *sender) writev(fd uintptr) syscall.Errno {
	for left := s.iov[s.iovSent:]; len(left) > 0; left = s.iov[s.iovSent:] {
		n, _, err := unix.Syscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(&left[0])), uintptr(len(left)))
		if err == unix.EINTR {
			continue
		}
		if err != 0 {
			return err
		}
		for n > 0 {
			v := &s.iov[s.iovSent]
			if uint64(n) < v.Len {
				v.Base = (*byte)(unsafe.Add(unsafe.Pointer(v.Base), n))
				v.Len -= uint64(n)
				break
			}
			n -= uintptr(v.Len)
			s.iovSent++
		}
	}
	return 0
}

// writeStaged sends the batch through a connection that cannot take many slices at once.
func (s *sender) writeStaged() error {
	for _, v := range s.iov {
		p := unsafe.Slice(v.Base, v.Len)
		if len(s.stage)+len(p) > stageSize {
			if err := s.writeStage(); err != nil {
				return err
			}
		}
		if len(p) > stageSize/2 {
			if _, err := s.sock.Write(p); err != nil {
				return err
			}
			continue
		}
		s.stage = append(s.stage, p...)
	}
	return s.writeStage()
}

func (s *sender) writeStage() error {
	if len(s.stage) == 0 {
		return nil
	}
	_, err := s.sock.Write(s.stage)
	s.stage = s.stage[:0]
	return err
}

// fail gives up. Nobody reads the client's requests any more either.
func (s *sender) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken, s.busy = err, false
	for _, r := range s.batch {
		r.release()
	}
	s.iov, s.batch = nil, nil
	for _, q := range []*queue{&s.small, &s.bulk} {
		for q.first != nil {
			q.pop().release()
		}
	}
	s.idle.Broadcast()
	s.sock.Close()
}

// finish returns when everything is sent, or nothing can be. Nobody adds anything any more.
func (s *sender) finish() error {
	s.flush()
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.busy {
		s.idle.Wait()
	}
	if errors.Is(s.broken, net.ErrClosed) {
		return nil
	}
	return s.broken
}
