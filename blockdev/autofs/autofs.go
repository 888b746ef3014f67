package autofs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/blockdev/mounts"
)

// Type is the type of the mounts, as mountinfo has it.
const Type = "autofs"

// A Server answers for directories. Close must be called.
type Server struct {
	answer func(dir string) error
	log    *slog.Logger
	read   *os.File // of the pipe into which the kernel writes
	write  *os.File

	asked  sync.WaitGroup
	closed sync.Once

	mu   sync.Mutex // guards the fields below
	dirs map[uint32]string
}

// New returns a Server. answer is called when somebody enters a directory on which nothing is mounted, for all who do at a time
// once; its error makes them fail with EIO.
func New(answer func(dir string) error, log *slog.Logger) (*Server, error) {
	dev, err := os.Open(control)
	if err != nil {
		return nil, err
	}
	dev.Close() // it was only looked for
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, fmt.Errorf("pipe for autofs: %w", err)
	}
	s := &Server{
		answer: answer, log: log,
		read: os.NewFile(uintptr(fds[0]), "autofs"), write: os.NewFile(uintptr(fds[1]), "autofs"), dirs: map[uint32]string{},
	}
	s.asked.Go(s.serve)
	return s, nil
}

// Close ends answering: from now on those fail who enter a directory on which nothing is mounted. It may be called twice.
func (s *Server) Close() error {
	var err error
	s.closed.Do(func() { err = errors.Join(s.read.Close(), s.write.Close()) }) // wakes serve
	s.asked.Wait()
	return err
}

// Mount has whoever enters a directory wait for answer.
func (s *Server) Mount(dir string) error {
	raw, err := s.write.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := raw.Control(func(fd uintptr) {
		err = unix.Mount("remora", dir, Type, unix.MS_NOSUID|unix.MS_NODEV,
			fmt.Sprintf("fd=%d,pgrp=%d,minproto=%[3]d,maxproto=%[3]d,direct", fd, unix.Getpgrp(), protocol))
	}); cerr != nil {
		return cerr
	}
	if err != nil {
		return fmt.Errorf("mount autofs on %s: %w", dir, err)
	}
	dev, err := deviceOf(dir)
	if err != nil {
		return errors.Join(err, blockdev.Unmount(dir))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dirs[dev] = dir // a number is used again once its mount is gone
	return nil
}

func deviceOf(dir string) (uint32, error) {
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return 0, &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	return encodeDevice(unix.Major(st.Dev), unix.Minor(st.Dev)), nil
}

// encodeDevice is the kernel's new_encode_dev, by which autofs names its mounts.
func encodeDevice(major, minor uint32) uint32 { return minor&0xff | major<<8 | minor&^0xff<<12 }

// Quiet ends the waiting of those whom a Server that is no more has left at an autofs mount. They fail.
func (*Server) Quiet(m mounts.Mount) error {
	return onMount(m.Dir, encodeDevice(m.Device()), func(c *call) error { return c.do(catatonic, 0, 0) })
}

// A question of the kernel is struct autofs_v5_packet of <linux/auto_fs.h>, in the machine's byte order.
//
//	offset  size  field
//	0       4     protocol version
//	4       4     type
//	8       4     token, by which it is answered
//	12      4     device of the mount
const (
	protocol      = 5
	packetSize    = 304
	missingDirect = 5 // autofs_ptype_missing_direct
)

// serve reads questions until the pipe is closed.
func (s *Server) serve() {
	p := make([]byte, packetSize) // the kernel writes packets, of which one read gets one
	for {
		n, err := s.read.Read(p)
		if errors.Is(err, os.ErrClosed) {
			return
		}
		if err != nil || n < packetSize {
			s.log.Error("autofs no longer asks for anything", "bytes", n, "err", err)
			return
		}
		if typ := binary.NativeEndian.Uint32(p[4:]); typ != missingDirect {
			s.log.Error("autofs asks for what is not known", "type", typ)
			continue
		}
		token, dev := binary.NativeEndian.Uint32(p[8:]), binary.NativeEndian.Uint32(p[12:])
		s.mu.Lock()
		dir := s.dirs[dev]
		s.mu.Unlock()
		s.asked.Go(func() { s.reply(dir, dev, token) })
	}
}

// reply answers a question. The mount is open meanwhile: it may be taken away before the answer.
func (s *Server) reply(dir string, dev, token uint32) {
	if err := onMount(dir, dev, func(c *call) error {
		if err := s.answer(dir); err != nil {
			s.log.Warn("what was to be mounted is not there", "dir", dir, "err", err)
			return c.do(fail, token, ^uint32(unix.EIO)+1)
		}
		return c.do(ready, token, 0)
	}); err != nil {
		s.log.Error("autofs not answered", "dir", dir, "err", err)
	}
}
