package volume

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/remora-storage/remora/remote/store"
	"github.com/remora-storage/remora/remote/store/simstore"
)

const testTTL = 4 * time.Second

// newMarked returns a prepared store without faults, and the same as its nodes see it.
func newMarked(t *testing.T) (*testStore, store.Store) {
	t.Helper()
	st := newTestStore(t)
	if _, err := Init(t.Context(), st, func(context.Context) error { return nil }); err != nil {
		t.Fatal(err)
	}
	id, err := StoreID(t.Context(), st)
	if err != nil {
		t.Fatal(err)
	}
	return st, Marked(st, id)
}

// newLeased returns a Member whose lease has a short time, and a volume that it owns.
func newLeased(t *testing.T, st store.Store, name string) (*Member, *Volume, *Head) {
	t.Helper()
	h, _, err := Create(t.Context(), st, name, Spec{Size: 8 << 20})
	if err != nil {
		t.Fatal(err)
	}
	at := newSimNode(t)
	m := NewMember(st, MemberOptions{ID: at.id, Incarnation: NewID(), Boot: "0", Diary: &at.diary, TTL: testTTL})
	v, err := Attach(t.Context(), h.ID, m, at, AttachOptions{Options: Options{Store: st}})
	if err != nil {
		t.Fatal(err)
	}
	return m, v, h
}

func mustWrite(t *testing.T, v *Volume, off int64) {
	t.Helper()
	if err := v.WriteAt(t.Context(), make([]byte, Block), off); err != nil {
		t.Fatal(err)
	}
	if err := v.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestLeaseAndAbsence: whatever is said of a store that is not there, its volumes wait until it is, and go on: nothing of them
// fails, and their status says why they wait.
func TestLeaseAndAbsence(t *testing.T) {
	t.Parallel()
	for name, f := range map[string]simstore.Faults{
		"nothing is there":               {Missing: true},
		"the store says that it is away": {Outage: store.ErrAway},
		"access is refused":              {Outage: store.ErrDenied},
		"no answer":                      {Outage: context.DeadlineExceeded},
		"nonsense":                       {Outage: ErrCorrupt},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				st, sure := newMarked(t)
				m, v, _ := newLeased(t, sure, "data")
				mustWrite(t, v, 0)
				st.SetFaults(f)
				flushed := make(chan error, 1)
				go func() {
					if errors.Is(f.Outage, ErrCorrupt) { // which ends a put of a segment
						flushed <- nil
						return
					}
					if err := v.WriteAt(t.Context(), make([]byte, Block), Block); err != nil {
						flushed <- err
						return
					}
					flushed <- v.Flush(t.Context())
				}()
				time.Sleep(time.Minute)
				if margin, holds := m.Margin(); margin > 0 || !holds {
					t.Errorf("a lease for %v, %v, without its store", margin, holds)
				}
				if w := m.Waits(); len(w) != 1 || w[0].Reason == nil {
					t.Errorf("it waits for %+v", w)
				}
				if err := v.Status().Failed; err != nil {
					t.Errorf("the volume has failed: %v", err)
				}
				st.SetFaults(simstore.Faults{})
				time.Sleep(testTTL / 2)
				if margin, _ := m.Margin(); margin <= 0 || len(m.Waits()) > 0 {
					t.Errorf("a lease for %v, waiting for %+v, though the store is there again", margin, m.Waits())
				}
				if err := <-flushed; err != nil {
					t.Error(err)
				}
				if err := v.Detach(t.Context()); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestLeaseRetries: tries of a renewal are no further apart than a quarter of the lease, however long the store is away.
func TestLeaseRetries(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st, sure := newMarked(t)
		_, v, _ := newLeased(t, sure, "data")
		st.SetFaults(simstore.Faults{Outage: store.ErrAway})
		time.Sleep(time.Minute)
		before := st.Counts()["put"]
		time.Sleep(time.Minute)
		if n := st.Counts()["put"] - before; n < 59 {
			t.Errorf("%d tries in a minute, want one each %v", n, testTTL/4)
		}
		st.SetFaults(simstore.Faults{})
		if err := v.Detach(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// TestLeaseMadeAgain: an object of a lease that was deleted, damaged or put back to what it was is nobody's word. Its owner
// makes it again.
func TestLeaseMadeAgain(t *testing.T) {
	t.Parallel()
	for name, harm := range map[string]func(ctx context.Context, st store.Store, key string, old []byte) error{
		"deleted": func(ctx context.Context, st store.Store, key string, _ []byte) error { return st.Delete(ctx, key) },
		"damaged": func(ctx context.Context, st store.Store, key string, _ []byte) error {
			_, err := st.Put(ctx, key, []byte("remora-node 1 00000000\n{}\n"))
			return err
		},
		"put back": func(ctx context.Context, st store.Store, key string, old []byte) error {
			_, err := st.Put(ctx, key, old)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				st, sure := newMarked(t)
				m, v, _ := newLeased(t, sure, "data")
				key := memberKey(m.opts.ID)
				old, _, err := st.Get(t.Context(), key, 0, -1)
				if err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute)
				if err := harm(t.Context(), st, key, old); err != nil {
					t.Fatal(err)
				}
				time.Sleep(testTTL / 2)
				s, _, err := readMember(t.Context(), st, m.opts.ID)
				if margin, _ := m.Margin(); err != nil || s.Incarnation != m.opts.Incarnation || margin < testTTL/2 {
					t.Errorf("%+v, %v; certain for %v", s, err, margin)
				}
				mustWrite(t, v, 0)
				if err := v.Detach(t.Context()); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestLeaseOfEarlierLife: a store is put back to when an earlier life of the node had the lease, or had lost it. That is no other node's
// word: the node writes its own again, and its volumes go on.
func TestLeaseOfEarlierLife(t *testing.T) {
	t.Parallel()
	for _, state := range []string{stateLive, stateFenced} {
		t.Run(state, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				st, sure := newMarked(t)
				m, v, h := newLeased(t, sure, "data")
				key := memberKey(m.opts.ID)
				s, _, err := readMember(t.Context(), st, m.opts.ID)
				if err != nil {
					t.Fatal(err)
				}
				s.State = state
				old, err := seal("node", memberVersion, s)
				if err != nil {
					t.Fatal(err)
				}
				if err := v.Detach(t.Context()); err != nil {
					t.Fatal(err)
				}
				at := newSimNode(t)
				at.id, at.diary.e = m.opts.ID, m.opts.Diary.(*simDiary).e
				m = NewMember(sure, MemberOptions{ID: at.id, Incarnation: NewID(), Boot: "0", Diary: &at.diary, TTL: testTTL})
				if v, err = Attach(t.Context(), h.ID, m, at, AttachOptions{Options: Options{Store: st}}); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute)
				if _, err := st.Put(t.Context(), key, old); err != nil {
					t.Fatal(err)
				}
				time.Sleep(testTTL / 2)
				s, _, err = readMember(t.Context(), st, m.opts.ID)
				if margin, _ := m.Margin(); err != nil || s.Incarnation != m.opts.Incarnation || margin < testTTL/2 {
					t.Errorf("%+v, %v; certain for %v", s, err, margin)
				}
				mustWrite(t, v, 0)
				if err := v.Detach(t.Context()); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestLeaseGoneTooLong: where the lease has run out meanwhile, another may have taken the volume, and its word be lost: the owner
// acknowledges nothing.
func TestLeaseGoneTooLong(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st, sure := newMarked(t)
		m, v, _ := newLeased(t, sure, "data")
		mustWrite(t, v, 0)
		st.SetFaults(simstore.Faults{Outage: store.ErrAway})
		time.Sleep(time.Minute)
		st.SetFaults(simstore.Faults{})
		if err := st.Delete(t.Context(), memberKey(m.opts.ID)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if margin, _ := m.Margin(); margin > 0 {
			t.Errorf("it believes in its lease for %v", margin)
		}
		if w := m.Waits(); len(w) != 1 || !strings.Contains(w[0].Reason.Error(), "--abandon-to-journal") {
			t.Errorf("it waits for %+v", w)
		}
		if err := v.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// TestTakerOfGoneLease: whoever wants a volume whose owner's lease is gone waits for as long as a lease may be. An owner that lives
// is heard meanwhile; one that is dead is fenced by what is put in the lease's place.
func TestTakerOfGoneLease(t *testing.T) {
	t.Parallel()
	for name, dead := range map[string]bool{"alive": false, "dead": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				st, sure := newMarked(t)
				m, v, h := newLeased(t, sure, "data")
				mustWrite(t, v, 0)
				if dead {
					v.halt(errors.New("killed"))
					m.Release()
				}
				if err := st.Delete(t.Context(), memberKey(m.opts.ID)); err != nil {
					t.Fatal(err)
				}
				begin := time.Now()
				w, err := openVolume(t, sure, newSimNode(t), h.ID, Options{})
				waited := time.Since(begin)
				if !dead {
					if !errors.Is(err, ErrOwned) || waited >= MostTTL {
						t.Errorf("after %v: %v", waited, err)
					}
					if err := v.Detach(t.Context()); err != nil {
						t.Error(err)
					}
					return
				}
				if err != nil || waited < MostTTL {
					t.Fatalf("after %v: %v", waited, err)
				}
				if s, _, err := readMember(t.Context(), st, m.opts.ID); err != nil || s.State != stateFenced {
					t.Errorf("the old owner's lease: %+v, %v", s, err)
				}
				if err := w.Detach(t.Context()); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestTakerAfterOutage: an outage of the store that is longer than the lease stops every node's renewals. Whoever waits for a
// lease's end meanwhile does not take it for the owner's.
func TestTakerAfterOutage(t *testing.T) {
	t.Parallel()
	for _, from := range []time.Duration{0, testTTL / 2, testTTL} {
		synctest.Test(t, func(t *testing.T) {
			st, sure := newMarked(t)
			_, v, h := newLeased(t, sure, "data")
			mustWrite(t, v, 0)
			st.SetFaults(simstore.Faults{Outage: store.ErrAway})
			time.Sleep(from)
			taken := make(chan error, 1)
			at := newSimNode(t)
			time.AfterFunc(time.Minute, func() { st.SetFaults(simstore.Faults{}) })
			go func() {
				_, err := openVolume(t, sure, at, h.ID, Options{})
				taken <- err
			}()
			if err := <-taken; !errors.Is(err, ErrOwned) {
				t.Errorf("an outage %v before: %v", from, err)
			}
			mustWrite(t, v, 0)
			if err := v.Detach(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestReleaseBesideAcquire: whoever waits for a lease that is uncertain keeps nobody from giving it up.
func TestReleaseBesideAcquire(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st, sure := newMarked(t)
		m, v, _ := newLeased(t, sure, "data")
		if err := m.Acquire(t.Context()); err != nil {
			t.Fatal(err)
		}
		st.SetFaults(simstore.Faults{Outage: store.ErrAway})
		time.Sleep(time.Minute)
		acquired := make(chan error, 1)
		go func() { acquired <- m.Acquire(t.Context()) }()
		synctest.Wait()
		released := make(chan struct{})
		go func() {
			m.Release()
			close(released)
		}()
		synctest.Wait()
		select {
		case <-released:
		default:
			t.Error("a release waits for the store, since somebody acquires")
		}
		st.SetFaults(simstore.Faults{})
		if err := <-acquired; err != nil {
			t.Error(err)
		}
		<-released
		m.Release()
		if err := v.Detach(t.Context()); err != nil {
			t.Error(err)
		}
	})
}
