package volume

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/remora-storage/remora/remote/simstore"
)

// simDisk is a journal's file whose unsynced writes a power cut loses, tears or keeps.
type simDisk struct {
	mu      sync.Mutex
	stable  []byte
	now     []byte
	pending []simWrite
	writes  int
	rnd     *rand.Rand
	delay   time.Duration
	dead    bool // power is off: nothing arrives any more
}

type simWrite struct {
	seq int
	off int64
	p   []byte
}

func (d *simDisk) sleep() {
	if d.delay > 0 {
		d.mu.Lock()
		t := time.Duration(d.rnd.Int64N(int64(d.delay)))
		d.mu.Unlock()
		time.Sleep(t)
	}
}

func (d *simDisk) ReadAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := copy(p, d.now[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (d *simDisk) WriteAt(p []byte, off int64) (int, error) {
	if off%Block != 0 || len(p)%Block != 0 {
		return 0, fmt.Errorf("%d bytes at %d", len(p), off)
	}
	d.sleep()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dead {
		return 0, errors.New("no power")
	}
	copy(d.now[off:], p)
	d.writes++
	d.pending = append(d.pending, simWrite{d.writes, off, append([]byte(nil), p...)})
	return len(p), nil
}

func (d *simDisk) Sync() error {
	d.mu.Lock()
	upTo := d.writes
	d.mu.Unlock()
	d.sleep()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dead {
		return errors.New("no power")
	}
	for len(d.pending) > 0 && d.pending[0].seq <= upTo {
		w := d.pending[0]
		copy(d.stable[w.off:], w.p)
		d.pending = d.pending[1:]
	}
	return nil
}

func (d *simDisk) Size() int64  { return int64(len(d.now)) }
func (d *simDisk) Close() error { return nil }

// cut is a power cut: each unsynced write is kept, lost or torn at a sector.
func (d *simDisk) cut() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dead = true
	for _, i := range d.rnd.Perm(len(d.pending)) {
		w := d.pending[i]
		switch d.rnd.IntN(3) {
		case 0:
			copy(d.stable[w.off:], w.p)
		case 1:
			k := d.rnd.IntN(len(w.p)/512) * 512
			if d.rnd.IntN(2) == 0 {
				copy(d.stable[w.off:], w.p[:k])
			} else {
				copy(d.stable[w.off+int64(k):], w.p[k:])
			}
		}
	}
	d.pending = nil
}

// simNode is a machine: it keeps its journals over crashes.
type simNode struct {
	mu       sync.Mutex
	id       ID
	journals map[ID]*simDisk
	orphans  int
	rnd      *rand.Rand
	delay    time.Duration
	boot     int
}

func (n *simNode) Create(_, id ID) (JournalFile, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	d := &simDisk{stable: make([]byte, simJournal), now: make([]byte, simJournal), rnd: rand.New(rand.NewPCG(n.rnd.Uint64(), 0)), delay: n.delay}
	n.journals[id] = d
	return d, nil
}

func (n *simNode) Open(_, id ID) (JournalFile, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if d := n.journals[id]; d != nil {
		return d, nil
	}
	return nil, ErrNoJournal
}

func (n *simNode) Remove(_, id ID) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.journals, id)
	return nil
}

func (n *simNode) Orphan(_, except ID) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for id := range n.journals {
		if id != except {
			delete(n.journals, id)
			n.orphans++
		}
	}
	return nil
}

// crash ends the machine's daemon; power says that the machine goes with it. Requests of the old life that are on
// their way to a disk do not arrive.
func (n *simNode) crash(power bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if power {
		n.boot++
	}
	for id, d := range n.journals {
		if power {
			d.cut()
		}
		d.mu.Lock()
		d.dead = true
		next := &simDisk{stable: d.stable, now: d.now, pending: d.pending, writes: d.writes, rnd: rand.New(rand.NewPCG(n.rnd.Uint64(), 0)), delay: n.delay}
		if power {
			next.now = append([]byte(nil), d.stable...)
		}
		// What the dead process still holds must not share memory.
		next.now, next.stable = append([]byte(nil), next.now...), append([]byte(nil), next.stable...)
		d.mu.Unlock()
		n.journals[id] = next
	}
}

const (
	simJournal = minJournal
	simBlocks  = 512 // that are written to
	simSize    = 4 << 20
)

// A model knows which contents each block may have. A block's content is the number of the write that made it.
type model struct {
	mu      sync.Mutex
	history [simBlocks][]uint64 // every write that was begun, in order of beginning
	acked   [simBlocks]int      // index in history + 1 of the last that was acknowledged
	flushed [simBlocks]int      // and flushed
	busy    [simBlocks]bool
	next    uint64
}

func TestSimulation(t *testing.T) {
	seeds, first := 150, uint64(1)
	if v := os.Getenv("REMORA_SOAK"); v != "" {
		seeds = 10000
	}
	if testing.Short() {
		seeds = 30
	}
	if v := os.Getenv("REMORA_SEED"); v != "" {
		first, _ = strconv.ParseUint(v, 10, 64)
		seeds = 1
	}
	for seed := first; seed < first+uint64(seeds); seed++ {
		if !t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) { synctest.Test(t, func(t *testing.T) { simulate(t, seed) }) }) {
			t.Fatalf("REMORA_SEED=%d", seed)
		}
	}
}

func simulate(t *testing.T, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 7))
	ctx := context.Background()
	store := simstore.New(rand.New(rand.NewPCG(seed, 8)))
	class := []Class{Remote, Local, Writethrough}[rnd.IntN(3)]
	h, _, err := Create(ctx, store, "sim", Spec{Size: simSize, Class: class})
	if err != nil {
		t.Fatal(err)
	}
	faults := simstore.Faults{Delay: 40 * time.Millisecond, LateMost: 3 * time.Second}
	if rnd.IntN(4) > 0 {
		faults.Lost, faults.Unheard, faults.Late, faults.Doubled = 0.05*rnd.Float64(), 0.05*rnd.Float64(), 0.05*rnd.Float64(), 0.05*rnd.Float64()
	}
	nodes := []*simNode{}
	for range 2 {
		nodes = append(nodes, &simNode{id: NewID(), journals: map[ID]*simDisk{}, rnd: rnd, delay: 2 * time.Millisecond})
	}
	m := &model{}
	at := nodes[0]
	for round := range 2 + rnd.IntN(4) {
		store.SetFaults(faults)
		node := NewNode(store, NodeOptions{ID: at.id, Incarnation: NewID(), Boot: strconv.Itoa(at.boot)})
		v, err := Attach(ctx, h.ID, node, at, AttachOptions{Options: Options{Store: store, Memory: 4 << 20}, AcceptLoss: true})
		if err != nil {
			t.Fatalf("round %d: attach: %v", round, err)
		}
		m.verify(t, v)
		life, kill := context.WithCancel(ctx)
		var writers sync.WaitGroup
		for range 1 + rnd.IntN(4) {
			r := rand.New(rand.NewPCG(rnd.Uint64(), 0))
			writers.Go(func() { m.load(life, t, v, r) })
		}
		time.Sleep(time.Duration(rnd.Int64N(int64(8 * time.Second))))
		if rnd.IntN(3) == 0 {
			f := faults
			f.Outage = errors.New("outage")
			store.SetFaults(f)
			time.Sleep(time.Duration(rnd.Int64N(int64(60 * time.Second))))
			if rnd.IntN(2) == 0 {
				store.SetFaults(faults)
				time.Sleep(time.Duration(rnd.Int64N(int64(8 * time.Second))))
			}
		}
		end := rnd.IntN(4)
		switch end {
		case 0: // a clean end
			store.SetFaults(faults)
			kill()
			writers.Wait()
			m.settle()
			if err := v.Detach(ctx); err != nil {
				t.Fatalf("round %d: detach: %v", round, err)
			}
			m.all()
			if rnd.IntN(2) == 0 {
				at = nodes[rnd.IntN(2)]
			}
		default: // the daemon dies, the power goes, or the node is gone
			at.crash(end != 1)
			kill()
			if err := v.halt(errors.New("killed")); err != nil {
				t.Fatal(err)
			}
			node.Release()
			writers.Wait()
			m.settle()
			switch end {
			case 1: // nothing that was acknowledged may be lost
				m.flushed = m.acked
			case 3:
				old := at
				at = nodes[rnd.IntN(2)]
				if at != old && class == Local {
					m.rollback() // to the last commit, which only the head knows
				}
			}
		}
	}
	store.SetFaults(simstore.Faults{})
	node := NewNode(store, NodeOptions{ID: at.id, Incarnation: NewID(), Boot: strconv.Itoa(at.boot)})
	v, err := Attach(ctx, h.ID, node, at, AttachOptions{Options: Options{Store: store}, AcceptLoss: true})
	if err != nil {
		t.Fatalf("last attach: %v", err)
	}
	m.verify(t, v)
	if err := v.Detach(ctx); err != nil {
		t.Fatal(err)
	}
	store.Wait()
}

// load writes, flushes, trims and reads until ctx ends.
func (m *model) load(ctx context.Context, t *testing.T, v *Volume, r *rand.Rand) {
	for ctx.Err() == nil {
		switch r.IntN(10) {
		case 0:
			m.flush(ctx, v)
		case 1:
			m.read(ctx, t, v, r)
		default:
			m.write(ctx, v, r)
		}
		if r.IntN(4) == 0 {
			time.Sleep(time.Duration(r.Int64N(int64(50 * time.Millisecond))))
		}
	}
}

// claim finds free blocks in a row: contents of blocks that two write at a time are nobody's business.
func (m *model) claim(r *rand.Rand) (lo, n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for {
		lo = r.IntN(simBlocks)
		most := 1
		if r.IntN(4) == 0 {
			most = 80
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

func (m *model) write(ctx context.Context, v *Volume, r *rand.Rand) {
	lo, n := m.claim(r)
	defer m.release(lo, n)
	trim := r.IntN(8) == 0
	m.mu.Lock()
	m.next++
	stamp := m.next
	if trim {
		stamp = 0
	}
	for i := lo; i < lo+n; i++ {
		m.history[i] = append(m.history[i], stamp)
	}
	m.mu.Unlock()
	var err error
	if trim {
		err = v.Trim(ctx, int64(lo)*Block, int64(n)*Block)
	} else {
		p := make([]byte, n*Block)
		for i := range n {
			stampBlock(p[i*Block:][:Block], uint64(lo+i), stamp)
		}
		err = v.WriteAt(ctx, p, int64(lo)*Block)
	}
	if err != nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := lo; i < lo+n; i++ {
		m.acked[i] = len(m.history[i])
		if v.class() == Writethrough {
			m.flushed[i] = m.acked[i]
		}
	}
}

func stampBlock(p []byte, block, stamp uint64) {
	for i := 0; i < len(p); i += 16 {
		binary.LittleEndian.PutUint64(p[i:], block)
		binary.LittleEndian.PutUint64(p[i+8:], stamp)
	}
}

// readStamp returns what a block holds, or an error if it is no whole write.
func readStamp(p []byte, block uint64) (uint64, error) {
	b, stamp := binary.LittleEndian.Uint64(p), binary.LittleEndian.Uint64(p[8:])
	for i := 0; i < len(p); i += 16 {
		if binary.LittleEndian.Uint64(p[i:]) != b || binary.LittleEndian.Uint64(p[i+8:]) != stamp {
			return 0, fmt.Errorf("block %d is torn", block)
		}
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
	if v.Flush(ctx) != nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range acked {
		m.flushed[i] = max(m.flushed[i], acked[i])
	}
}

func (m *model) read(ctx context.Context, t *testing.T, v *Volume, r *rand.Rand) {
	lo, n := m.claim(r)
	defer m.release(lo, n)
	p := make([]byte, n*Block)
	if _, err := v.ReadAt(ctx, p, int64(lo)*Block); err != nil {
		if errors.Is(err, ErrCorrupt) {
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
		m.history[i] = []uint64{stamp}
		// It is in the journal or in the store. Another crash may lose it unless it was flushed, and then an
		// older content comes back; that is not to be seen by who has read this one.
		m.acked[i] = 1
		m.flushed[i] = 1
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

// all says that everything acknowledged is flushed.
func (m *model) all() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.flushed = m.acked
}

// rollback says that nothing is certain but that a block holds something that was written, or zeros.
func (m *model) rollback() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range m.history {
		m.flushed[i] = 0
		m.history[i] = append([]uint64{0}, m.history[i]...)
	}
}
