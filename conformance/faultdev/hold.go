package faultdev

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/remora-storage/remora/blockdev"
)

// Ops are the kinds of requests.
func Ops() []blockdev.Op {
	return append(Reads(), blockdev.OpWrite, blockdev.OpWriteSync, blockdev.OpFlush, blockdev.OpTrim, blockdev.OpZero)
}

// Reads are the kinds that change nothing.
func Reads() []blockdev.Op { return []blockdev.Op{blockdev.OpRead, blockdev.OpMap} }

// A Gate holds requests until it is opened or their contexts end.
type Gate struct {
	open    chan struct{}
	once    sync.Once
	waiting atomic.Int64
}

// Hold returns d behind a gate that is closed, a Writer if d is one.
func Hold(d blockdev.Device) (blockdev.Device, *Gate) {
	g := &Gate{open: make(chan struct{})}
	return Faulty(d, g.hold), g
}

// Open lets all requests pass.
func (g *Gate) Open() { g.once.Do(func() { close(g.open) }) }

// Waiting returns how many requests wait.
func (g *Gate) Waiting() int { return int(g.waiting.Load()) }

func (g *Gate) hold(ctx context.Context, _ blockdev.Op, _, _ int64) error {
	g.waiting.Add(1)
	defer g.waiting.Add(-1)
	select {
	case <-g.open:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
