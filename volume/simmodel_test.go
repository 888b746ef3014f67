package volume

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A model knows which contents each block may have. A block's content is the number of the write that made it.
type model struct {
	mu      sync.Mutex
	history [simBlocks][]uint64 // every write that was begun, in order of beginning
	ever    [simBlocks][]uint64 // and those before the last crash
	acked   [simBlocks]int      // index in history + 1 of the last that was acknowledged
	flushed [simBlocks]int      // and flushed, as far as this node is concerned
	stored  [simBlocks]int      // and flushed to the store, for every node
	busy    [simBlocks]bool
	next    uint64
	forked  atomic.Bool // another copy of the machine may have the volume: what is read may be gone
	over    atomic.Bool // another node has the volume: requests must not succeed
}

// copy is a model of the same moment, whose writes have numbers from first on.
func (m *model) copy(first uint64) *model {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := &model{acked: m.acked, flushed: m.flushed, stored: m.stored, busy: m.busy, next: max(m.next, first)}
	for i := range m.history {
		c.history[i], c.ever[i] = slices.Clone(m.history[i]), slices.Clone(m.ever[i])
	}
	return c
}

// load writes, flushes, trims and reads until ctx ends.
func (m *model) load(ctx context.Context, t *testing.T, v *Volume, r *rand.Rand) {
	buf := make([]byte, simMost*Block)
	for ctx.Err() == nil {
		switch r.IntN(10) {
		case 0:
			m.flush(ctx, v)
		case 1:
			m.read(ctx, t, v, r, buf)
		default:
			m.write(ctx, t, v, r, buf)
		}
		wait := time.Millisecond // who fails does so at once
		if r.IntN(4) == 0 {
			wait = 50 * time.Millisecond
		}
		time.Sleep(time.Duration(r.Int64N(int64(wait))))
	}
}

// claim finds free blocks in a row: contents of blocks that two write at a time are nobody's business.
func (m *model) claim(r *rand.Rand) (lo, n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for {
		lo = r.IntN(simBlocks)
		most := 1
		if r.IntN(6) == 0 {
			most = simMost
		}
		for n = 0; n < most && lo+n < simBlocks && !m.busy[lo+n]; n++ {
			m.busy[lo+n] = true
		}
		if n > 0 {
			return lo, n
		}
	}
}

func (m *model) release(lo, n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := lo; i < lo+n; i++ {
		m.busy[i] = false
	}
}

func (m *model) write(ctx context.Context, t *testing.T, v *Volume, r *rand.Rand, buf []byte) {
	tooLate := m.over.Load()
	lo, n := m.claim(r)
	defer m.release(lo, n)
	trim := r.IntN(8) == 0
	m.mu.Lock()
	m.next++
	stamp := m.next
	if trim {
		stamp = 0
	}
	for i := lo; i < lo+n && !tooLate; i++ {
		m.history[i] = append(m.history[i], stamp)
		m.ever[i] = append(m.ever[i], stamp)
	}
	m.mu.Unlock()
	var err error
	if trim {
		err = v.Trim(ctx, int64(lo)*Block, int64(n)*Block)
	} else {
		p := buf[:n*Block]
		for i := range n {
			stampBlock(p[i*Block:][:Block], uint64(lo+i), stamp)
		}
		err = v.WriteAt(ctx, p, int64(lo)*Block)
	}
	if err != nil {
		return
	}
	if m.over.Load() {
		// One that was committed before the volume was taken is in it, and may be acknowledged late.
		if tooLate || v.class != Writethrough {
			t.Errorf("a write of %d blocks at %d was acknowledged by who had lost the volume", n, lo)
		}
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := lo; i < lo+n; i++ {
		m.acked[i] = len(m.history[i])
		if v.class == Writethrough {
			m.flushed[i], m.stored[i] = m.acked[i], m.acked[i]
		}
	}
}

const stampLength = 16 // bytes, again and again

func stampBlock(p []byte, block, stamp uint64) {
	binary.LittleEndian.PutUint64(p, block)
	binary.LittleEndian.PutUint64(p[8:], stamp)
	for n := stampLength; n < len(p); n *= 2 {
		copy(p[n:], p[:n])
	}
}

// readStamp returns what a block holds, or an error if it is no whole write.
func readStamp(p []byte, block uint64) (uint64, error) {
	b, stamp := binary.LittleEndian.Uint64(p), binary.LittleEndian.Uint64(p[8:])
	if !bytes.Equal(p[stampLength:], p[:len(p)-stampLength]) {
		return 0, fmt.Errorf("block %d is torn", block)
	}
	if stamp != 0 && b != block {
		return 0, fmt.Errorf("block %d holds block %d", block, b)
	}
	return stamp, nil
}

func (m *model) flush(ctx context.Context, v *Volume) {
	m.mu.Lock()
	acked := m.acked
	m.mu.Unlock()
	if v.Flush(ctx) != nil || m.over.Load() {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range acked {
		m.flushed[i] = max(m.flushed[i], acked[i])
		if v.class != Local {
			m.stored[i] = max(m.stored[i], acked[i])
		}
	}
}

func (m *model) read(ctx context.Context, t *testing.T, v *Volume, r *rand.Rand, buf []byte) {
	lo, n := m.claim(r)
	defer m.release(lo, n)
	p := buf[:n*Block]
	if _, err := v.ReadAt(ctx, p, int64(lo)*Block); err != nil {
		if errors.Is(err, ErrCorrupt) && !m.forked.Load() {
			t.Errorf("read: %v", err)
		}
		return
	}
	for i := range n {
		m.check(t, lo+i, p[i*Block:][:Block], true)
	}
}

// check says whether a block may hold p: the last write that was acknowledged, flushed if a crash came between, or
// one that began later.
func (m *model) check(t *testing.T, block int, p []byte, live bool) {
	stamp, err := readStamp(p, uint64(block))
	if err != nil {
		t.Error(err)
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	least := m.flushed[block]
	if live {
		least = m.acked[block]
	}
	if least == 0 && stamp == 0 {
		return
	}
	for i := max(least-1, 0); i < len(m.history[block]); i++ {
		if m.history[block][i] == stamp {
			return
		}
	}
	t.Errorf("block %d holds write %d; at least number %d of %v was expected", block, stamp, least, m.history[block])
}

// verify reads everything after a crash, and takes what is there as the truth.
func (m *model) verify(t *testing.T, v *Volume) {
	p := make([]byte, simBlocks*Block)
	if _, err := v.ReadAt(context.Background(), p, 0); err != nil {
		t.Fatalf("read: %v", err)
	}
	for i := range simBlocks {
		b := p[i*Block:][:Block]
		m.check(t, i, b, false)
		stamp, _ := readStamp(b, uint64(i))
		m.mu.Lock()
		// What is seen is in this node's journal or in the store. If it is not in the store the node's end brings
		// an older one back, but none before the last that was stored.
		at := len(m.history[i]) - 1
		for at > 0 && m.history[i][at] != stamp {
			at--
		}
		if at >= 0 && (m.history[i][at] == stamp) {
			base := min(max(m.stored[i]-1, 0), at)
			m.history[i] = append([]uint64(nil), m.history[i][base:at+1]...)
			m.stored[i] = min(m.stored[i], 1)
		} else { // zeros, before the first write
			m.history[i], m.stored[i] = nil, 0
		}
		m.acked[i] = len(m.history[i])
		m.flushed[i] = len(m.history[i])
		m.mu.Unlock()
	}
	if t.Failed() {
		t.FailNow()
	}
}

func (m *model) settle() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.busy = [simBlocks]bool{}
}

// all says that everything acknowledged is in the store.
func (m *model) all() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.flushed, m.stored = m.acked, m.acked
}

// leave says that the volume goes on without the node's journal.
func (m *model) leave(class Class) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.flushed = m.stored
	if class == Local { // back to the last commit, which only the head knows
		for i := range m.history {
			m.flushed[i], m.stored[i] = 0, 0
			m.history[i] = append([]uint64{0}, m.ever[i]...)
		}
	}
}
