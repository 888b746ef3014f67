package volume

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/remora-storage/remora/remote/store"
)

// silent is a store that answers no swap of a head any more. The first is carried out, or reaches the store when late is called.
type silent struct {
	store.Store
	arrives bool
	late    func() error // nil before a swap was sent
}

func (u *silent) PutIfMatch(ctx context.Context, key string, p []byte, version string) (store.Object, error) {
	if !strings.HasSuffix(key, "/head") {
		return u.Store.PutIfMatch(ctx, key, p, version)
	}
	if u.late == nil {
		u.late = func() error {
			_, err := u.Store.PutIfMatch(context.Background(), key, p, version)
			return err
		}
		if u.arrives {
			if err := u.late(); err != nil {
				return store.Object{}, err
			}
		}
	}
	<-ctx.Done()
	return store.Object{}, context.Cause(ctx)
}

// TestHalfTaken: an attach is given up when the store's answer to the taking is missing. That says so. What the store did is found out
// then: the volume is the node's, and can be given up, or it is not, and a taking that arrives later changes nothing.
func TestHalfTaken(t *testing.T) {
	t.Parallel()
	for name, arrives := range map[string]bool{"it was taken": true, "the taking comes late": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				st := newTestStore(t)
				h, _, err := Create(t.Context(), st, "v", Spec{Size: 8 << 20, Class: Local})
				if err != nil {
					t.Fatal(err)
				}
				at := newSimNode(t)
				slow := &silent{Store: st, arrives: arrives}
				ctx, stop := context.WithTimeout(t.Context(), time.Second)
				defer stop()
				if _, err := Attach(ctx, h.ID, at.member(st), at, AttachOptions{Options: Options{Store: slow}}); !errors.Is(err, ErrHalfTaken) ||
					!errors.Is(err, context.DeadlineExceeded) {
					t.Fatalf("given up without an answer: %v", err)
				}
				v, err := Attach(t.Context(), h.ID, at.member(st), at, AttachOptions{Options: Options{Store: st}, Settle: true})
				switch {
				case arrives && err != nil, !arrives && !errors.Is(err, ErrNotOwned):
					t.Fatalf("settle: %v", err)
				case arrives:
					if err := v.Detach(t.Context()); err != nil {
						t.Fatal(err)
					}
				default:
					if err := slow.late(); !errors.Is(err, store.ErrChanged) {
						t.Errorf("a taking of before is carried out: %v", err)
					}
				}
				if h, err := Lookup(t.Context(), st, "v"); err != nil || h.Owner != nil || h.Journal != nil {
					t.Errorf("%+v, %v: want nobody's", h, err)
				}
				settle := AttachOptions{Options: Options{Store: st}, Settle: true}
				if _, err := Attach(t.Context(), h.ID, at.member(st), at, settle); !errors.Is(err, ErrNotOwned) {
					t.Errorf("settled once more: %v", err)
				}
				if n := len(at.journals); n > 0 {
					t.Errorf("%d journals are left", n)
				}
			})
		})
	}
}

// TestSettleAnothers: what another node has taken since is its own. It goes on, and what this node's journal has is put aside.
func TestSettleAnothers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newTestStore(t)
		h, at, v := newOpened(t, st, Spec{Size: 8 << 20}, Options{})
		mustSet(t, v, 0, 1)
		if err := v.Close(); err != nil {
			t.Fatal(err)
		}
		w, err := openVolume(t, st, newSimNode(t), h.ID, Options{})
		if err != nil {
			t.Fatal(err)
		}
		mustSet(t, w, 0, 2)
		node := at.member(st)
		settle := AttachOptions{Options: Options{Store: st}, Settle: true}
		if _, err := Attach(t.Context(), h.ID, node, at, settle); !errors.Is(err, ErrNotOwned) {
			t.Errorf("settle: %v", err)
		}
		mustFlush(t, w)
		mustBe(t, w, 2)
		if err := w.Detach(t.Context()); err != nil {
			t.Fatal(err)
		}
		if at.orphans != 1 {
			t.Errorf("%d orphans, want the journal that the other went on without", at.orphans)
		}
	})
}

// TestReleasedLongAgo: the answer to a release is lost, and another node takes the volume, and commits more often than a head names
// writes. Whoever released it still learns that it did, and keeps no journal.
func TestReleasedLongAgo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newTestStore(t)
		h, at, v := newOpened(t, st, Spec{Size: 8 << 20}, Options{})
		mustSet(t, v, 0, 1)
		mustFlush(t, v)
		slow := &silent{Store: st, arrives: true}
		v.opts.Store = slow
		ctx, stop := context.WithTimeout(t.Context(), time.Second)
		defer stop()
		if err := v.Detach(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("detached without an answer: %v", err)
		}
		w, err := openVolume(t, st, newSimNode(t), h.ID, Options{})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 3 * recentNonces {
			mustSet(t, w, 0, byte(i))
			mustFlush(t, w)
		}
		v.opts.Store = st
		if err := v.Detach(t.Context()); err != nil {
			t.Errorf("the release of before: %v", err)
		}
		if n := len(at.journals) + at.orphans; n > 0 {
			t.Errorf("%d journals are left of a volume that was given up", n)
		}
		if err := w.Detach(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

// TestSeenHead: a store is put back after a volume was given up, and nothing in it says so. The node that gave it up refuses it, says
// what is missing, and changes nothing; so it is where another node went on from there. It goes on if that is accepted.
func TestSeenHead(t *testing.T) {
	t.Parallel()
	for name, others := range map[string]int{"as it was put back": 0, "another node has gone on": 2 * recentNonces} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				st := newTestStore(t)
				h, at, v := newOpened(t, st, Spec{Size: 8 << 20}, Options{})
				mustSet(t, v, 0, 1)
				mustFlush(t, v)
				if err := v.Detach(t.Context()); err != nil {
					t.Fatal(err)
				}
				earlier := st.Snapshot()
				v, err := openVolume(t, st, at, h.ID, Options{})
				if err != nil {
					t.Fatal(err)
				}
				mustSet(t, v, 0, 2)
				mustSet(t, v, 0, 3)
				mustFlush(t, v)
				if err := v.Detach(t.Context()); err != nil {
					t.Fatal(err)
				}
				seen := v.Head().Seen()
				st.Wait()
				st.Restore(earlier)
				why := "writes 2 to 3 are missing"
				if others > 0 {
					w, err := openVolume(t, st, newSimNode(t), h.ID, Options{})
					if err != nil {
						t.Fatal(err)
					}
					for range others {
						mustSet(t, w, 0, 4)
						mustFlush(t, w)
					}
					if err := w.Detach(t.Context()); err != nil {
						t.Fatal(err)
					}
					why = "segment 2 is not the one that this node has seen"
				}
				before, err := Lookup(t.Context(), st, "v")
				if err != nil {
					t.Fatal(err)
				}
				opts := AttachOptions{Options: Options{Store: st}, Seen: seen}
				if _, err := Attach(t.Context(), h.ID, at.member(st), at, opts); !errors.Is(err, ErrLoss) || !strings.Contains(err.Error(), why) {
					t.Errorf("a store that was put back: %v, want %q", err, why)
				}
				if now, err := Lookup(t.Context(), st, "v"); err != nil || now.Nonce != before.Nonce {
					t.Errorf("an attach that is refused has changed the head (%v)", err)
				}
				opts.AcceptLoss = true
				if v, err = Attach(t.Context(), h.ID, at.member(st), at, opts); err != nil {
					t.Fatal(err)
				}
				st.Wait()
				time.Sleep(time.Second)
				if all, err := Events(t.Context(), st, h.ID); err != nil || len(all) != 1 || all[0].What != EventLoss ||
					!strings.Contains(all[0].Detail, why) {
					t.Errorf("events: %+v, %v", all, err)
				}
				if err := v.Detach(t.Context()); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}

// TestSeenLater: a head that others have brought on since it was seen is no older one.
func TestSeenLater(t *testing.T) {
	t.Parallel()
	h := testHead()
	seen := h.Seen()
	h.next()
	h.Epoch++
	h.Segment++
	h.Tail = append(h.Tail[1:], SegmentRef{Seq: h.Segment, Epoch: h.Epoch, Random: 7})
	if err := h.follows(seen); err != nil {
		t.Error(err)
	}
	h.Tail = nil
	if err := errors.Join(h.follows(seen), h.follows(Seen{})); err != nil {
		t.Error(err)
	}
}
