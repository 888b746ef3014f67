package precontent

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/blockdev/holder"
)

// A reader is a process that the kernel holds up.
type reader struct {
	pid    int32
	cancel context.CancelCauseFunc
}

// emit takes the slot of an event that waits. It may be told of an event more than once.
func (g *Group) emit(slot int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.over { // the memory is no longer here
		return
	}
	e, ok, err := holder.ReadEvent(g.mem, slot)
	if err != nil {
		g.log.Error("pre-content event not understood; its reader waits", "err", err)
		return
	}
	if !ok || g.busy[e.Sequence] != nil { // !ok: answered meanwhile
		return
	}
	ctx, cancel := context.WithCancelCause(g.life)
	image := inode{e.Dev, e.Ino}
	if !g.crowd.Room(image, 1) {
		cancel(errCrowd)
	}
	g.busy[e.Sequence] = &reader{pid: e.PID, cancel: cancel}
	g.crowd.Add(image, 1)
	g.started.Go(func() {
		defer cancel(nil)
		g.handle(ctx, &e)
		g.mu.Lock()
		delete(g.busy, e.Sequence)
		g.crowd.Add(image, -1)
		g.mu.Unlock()
	})
}

// errCrowd is what a reader gets whose image has more readers that wait than its share: with more, images that do answer would
// have none.
var errCrowd = fmt.Errorf("too many reads of the image wait: %w", unix.EIO)

// handle fills what an event asks for and answers it. An event that waits when the group stops
// is left to the next process.
func (g *Group) handle(ctx context.Context, e *holder.Event) {
	err := context.Cause(ctx)
	if err == nil {
		err = g.fill(blockdev.WithCaller(ctx, int(e.PID)), e)
	}
	if err != nil && g.life.Err() != nil {
		return
	}
	response := uint32(unix.FAN_ALLOW)
	if err != nil {
		errno := denial(err)
		response = unix.FAN_DENY | uint32(errno)<<24 // FAN_DENY_ERRNO
		switch {
		case errors.Is(err, errReaderGone):
		case errors.Is(err, errCrowd):
			g.crowded.Do(func() { g.log.Error("reads denied", "pid", e.PID, "err", err) })
		default:
			g.log.Error("read denied", "pid", e.PID, "off", e.Off, "len", e.Len, "errno", errno, "err", err)
		}
	}
	if err := g.respond(e.FD, response); err != nil {
		g.log.Error("pre-content event not answered", "err", err)
		return
	}
	holder.MarkAnswered(g.mem, e)
	g.keeper.Answered(e)
}

// fill makes present what an event asks for.
func (g *Group) fill(ctx context.Context, e *holder.Event) error {
	if e.Ino == 0 {
		return g.fillAny(ctx, e)
	}
	g.mu.Lock()
	m, ok := g.images[inode{e.Dev, e.Ino}]
	g.mu.Unlock()
	if !ok {
		return fmt.Errorf("image with inode %d is no longer here: %w", e.Ino, unix.EIO)
	}
	return m.image.Fill(ctx, e.Off, e.Len)
}

// fillAny answers an event whose file is not known, since the holder died before it had looked:
// with the range present in every image it may be, the answer is right.
func (g *Group) fillAny(ctx context.Context, e *holder.Event) error {
	g.mu.Lock()
	var all []marked
	for _, m := range g.images {
		all = append(all, m)
	}
	g.mu.Unlock()
	g.log.Warn("the holder died while it read an event; its range is filled in every image", "images", len(all), "off", e.Off, "len", e.Len)
	for _, m := range all {
		if err := m.image.Fill(ctx, e.Off, e.Len); err != nil {
			return fmt.Errorf("image %s: %w", m.id, err)
		}
	}
	return nil
}

// respond writes an answer. The event may have been answered by an earlier process.
func (g *Group) respond(fd int32, response uint32) error {
	var p [8]byte // struct fanotify_response
	binary.NativeEndian.PutUint32(p[:], uint32(fd))
	binary.NativeEndian.PutUint32(p[4:], response)
	raw, err := g.group.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := raw.Control(func(group uintptr) { _, err = unix.Write(int(group), p[:]) }); cerr != nil {
		return cerr
	}
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// denial is the error that a reader sees; the kernel takes few here.
func denial(err error) unix.Errno {
	if errno := blockdev.Errno(err); errno == unix.ENOSPC {
		return errno
	}
	return unix.EIO
}

const readerCheck = 2 * time.Second

var errReaderGone = errors.New("its reader is no more")

// watchReaders stops filling for processes that are no more: nobody tells us that a reader was
// killed.
func (g *Group) watchReaders() {
	tick := time.NewTicker(readerCheck)
	defer tick.Stop()
	for {
		select {
		case <-g.life.Done():
			return
		case <-tick.C:
		}
		g.mu.Lock()
		for _, r := range g.busy {
			if _, err := os.Stat("/proc/" + strconv.Itoa(int(r.pid))); r.pid > 0 && errors.Is(err, os.ErrNotExist) {
				r.cancel(errReaderGone)
			}
		}
		g.mu.Unlock()
	}
}
