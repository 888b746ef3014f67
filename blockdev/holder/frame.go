package holder

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// Version is the protocol's. A holder outlives upgrades of the daemon, so a daemon must go on
// speaking the versions of its predecessors.
const Version = 1

// A frame is one packet of a SOCK_SEQPACKET Unix socket; all numbers are little-endian.
//
//	offset  size  field
//	0       4     "RMHD"
//	4       2     the sender's version
//	6       2     what it says
//	8       4     a number: an event's slot, a process, 0
//	12      4     of an answered event: the low bits of its sequence number
//	16      2     bytes of the name
//	18            the name, then text up to the packet's end
//
// Descriptors travel beside it.
type frame struct {
	version uint16
	op      op
	number  uint32
	which   uint32
	name    string
	text    string
	files   []*os.File
}

type op uint16

// What the daemon says, and what the holder does. Each but opAnswered is answered by opDone or
// opFailed.
const (
	opHello    op = 1 // version and text: who is there; answered by opWelcome
	opPut      op = 2 // name, files: keep these, instead of what had the name
	opDrop     op = 3 // name: close them
	opList     op = 4 // answered by an opItem for everything kept, then opDone
	opWatch    op = 5 // name: read events of the group {group, memory} and send opEvent for each
	opAnswered op = 6 // number, sequence: this event in this slot is answered
	opQuit     op = 7 // close everything and end
)

// What the holder says.
const (
	opWelcome op = 65 // version, number: its process
	opItem    op = 66 // name, files
	opDone    op = 67
	opFailed  op = 68 // text: why
	opEvent   op = 69 // number: an event waits in this slot
)

const (
	frameMagic  = "RMHD"
	frameHeader = 18
	maxName     = 255
	maxFrame    = 4096
	maxFiles    = 4 // of one name
)

var errFrame = errors.New("not a frame of the holder's protocol")

func (f *frame) encode() ([]byte, error) {
	if len(f.name) > maxName || len(f.files) > maxFiles {
		return nil, fmt.Errorf("frame with a name of %d bytes and %d files", len(f.name), len(f.files))
	}
	text := f.text[:min(len(f.text), maxFrame-frameHeader-len(f.name))]
	p := append([]byte(frameMagic), make([]byte, frameHeader-len(frameMagic))...)
	binary.LittleEndian.PutUint16(p[4:], Version)
	binary.LittleEndian.PutUint16(p[6:], uint16(f.op))
	binary.LittleEndian.PutUint32(p[8:], f.number)
	binary.LittleEndian.PutUint32(p[12:], f.which)
	binary.LittleEndian.PutUint16(p[16:], uint16(len(f.name)))
	return append(append(p, f.name...), text...), nil
}

// decodeFrame reads a packet without its files.
func decodeFrame(p []byte) (frame, error) {
	if len(p) < frameHeader || string(p[:4]) != frameMagic {
		return frame{}, errFrame
	}
	f := frame{
		version: binary.LittleEndian.Uint16(p[4:]), op: op(binary.LittleEndian.Uint16(p[6:])), number: binary.LittleEndian.Uint32(p[8:]),
		which: binary.LittleEndian.Uint32(p[12:]),
	}
	n := int(binary.LittleEndian.Uint16(p[16:]))
	if n > maxName || n > len(p)-frameHeader {
		return frame{}, fmt.Errorf("%w: name of %d bytes in a packet of %d", errFrame, n, len(p))
	}
	f.name, f.text = string(p[frameHeader:frameHeader+n]), string(p[frameHeader+n:])
	return f, nil
}

// send writes a frame.
func send(c *net.UnixConn, f frame) error {
	p, err := f.encode()
	if err != nil {
		return err
	}
	var rights []byte
	if len(f.files) > 0 {
		fds := make([]int, len(f.files))
		for i, file := range f.files {
			// Not Fd(), which would make the description blocking for everybody.
			raw, err := file.SyscallConn()
			if err != nil {
				return err
			}
			if err := raw.Control(func(fd uintptr) { fds[i] = int(fd) }); err != nil {
				return err
			}
		}
		rights = unix.UnixRights(fds...)
	}
	_, _, err = c.WriteMsgUnix(p, rights, nil)
	return err
}

// receive reads a frame. Its files belong to the caller.
func receive(c *net.UnixConn, buf []byte) (frame, error) {
	oob := make([]byte, unix.CmsgSpace(maxFiles*4))
	n, oobn, flags, _, err := c.ReadMsgUnix(buf, oob)
	if err != nil {
		return frame{}, err
	}
	files, err := filesOf(oob[:oobn])
	if err == nil && flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		err = fmt.Errorf("%w: longer than any", errFrame)
	}
	var f frame
	if err == nil {
		f, err = decodeFrame(buf[:n])
	}
	if err != nil {
		closeAll(files)
		return frame{}, err
	}
	f.files = files
	return f, nil
}

func filesOf(oob []byte) (files []*os.File, err error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errFrame, err)
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue // not descriptors
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			if high, err := dupHigh(fd); err == nil { // otherwise it stays where it is
				unix.Close(fd)
				fd = high
			}
			files = append(files, os.NewFile(uintptr(fd), "held"))
		}
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close() // only a reference goes
	}
}
