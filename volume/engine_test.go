package volume

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/remora-storage/remora/remote/store"
	"github.com/remora-storage/remora/remote/store/simstore"
)

// newTestVolume returns a volume on a store without faults, and what it is made of.
func newTestVolume(t *testing.T, size int64, class Class) (*Volume, *testStore, func() *Volume) {
	t.Helper()
	st := newTestStore(t)
	h, made, err := Create(t.Context(), st, "v", Spec{Size: size, Class: class})
	if err != nil || !made {
		t.Fatalf("create: %v, %v", made, err)
	}
	at := newSimNode(t)
	attach := func() *Volume {
		v, err := openVolume(t, st, at, h.ID, Options{})
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	return attach(), st, attach
}

// mustCheck walks over everything and fails the test for each problem.
func mustCheck(t *testing.T, st store.Store) *Report {
	t.Helper()
	r, err := Check(t.Context(), st, "v", true, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range r.Problems {
		t.Errorf("check: %s", p)
	}
	return r
}

// churn writes at random and flushes now and then, and keeps a copy.
func churn(t *testing.T, v *Volume, want []byte, r *rand.Rand, writes int) {
	t.Helper()
	ctx := t.Context()
	blocks := len(want) / Block
	for i := range writes {
		n := 1 + r.IntN(8)
		if r.IntN(50) == 0 {
			n = 1 + r.IntN(600)
		}
		lba := r.IntN(blocks - min(n, blocks-1))
		n = min(n, blocks-lba)
		part := want[lba*Block : (lba+n)*Block]
		if r.IntN(10) == 0 {
			clear(part)
			if err := v.Trim(ctx, int64(lba)*Block, int64(n)*Block); err != nil {
				t.Fatal(err)
			}
		} else {
			for k := range n {
				stampBlock(part[k*Block:][:Block], uint64(lba+k), r.Uint64())
			}
			if err := v.WriteAt(ctx, part, int64(lba)*Block); err != nil {
				t.Fatal(err)
			}
		}
		if i%20 == 19 {
			if err := v.Commit(ctx); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func mustHold(t *testing.T, v *Volume, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	for off := 0; off < len(want); off += 1 << 20 {
		n := min(1<<20, len(want)-off)
		if _, err := v.ReadAt(t.Context(), got[off:off+n], int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	for b := 0; b < len(want); b += Block {
		if !bytes.Equal(got[b:b+Block], want[b:b+Block]) {
			t.Fatalf("block %d is wrong", b/Block)
		}
	}
}

// TestCheckpoints: many small commits make many checkpoints; the map stays right, dead segments and packs go, and nothing
// is left that nobody uses.
func TestCheckpoints(t *testing.T) {
	t.Parallel()
	v, st, attach := newTestVolume(t, 32<<20, Remote)
	want := make([]byte, 32<<20)
	r := rand.New(rand.NewPCG(3, 3))
	writes := 3000
	if testing.Short() {
		writes = 800
	}
	for range 4 {
		churn(t, v, want, r, writes)
		mustHold(t, v, want)
		if err := v.Detach(t.Context()); err != nil {
			t.Fatal(err)
		}
		mustCheck(t, st)
		v = attach()
		mustHold(t, v, want)
	}
	if v.Status().Mapped == 0 {
		t.Error("no checkpoint was made")
	}
	if _, err := v.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := v.Detach(t.Context()); err != nil {
		t.Fatal(err)
	}
	rep := mustCheck(t, st)
	if rep.Unused.Objects > 0 {
		t.Errorf("%d objects that nothing uses stay", rep.Unused.Objects)
	}
	u, err := StoreUsage(t.Context(), st, v.ID())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d objects, %d bytes for a volume of %d; %d segments, %d nodes, %d extents", u.Objects, u.Bytes, len(want), rep.Segments,
		rep.Nodes, rep.Extents)
}

// asked counts the requests for objects of volumes.
type asked struct {
	store.Store
	n atomic.Int64
}

func (a *asked) Get(ctx context.Context, key string, off, n int64) ([]byte, store.Object, error) {
	a.n.Add(1)
	return a.Store.Get(ctx, key, off, n)
}

func (a *asked) Put(ctx context.Context, key string, p []byte) (store.Object, error) {
	a.n.Add(1)
	return a.Store.Put(ctx, key, p)
}

func (a *asked) PutIfMatch(ctx context.Context, key string, p []byte, version string) (store.Object, error) {
	a.n.Add(1)
	return a.Store.PutIfMatch(ctx, key, p, version)
}

func (a *asked) Delete(ctx context.Context, key string) error {
	a.n.Add(1)
	return a.Store.Delete(ctx, key)
}

// TestWritesAfterCommitted: who takes a volume up again whose journal holds nothing but what the store has can write at once.
// The journal's superblock names an older record then, and nothing that is yet to be uploaded would ever move it.
func TestWritesAfterCommitted(t *testing.T) {
	t.Parallel()
	for name, rest := range map[string]int64{"all of it": 0, "all but a write": 1} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v, _, attach := newTestVolume(t, 8<<20, Local)
				p := make([]byte, 64<<10)
				for i := range int64(8) {
					if err := v.WriteAt(t.Context(), p, i*int64(len(p))); err != nil {
						t.Fatal(err)
					}
				}
				if err := v.Commit(t.Context()); err != nil {
					t.Fatal(err)
				}
				if err := v.WriteAt(t.Context(), p[:rest*Block], 0); err != nil {
					t.Fatal(err)
				}
				if err := v.Close(); err != nil {
					t.Fatal(err)
				}
				v = attach()
				if used, _ := v.journal.used(); used > rest*2*Block {
					t.Errorf("%d bytes of the journal hold what may be needed", used)
				}
				v.journal.mu.Lock()
				v.journal.lead = 2 * int64(len(p)) // as for a store that is near
				v.journal.mu.Unlock()
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				for i := range int64(8) {
					if err := v.WriteAt(ctx, p, i*int64(len(p))); err != nil {
						t.Fatal(err)
					}
				}
				if err := v.Detach(t.Context()); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}

// TestIdle: a volume that nobody writes to makes no request in ten minutes, whatever was written before, nor does a flush
// with nothing dirty. What the node needs for its lease is asked for elsewhere.
func TestIdle(t *testing.T) {
	t.Parallel()
	for _, class := range []Class{Remote, Local, Writethrough} {
		synctest.Test(t, func(t *testing.T) {
			st := newTestStore(t)
			h, _, err := Create(t.Context(), st, "v", Spec{Size: 8 << 20, Class: class})
			if err != nil {
				t.Fatal(err)
			}
			counted := &asked{Store: st}
			v, err := openVolume(t, st, newSimNode(t), h.ID, Options{Store: counted})
			if err != nil {
				t.Fatal(err)
			}
			churn(t, v, make([]byte, 8<<20), rand.New(rand.NewPCG(6, 6)), 2000)
			time.Sleep(time.Minute) // what is old is stored by itself
			before, leases := counted.n.Load(), st.Counts()["put"]
			for range 100 {
				if err := v.Flush(t.Context()); err != nil {
					t.Fatal(err)
				}
				time.Sleep(6 * time.Second)
			}
			if n := counted.n.Load() - before; n > 0 {
				t.Errorf("%s: %d requests in ten minutes", class, n)
			}
			if n := st.Counts()["put"] - leases; n < 100 {
				t.Errorf("%s: %d renewals of the lease in ten minutes: is the test's clock right?", class, n)
			}
			if err := v.Detach(t.Context()); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// hanging is a store that answers puts of segments late.
type hanging struct {
	store.Store
	late time.Duration
}

func (h *hanging) Put(ctx context.Context, key string, p []byte) (store.Object, error) {
	time.Sleep(h.late)
	return h.Store.Put(ctx, key, p)
}

// TestHangingStore: a volume says what waits for a store that does not answer, and that nothing does once it has.
func TestHangingStore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newTestStore(t)
		_, _, v := newOpened(t, st, Spec{Size: 8 << 20}, Options{Store: &hanging{st, 20 * time.Second}})
		if err := v.WriteAt(t.Context(), make([]byte, Block), 0); err != nil {
			t.Fatal(err)
		}
		flushed := make(chan error, 1)
		go func() { flushed <- v.Flush(t.Context()) }()
		for _, step := range []struct {
			sleep time.Duration
			waits int
		}{{noAnswer / 2, 0}, {noAnswer, 1}, {10 * time.Second, 1}} {
			time.Sleep(step.sleep)
			if w := v.Status().Waits; len(w) != step.waits {
				t.Errorf("%d wait, want %d: %+v", len(w), step.waits, w)
			}
		}
		if err := <-flushed; err != nil {
			t.Fatal(err)
		}
		if w := v.Status().Waits; len(w) > 0 {
			t.Errorf("%+v waits though the store has answered", w)
		}
		if err := v.Detach(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

// TestJournalDamage: damage in the journal that cannot be a torn end is no end: the volume is not opened from an older state.
func TestJournalDamage(t *testing.T) {
	t.Parallel()
	st := newTestStore(t)
	h, at, v := newOpened(t, st, Spec{Size: 8 << 20, Class: Local}, Options{})
	st.SetFaults(simstore.Faults{Outage: errors.New("out")})
	for i := range 20 {
		if err := v.WriteAt(t.Context(), bytes.Repeat([]byte{byte(i)}, Block), int64(i)*Block); err != nil {
			t.Fatal(err)
		}
		if err := v.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	st.SetFaults(simstore.Faults{})
	for _, d := range at.journals {
		d.now[journalRing/Block+9] = bytes.Repeat([]byte{0xff}, Block) // data of the fifth record
	}
	at.damaged = "was written after it was safe"
	if v, err := openVolume(t, st, at, h.ID, Options{}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a flushed record is damaged: %v", err)
		if v != nil {
			v.Close()
		}
	}
}
