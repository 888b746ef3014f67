package nbd

import (
	"context"
	"encoding/binary"
	"errors"
	"io"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"github.com/remora-storage/remora/blockdev"
)

// carryOut asks the device, and makes the answer.
func (c *conn) carryOut(r *request) {
	data, err := c.ask(r)
	if err != nil {
		if c.ctx.Err() == nil && !errors.Is(err, blockdev.ErrNotFast) {
			c.log.Error("request failed", "cmd", r.cmd, "off", r.off, "len", r.n, "err", err)
		}
		r.fail(nbdError(err), err.Error())
		return
	}
	if r.cmd == protocol.TRANSMISSION_TYPE_REQUEST_WRITE {
		r.dropBuffer()
	}
	r.succeed(data)
}

func (c *conn) ask(r *request) (data []byte, err error) {
	ctx, w, off, n := c.ctx, c.x.writer, r.off, int64(r.n)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	switch r.cmd {
	case protocol.TRANSMISSION_TYPE_REQUEST_READ:
		return c.readData(r)
	case protocol.TRANSMISSION_TYPE_REQUEST_WRITE:
		if r.flags&cfFUA != 0 {
			return nil, blockdev.WriteSync(ctx, w, r.buf.p, off)
		}
		return nil, w.WriteAt(ctx, r.buf.p, off)
	case cmdFlush:
		if w == nil {
			return nil, nil
		}
		return nil, w.Flush(ctx)
	case cmdTrim:
		err = blockdev.Trim(ctx, w, off, n)
	case cmdZeroes:
		err = blockdev.WriteZeroes(ctx, w, off, n, blockdev.Zeroing{NoHole: r.flags&cfNoHole != 0, Fast: r.flags&cfFastZero != 0})
	case cmdCache:
		return nil, c.cache(ctx, r)
	case cmdStatus:
		return c.status(ctx, r)
	}
	if err == nil && r.flags&cfFUA != 0 {
		err = w.Flush(ctx)
	}
	return nil, err
}

func (c *conn) readData(r *request) ([]byte, error) {
	if !c.answers.take(r.n) {
		return nil, context.Canceled
	}
	r.lend(c.answers, r.n)
	k, err := c.x.Device.ReadAt(c.ctx, r.buf.p, r.off)
	if err == nil && k < r.n {
		err = io.ErrUnexpectedEOF
	}
	return r.buf.p, err
}

const cacheStep = 1 << 20 // bytes that are read at once for CACHE

// cache reads what a client will want, and forgets it: the device has it near then.
func (c *conn) cache(ctx context.Context, r *request) error {
	if c.x.mapped != nil {
		return nil
	}
	step := min(r.n, cacheStep)
	if !c.answers.take(step) {
		return context.Canceled
	}
	b := takeBuffer(step)
	defer func() {
		b.give()
		c.answers.give(step)
	}()
	for off, end := r.off, r.off+int64(r.n); off < end; {
		k, err := c.x.Device.ReadAt(ctx, b.p[:min(int64(step), end-off)], off)
		if err != nil {
			return err
		}
		if k == 0 {
			return io.ErrUnexpectedEOF
		}
		off += int64(k)
	}
	return nil
}

// status describes a range, or its beginning.
func (c *conn) status(ctx context.Context, r *request) ([]byte, error) {
	room := maxExtents
	if r.flags&cfReqOne != 0 {
		room = 1
	}
	p := binary.BigEndian.AppendUint32(nil, metaContextID)
	var length uint64 // of the range that is not in p yet
	var state uint32
	left := uint64(r.n)
	put := func() {
		p = binary.BigEndian.AppendUint32(p, uint32(length))
		p = binary.BigEndian.AppendUint32(p, state)
		room--
	}
	err := blockdev.Extents(ctx, c.x.Device, r.off, int64(r.n), func(e blockdev.Extent) bool {
		s := uint32(0)
		if e.Hole {
			s |= stateHole
		}
		if e.Zero {
			s |= stateZero
		}
		if length > 0 && s != state {
			if put(); room == 0 {
				length = 0
				return false
			}
			length = 0
		}
		n := min(uint64(e.Len), left)
		length, state, left = length+n, s, left-n
		return left > 0
	})
	if err != nil {
		return nil, err
	}
	if length > 0 {
		put()
	}
	return p, nil
}
