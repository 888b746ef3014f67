package volume

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/remora-storage/remora/backoff"
	"github.com/remora-storage/remora/remote/store"
	"github.com/remora-storage/remora/remote/store/simstore"
)

// simDisk is a journal's file whose unsynced writes a power cut loses, tears or keeps.
type simDisk struct {
	vid     ID
	mu      sync.Mutex
	stable  pages
	now     pages
	pending []simWrite
	writes  int
	rnd     *rand.Rand
	delay   time.Duration
	dead    bool // power is off: nothing arrives any more
}

// pages are blocks that are replaced and never changed, so that copies share them.
type pages map[int64][]byte

func (m pages) write(off int64, p []byte) {
	for ; len(p) > 0; off, p = off+Block, p[Block:] {
		m[off/Block] = p[:Block:Block]
	}
}

// tear writes the sectors [from, to) of p.
func (m pages) tear(off int64, p []byte, from, to int) {
	for ; len(p) > 0; off, p, from, to = off+Block, p[Block:], from-Block, to-Block {
		lo, hi := max(from, 0), min(to, Block)
		if lo >= hi {
			continue
		}
		b := make([]byte, Block)
		copy(b, m[off/Block])
		copy(b[lo:hi], p[lo:hi])
		m[off/Block] = b
	}
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
	for n := 0; n < len(p); n += Block {
		if b, ok := d.now[(off+int64(n))/Block]; ok {
			copy(p[n:], b)
		} else {
			clear(p[n:min(n+Block, len(p))])
		}
	}
	return len(p), nil
}

func (d *simDisk) WriteAt(p []byte, off int64) (int, error) {
	if off%Block != 0 || len(p)%Block != 0 || off+int64(len(p)) > simJournal {
		return 0, fmt.Errorf("%d bytes at %d", len(p), off)
	}
	d.sleep()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dead {
		return 0, errors.New("no power")
	}
	d.writes++
	w := simWrite{d.writes, off, append([]byte(nil), p...)}
	d.now.write(off, w.p)
	d.pending = append(d.pending, w)
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
		d.stable.write(d.pending[0].off, d.pending[0].p)
		d.pending = d.pending[1:]
	}
	return nil
}

func (d *simDisk) Size() int64  { return simJournal }
func (d *simDisk) Close() error { return nil }

// cut is a power cut: each unsynced write is kept, lost or torn at a sector.
func (d *simDisk) cut() {
	for _, i := range d.rnd.Perm(len(d.pending)) {
		w := d.pending[i]
		switch d.rnd.IntN(3) {
		case 0:
			d.stable.write(w.off, w.p)
		case 1:
			k := d.rnd.IntN(len(w.p)/512) * 512
			if d.rnd.IntN(2) == 0 {
				d.stable.tear(w.off, w.p, 0, k)
			} else {
				d.stable.tear(w.off, w.p, k, len(w.p))
			}
		}
	}
	d.pending = nil
}

// next is the disk as the next life finds it. What the one before still sends does not arrive.
func (d *simDisk) next(power bool, delay time.Duration) *simDisk {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dead = true
	if power {
		d.cut()
	}
	n := &simDisk{
		vid: d.vid, stable: maps.Clone(d.stable), now: maps.Clone(d.now), pending: d.pending, writes: d.writes,
		rnd: rand.New(rand.NewPCG(d.rnd.Uint64(), 0)), delay: delay,
	}
	if power {
		n.now = maps.Clone(d.stable)
	}
	return n
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
	damaged  string // what replay must say of the journals: the test has damaged them on purpose
}

func (n *simNode) Create(vid, id ID) (JournalFile, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	d := &simDisk{vid: vid, stable: pages{}, now: pages{}, rnd: rand.New(rand.NewPCG(n.rnd.Uint64(), 0)), delay: n.delay}
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
		n.journals[id] = d.next(power, n.delay)
	}
}

const (
	simJournal = minRing + journalRing
	simBlocks  = 512 // that are written to
	simMost    = 40  // blocks of a request
	simSize    = 4 << 20
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
	over    atomic.Bool // another node has the volume: requests must not succeed
}

// parted is a store that a node can be cut off from: requests are not answered, and may have been carried out.
type parted struct {
	store.Store
	off atomic.Bool
}

func (p *parted) apart(off bool) { p.off.Store(off) }

func (p *parted) pass(ctx context.Context) error {
	if !p.off.Load() {
		return nil
	}
	if err := backoff.Sleep(ctx, 700*time.Millisecond); err != nil {
		return err
	}
	return errors.New("no answer")
}

func (p *parted) Get(ctx context.Context, key string, off, n int64) ([]byte, store.Object, error) {
	if err := p.pass(ctx); err != nil {
		return nil, store.Object{}, err
	}
	return p.Store.Get(ctx, key, off, n)
}

func (p *parted) Put(ctx context.Context, key string, b []byte) (store.Object, error) {
	if err := p.pass(ctx); err != nil {
		return store.Object{}, err
	}
	return p.Store.Put(ctx, key, b)
}

func (p *parted) PutIfMatch(ctx context.Context, key string, b []byte, version string) (store.Object, error) {
	if err := p.pass(ctx); err != nil {
		return store.Object{}, err
	}
	return p.Store.PutIfMatch(ctx, key, b, version)
}

func TestSimulation(t *testing.T) {
	t.Parallel()
	seeds, first := 300, uint64(1)
	if v := os.Getenv("REMORA_SOAK"); v != "" {
		seeds = 10000
	}
	if testing.Short() {
		seeds = 30
	}
	if v := os.Getenv("REMORA_SEEDS"); v != "" { // FIRST-LAST
		var last uint64
		if _, err := fmt.Sscanf(v, "%d-%d", &first, &last); err != nil {
			t.Fatal(err)
		}
		seeds = int(last - first + 1)
	}
	if v := os.Getenv("REMORA_SEED"); v != "" {
		first, _ = strconv.ParseUint(v, 10, 64)
		seeds = 1
	}
	// Those that have found something, first.
	all := []uint64{3956, 20034, 20815, 20965}
	for seed := first; seed < first+uint64(seeds); seed++ {
		all = append(all, seed)
	}
	if os.Getenv("REMORA_SEED") != "" {
		all = []uint64{first}
	}
	old := debug.SetGCPercent(400) // many small worlds: collecting them takes longer than they do
	t.Cleanup(func() { debug.SetGCPercent(old) })
	for _, seed := range all {
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
			t.Parallel()
			defer func() {
				if t.Failed() {
					t.Logf("again: REMORA_SEED=%d go test -run Simulation ./volume", seed)
				}
			}()
			synctest.Test(t, func(t *testing.T) { simulate(t, seed) })
		})
	}
}

func simulate(t *testing.T, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 7))
	ctx := context.Background()
	st := simstore.New(rand.New(rand.NewPCG(seed, 8)))
	class := []Class{Remote, Local, Writethrough}[rnd.IntN(3)]
	h, _, err := Create(ctx, st, "sim", Spec{Size: simSize, Class: class})
	if err != nil {
		t.Fatal(err)
	}
	faults := simstore.Faults{Delay: 40 * time.Millisecond, LateMost: 3 * time.Second}
	if rnd.IntN(4) > 0 {
		faults.Lost, faults.Unheard, faults.Late, faults.Doubled = 0.05*rnd.Float64(), 0.05*rnd.Float64(), 0.05*rnd.Float64(), 0.05*rnd.Float64()
	}
	// With little memory nothing is kept of the journal's records, and everything is read from its disk.
	memory := func() int64 { return []int64{4 << 20, 4 << 20, 4 << 20, 110 << 20}[rnd.IntN(4)] }
	nodes := []*simNode{}
	for range 2 {
		nodes = append(nodes, &simNode{id: NewID(), journals: map[ID]*simDisk{}, rnd: rnd, delay: 2 * time.Millisecond})
	}
	m := &model{}
	at := nodes[0]
	for round := range 2 + rnd.IntN(4) {
		st.SetFaults(faults)
		cut := &parted{Store: st}
		node := NewMember(cut, MemberOptions{ID: at.id, Incarnation: NewID(), Boot: strconv.Itoa(at.boot)})
		v, err := Attach(ctx, h.ID, node, at, AttachOptions{Options: Options{Store: cut, Memory: memory()}, AcceptLoss: true})
		if err != nil {
			t.Fatalf("round %d: attach: %v", round, err)
		}
		if rnd.IntN(4) == 0 { // as for a store on the same machine
			v.journal.mu.Lock()
			v.journal.lead = 2*(maxRecord+Block) + 256<<10
			v.journal.mu.Unlock()
			v.opts.Near = true // blocks are read from it one by one
		}
		m.verify(t, v)
		life, kill := context.WithCancel(ctx)
		var writers sync.WaitGroup
		for range 1 + rnd.IntN(4) {
			r := rand.New(rand.NewPCG(rnd.Uint64(), 0))
			writers.Go(func() { m.load(life, t, v, r) })
		}
		time.Sleep(time.Duration(rnd.Int64N(int64(5 * time.Second))))
		if rnd.IntN(3) == 0 {
			f := faults
			f.Outage = errors.New("outage")
			st.SetFaults(f)
			time.Sleep(time.Duration(rnd.Int64N(int64(60 * time.Second))))
			if rnd.IntN(2) == 0 {
				st.SetFaults(faults)
				time.Sleep(time.Duration(rnd.Int64N(int64(5 * time.Second))))
			}
		}
		end := rnd.IntN(5)
		switch end {
		case 4: // the network parts the node from the store until another has taken the volume
			cut.apart(true)
			st.SetFaults(faults)
			time.Sleep(time.Duration(rnd.Int64N(int64(20 * time.Second))))
			other := nodes[0]
			if at == other {
				other = nodes[1]
			}
			rival := NewMember(st, MemberOptions{ID: other.id, Incarnation: NewID(), Boot: strconv.Itoa(other.boot)})
			w, err := Attach(ctx, h.ID, rival, other, AttachOptions{Options: Options{Store: st, Memory: 4 << 20}, AcceptLoss: true})
			if err != nil {
				t.Fatalf("round %d: take over: %v", round, err)
			}
			m.over.Store(true) // nothing that the old owner says counts any more
			m.leave(class)
			m.verify(t, w)
			time.Sleep(time.Duration(rnd.Int64N(int64(20 * time.Second))))
			cut.apart(false)
			time.Sleep(time.Duration(rnd.Int64N(int64(20 * time.Second))))
			kill()
			writers.Wait()
			v.halt(errors.New("killed"))
			w.halt(errors.New("killed"))
			node.Release()
			rival.Release()
			at.crash(false)
			other.crash(false)
			m.settle()
			m.over.Store(false)
			at = other
		case 0: // a clean end
			st.SetFaults(faults)
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
			v.halt(errors.New("killed"))
			node.Release()
			writers.Wait()
			m.settle()
			switch end {
			case 1: // nothing that was acknowledged may be lost
				m.flushed = m.acked
			case 3:
				old := at
				at = nodes[rnd.IntN(2)]
				if at != old {
					m.leave(class)
				}
			}
		}
		checkSim(t, st)
	}
	st.SetFaults(simstore.Faults{})
	node := NewMember(st, MemberOptions{ID: at.id, Incarnation: NewID(), Boot: strconv.Itoa(at.boot)})
	v, err := Attach(ctx, h.ID, node, at, AttachOptions{Options: Options{Store: st, Memory: memory()}, AcceptLoss: true})
	if err != nil {
		t.Fatalf("last attach: %v", err)
	}
	m.verify(t, v)
	st.Wait()
	time.Sleep(time.Minute) // what works in the background has ended
	if _, err := v.Sweep(ctx); err != nil {
		t.Fatalf("sweep: %v", err)
	}
	if err := v.Detach(ctx); err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		n.walk(t)
	}
	if len(at.journals) > 0 {
		t.Errorf("%d journals have stayed after a detach", len(at.journals))
	}
	if r := checkSim(t, st); r.Unused.Objects > 0 {
		t.Errorf("%d objects that nothing uses have stayed after a sweep", r.Unused.Objects)
	}
}

// checkSim walks over everything that the store holds of the volume at this moment, and stops the test at a problem.
func checkSim(t *testing.T, st *simstore.Store) *Report {
	t.Helper()
	r, err := Check(context.Background(), st.Snapshot(), "sim", true, func(string) {})
	if err != nil {
		t.Fatalf("check: %v", err)
	}
	for _, p := range r.Problems {
		t.Errorf("check: %s", p)
	}
	if t.Failed() {
		t.FailNow()
	}
	return r
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
