package volume

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/remora-storage/remora/remote/store"
	"github.com/remora-storage/remora/remote/store/simstore"
)

// sending is a store that remembers which heads it was asked to write.
type sending struct {
	store.Store
	mu   sync.Mutex
	sent map[ID]uint64 // the last write in each, by nonce
}

func newSending(st store.Store) *sending { return &sending{Store: st, sent: map[ID]uint64{}} }

func (s *sending) PutIfMatch(ctx context.Context, key string, p []byte, version string) (store.Object, error) {
	if strings.HasSuffix(key, "/head") {
		if h, err := decodeHead(p); err == nil {
			s.mu.Lock()
			s.sent[h.Nonce] = h.Write
			s.mu.Unlock()
		}
	}
	return s.Store.PutIfMatch(ctx, key, p, version)
}

// wrote reports whether a head, or one of those just before it, is one of these and has writes beyond one.
func (s *sending) wrote(h *Head, beyond uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sent[h.Nonce] > beyond || slices.ContainsFunc(h.Recent, func(n ID) bool { return s.sent[n] > beyond })
}

// parting is a simulation whose node comes to have two histories, or another one than the store.
type parting struct {
	st     *simstore.Store
	id     ID
	class  Class
	faults simstore.Faults
	rnd    *rand.Rand
	m      *model
	at     *simNode
}

func (p *parting) attach(st store.Store, accept bool) (*Volume, error) {
	node := NewMember(st, MemberOptions{ID: p.at.id, Incarnation: NewID(), Boot: strconv.Itoa(p.at.boot), Diary: &p.at.diary})
	return Attach(context.Background(), p.id, node, p.at, AttachOptions{Options: Options{Store: st, Memory: 4 << 20}, AcceptLoss: accept})
}

// loads writes for a while.
func (p *parting) loads(t *testing.T, m *model, v *Volume, most time.Duration) (stop func()) {
	life, kill := context.WithCancel(context.Background())
	var writers sync.WaitGroup
	for range 1 + p.rnd.IntN(3) {
		r := rand.New(rand.NewPCG(p.rnd.Uint64(), 0))
		writers.Go(func() { m.load(life, t, v, r) })
	}
	time.Sleep(time.Duration(p.rnd.Int64N(int64(most))))
	return func() {
		kill()
		writers.Wait()
		m.settle()
	}
}

// dies ends a daemon. Its machine lives.
func (p *parting) dies(v *Volume, at *simNode) {
	at.crash(false)
	v.halt(errors.New("killed"))
	v.owned.member.Release()
}

// again attaches after a death. Only what the journal does not continue may have to be accepted as lost.
func (p *parting) again(t *testing.T) (v *Volume, lost bool) {
	t.Helper()
	v, err := p.attach(p.st, false)
	if errors.Is(err, ErrLoss) {
		lost = true
		v, err = p.attach(p.st, true)
	}
	if err != nil {
		t.Fatalf("attach: %v", err)
	}
	return v, lost
}

// putBack has the store go back to an earlier state. What the journal has since the last commit that the store has then comes
// back as a whole, or the volume is refused.
func (p *parting) putBack(t *testing.T) {
	p.st.Wait()
	p.st.SetFaults(simstore.Faults{Delay: p.faults.Delay})
	v, err := p.attach(p.st, true)
	if err != nil {
		t.Fatalf("put back: attach: %v", err)
	}
	p.m.verify(t, v)
	stop := p.loads(t, p.m, v, time.Second)
	earlier := p.st.Snapshot()
	most := []time.Duration{200 * time.Millisecond, 4 * time.Second}[p.rnd.IntN(2)]
	time.Sleep(time.Duration(p.rnd.Int64N(int64(most))))
	p.dies(v, p.at)
	stop()
	p.m.flushed = p.m.acked
	p.st.Wait()
	p.st.Restore(earlier)
	checkSim(t, p.st)
	v, lost := p.again(t)
	if lost {
		p.m.leave(Local)
	}
	p.m.verify(t, v)
	p.dies(v, p.at)
	p.m.flushed = p.m.acked
	checkSim(t, p.st)
}

// fillDisk has the disk of the journals full for a while. Nothing fails; the daemon may die meanwhile.
func (p *parting) fillDisk(t *testing.T) {
	p.st.SetFaults(p.faults)
	v, err := p.attach(p.st, true)
	if err != nil {
		t.Fatalf("full disk: attach: %v", err)
	}
	p.m.verify(t, v)
	stop := p.loads(t, p.m, v, 2*time.Second)
	p.at.full.Store(true)
	time.Sleep(time.Duration(p.rnd.Int64N(int64(20 * time.Second))))
	if p.rnd.IntN(2) == 0 {
		p.at.full.Store(false)
		time.Sleep(time.Duration(p.rnd.Int64N(int64(3 * time.Second))))
	}
	if err := v.failed(); err != nil {
		t.Errorf("full disk: %v", err)
	}
	p.dies(v, p.at)
	stop()
	p.at.full.Store(false)
	p.m.flushed = p.m.acked
	if v, err = p.attach(p.st, false); err != nil {
		t.Fatalf("full disk: attach: %v", err)
	}
	p.m.verify(t, v)
	p.dies(v, p.at)
	p.m.flushed = p.m.acked
}

// fork has two copies of the machine go on from one moment, and one of them later.
func (p *parting) fork(t *testing.T) {
	p.st.SetFaults(p.faults)
	one, two := newSending(p.st), newSending(p.st)
	v, err := p.attach(one, true)
	if err != nil {
		t.Fatalf("fork: attach: %v", err)
	}
	p.m.verify(t, v)
	p.loads(t, p.m, v, 3*time.Second)()
	base := p.m.copy(0)
	w, twin, err := fork(context.Background(), v, p.at, two)
	if err != nil {
		t.Fatalf("fork: %v", err)
	}
	common := w.written // the last write that both have
	m, n := p.m, base.copy(1<<40)
	m.forked.Store(true)
	n.forked.Store(true)
	first, second := time.Second, 10*time.Second
	var stopV, stopW func()
	if p.rnd.IntN(2) == 0 {
		stopV = p.loads(t, m, v, first)
		stopW = p.loads(t, n, w, second)
	} else {
		stopW = p.loads(t, n, w, first)
		stopV = p.loads(t, m, v, second)
	}
	p.dies(v, p.at)
	p.dies(w, twin)
	stopV()
	stopW()
	p.st.Wait()
	p.st.SetFaults(simstore.Faults{})
	checkSim(t, p.st)
	h, _, err := readHead(context.Background(), p.st, p.id)
	if err != nil {
		t.Fatal(err)
	}
	hasOne, hasTwo := one.wrote(h, common), two.wrote(h, common)
	if hasOne && hasTwo {
		t.Fatal("both copies have committed")
	}
	for _, loser := range []struct {
		*model
		lost bool
	}{{m, hasTwo}, {n, hasOne}} {
		for i := range loser.flushed {
			if loser.lost && p.class != Local && loser.flushed[i] > base.acked[i] {
				t.Errorf("block %d: the copy that lost the volume has acknowledged a flush", i)
			}
		}
	}
	winner, own, stale := m, m, hasTwo
	if hasTwo {
		winner = n
	}
	if p.rnd.IntN(2) == 0 {
		p.at, own, stale = twin, n, hasOne
	}
	p.m = own
	p.m.flushed = p.m.acked
	if stale {
		p.m = winner
		p.m.leave(p.class)
	}
	p.m.forked.Store(false)
	v, lost := p.again(t)
	if lost && !stale {
		t.Fatal("the journal of the copy that has the volume was refused")
	}
	p.m.verify(t, v)
	p.dies(v, p.at)
	p.m.flushed = p.m.acked
}
