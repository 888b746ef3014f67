package volume

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/remora-storage/remora/internal/backoff"
	"github.com/remora-storage/remora/remote/store"
	"github.com/remora-storage/remora/remote/store/simstore"
)

const (
	simJournal = minRing + journalRing
	simBlocks  = 512 // that are written to
	simMost    = 40  // blocks of a request
	simSize    = 4 << 20
)

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
	if _, err := Init(ctx, st, func(context.Context) error { return nil }); err != nil {
		t.Fatal(err)
	}
	mark, err := StoreID(ctx, st)
	if err != nil {
		t.Fatal(err)
	}
	spells := rand.New(rand.NewPCG(seed, 9))
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
		cut := &parted{Store: Marked(st, mark)}
		if spells.IntN(3) == 0 {
			giveUp(t, cut, h.ID, at, m, time.Duration(spells.Int64N(int64(800*time.Millisecond))))
		}
		node := NewMember(cut, MemberOptions{ID: at.id, Incarnation: NewID(), Boot: strconv.Itoa(at.boot), Diary: &at.diary})
		v, err := Attach(ctx, h.ID, node, at, AttachOptions{Options: Options{Store: cut, Memory: memory()}, AcceptLoss: true})
		if err != nil {
			t.Fatalf("round %d: attach: %v", round, err)
		}
		if err := v.Head().follows(at.seen); err != nil { // which no store that was not put back is to be taken for
			t.Fatalf("round %d: attach: %v", round, err)
		}
		at.seen = v.Head().Seen()
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
			if f.Missing = spells.IntN(2) == 0; !f.Missing {
				f.Outage = errors.New("outage")
			}
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
			rival := NewMember(st, MemberOptions{ID: other.id, Incarnation: NewID(), Boot: strconv.Itoa(other.boot), Diary: &other.diary})
			if spells.IntN(2) == 0 { // or has fenced the node, and died: the volume goes on under the node's next life
				if err := rival.awaitEnd(ctx, *v.Head().Owner, func(string) {}); err != nil {
					t.Fatalf("round %d: fence: %v", round, err)
				}
				cut.apart(false)
				time.Sleep(time.Duration(rnd.Int64N(int64(20 * time.Second))))
				if err := v.failed(); err != nil {
					t.Fatalf("round %d: nobody has taken the volume: %v", round, err)
				}
				at.crash(false)
				kill()
				v.halt(errors.New("killed"))
				node.Release()
				writers.Wait()
				m.settle()
				m.flushed = m.acked
				break
			}
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
			at.seen = v.Head().Seen()
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
	p := &parting{st: st, id: h.ID, class: class, faults: faults, rnd: rand.New(rand.NewPCG(seed, 10)), m: m, at: at}
	for range 1 + p.rnd.IntN(2) {
		[]func(*testing.T){p.putBack, p.fork, p.fillDisk}[p.rnd.IntN(3)](t)
	}
	m, nodes[slices.Index(nodes, at)], at = p.m, p.at, p.at
	st.SetFaults(simstore.Faults{})
	node := NewMember(st, MemberOptions{ID: at.id, Incarnation: NewID(), Boot: strconv.Itoa(at.boot), Diary: &at.diary})
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

// giveUp attaches, and leaves it after a while. What the store then says of the volume is found out, as the next verb does: if it is the
// node's, that gives it up with all that its journal has.
func giveUp(t *testing.T, st store.Store, id ID, at *simNode, m *model, after time.Duration) {
	t.Helper()
	ctx, leave := context.WithTimeout(context.Background(), after)
	defer leave()
	attach := func(ctx context.Context, settle bool) (*Volume, error) {
		node := NewMember(st, MemberOptions{ID: at.id, Incarnation: NewID(), Boot: strconv.Itoa(at.boot), Diary: &at.diary})
		opts := AttachOptions{Options: Options{Store: st, Memory: 4 << 20}, Settle: settle}
		return Attach(ctx, id, node, at, opts)
	}
	v, err := attach(ctx, false)
	if errors.Is(err, ErrHalfTaken) {
		v, err = attach(context.Background(), true)
		if err != nil && !errors.Is(err, ErrNotOwned) && !errors.Is(err, ErrLoss) {
			t.Fatalf("settle: %v", err)
		}
	}
	if err != nil {
		return
	}
	m.verify(t, v)
	if err := v.Detach(context.Background()); err != nil {
		t.Fatalf("settle: detach: %v", err)
	}
	at.seen = v.Head().Seen()
	m.all()
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
