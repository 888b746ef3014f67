package volume

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/remora-storage/remora/remote/store"
)

// TestReassert: a node is cut off for longer than its lease. Another one takes one of its volumes, or has died just before. When the node
// is back it has lost that volume, if it was taken. The others go on under its next life, with all that was written and not committed, and
// nobody else can take them; and so they do after a restart.
func TestReassert(t *testing.T) {
	t.Parallel()
	for name, taken := range map[string]bool{"one of them is taken": true, "who fenced the node has died": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				st, sure := newMarked(t)
				cut := &parted{Store: sure}
				at, other := newSimNode(t), newSimNode(t)
				member := func(st store.Store, at *simNode) *Member {
					return NewMember(st, MemberOptions{ID: at.id, Incarnation: NewID(), Boot: "0", Diary: &at.diary, TTL: testTTL})
				}
				m := member(cut, at)
				var all []*Volume
				for _, name := range []string{"a", "b", "c"} {
					h, _, err := Create(t.Context(), st, name, Spec{Size: 8 << 20})
					if err != nil {
						t.Fatal(err)
					}
					v, err := Attach(t.Context(), h.ID, m, at, AttachOptions{Options: Options{Store: cut}})
					if err != nil {
						t.Fatal(err)
					}
					mustWrite(t, v, 0)
					mustSet(t, v, 1, 1)
					all = append(all, v)
				}
				cut.apart(true)
				rival := member(sure, other)
				begin := time.Now()
				if taken {
					w, err := Attach(t.Context(), all[0].id, rival, other, AttachOptions{Options: Options{Store: sure}})
					if err != nil {
						t.Fatal(err)
					}
					if err := w.Detach(t.Context()); err != nil {
						t.Fatal(err)
					}
				} else if err := rival.awaitEnd(t.Context(), *all[0].Head().Owner, func(string) {}); err != nil {
					t.Fatal(err)
				}
				if time.Since(begin) < testTTL {
					t.Fatal("fenced before its lease had ended")
				}
				cut.apart(false)
				time.Sleep(testTTL)
				if err := all[0].Status().Failed; errors.Is(err, ErrFenced) != taken {
					t.Errorf("the first volume: %v", err)
				}
				if taken {
					if err := all[0].Close(); err != nil {
						t.Fatal(err)
					}
					all = all[1:]
				}
				for _, v := range all {
					if err := v.Status().Failed; err != nil {
						t.Errorf("a volume that nobody has taken: %v", err)
						continue
					}
					epoch := v.Head().Epoch
					mustSet(t, v, 2, 2)
					mustFlush(t, v)
					mustBe(t, v, 0, 1, 2)
					mustSet(t, v, 3, 3)
					if epoch != 2 || v.Head().Epoch != epoch || *v.life.named.Load() != m.owner().Incarnation {
						t.Errorf("epochs %d and %d, life %s of %s", epoch, v.Head().Epoch, v.life.named.Load(), m.owner().Incarnation)
					}
				}
				if _, err := Attach(t.Context(), all[0].id, rival, other, AttachOptions{Options: Options{Store: sure}}); !errors.Is(err, ErrOwned) {
					t.Errorf("another node: %v", err)
				}
				for _, v := range all {
					if err := v.Close(); err != nil {
						t.Fatal(err)
					}
				}
				m = member(sure, at)
				for _, v := range all {
					v, err := Attach(t.Context(), v.id, m, at, AttachOptions{Options: Options{Store: sure}})
					if err != nil {
						t.Fatal(err)
					}
					mustBe(t, v, 0, 1, 2, 3)
					if err := v.Detach(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
			})
		})
	}
}

// lateLease is a store that carries out no swap of a node's lease while it is held. It refuses those that are to be refused.
type lateLease struct {
	store.Store
	key  string
	hold atomic.Bool
	may  chan struct{}
}

func (l *lateLease) PutIfMatch(ctx context.Context, key string, p []byte, version string) (store.Object, error) {
	if _, o, err := l.Store.Get(ctx, key, 0, -1); l.hold.Load() && key == l.key && err == nil && o.Version == version {
		select {
		case <-l.may:
		case <-ctx.Done():
			return store.Object{}, context.Cause(ctx)
		}
	}
	return l.Store.PutIfMatch(ctx, key, p, version)
}

// heldJournals makes no journal before it may.
type heldJournals struct {
	Journals
	asked, may chan struct{}
}

func (j *heldJournals) Create(vid, id ID) (JournalFile, error) {
	close(j.asked)
	<-j.may
	return j.Journals.Create(vid, id)
}

// TestTakenWhileALifeBegins: a node that was fenced is about to live again, and its attach of another volume, begun before, swaps the head.
// A rival that has found the node fenced swaps the head after that life has begun. One of the two has the volume, and the other knows it.
func TestTakenWhileALifeBegins(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st, sure := newMarked(t)
		at, other := newSimNode(t), newSimNode(t)
		late := &lateLease{Store: sure, key: memberKey(at.id), may: make(chan struct{})}
		cut := &parted{Store: late}
		member := func(st store.Store, at *simNode) *Member {
			return NewMember(st, MemberOptions{ID: at.id, Incarnation: NewID(), Boot: "0", Diary: &at.diary, TTL: testTTL})
		}
		m, rival := member(cut, at), member(sure, other)
		var ids []ID
		for _, name := range []string{"a", "b"} {
			h, _, err := Create(t.Context(), st, name, Spec{Size: 8 << 20, Class: Local})
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, h.ID)
		}
		first, err := Attach(t.Context(), ids[0], m, at, AttachOptions{Options: Options{Store: cut}})
		if err != nil {
			t.Fatal(err)
		}
		type attached struct {
			v   *Volume
			err error
		}
		begin := func(m *Member, j Journals, st store.Store) <-chan attached {
			c := make(chan attached, 1)
			go func() {
				v, err := Attach(t.Context(), ids[1], m, j, AttachOptions{Options: Options{Store: st}, AcceptLoss: true})
				c <- attached{v, err}
			}()
			return c
		}
		slow := &heldJournals{at, make(chan struct{}), make(chan struct{})}
		ours := begin(m, slow, cut)
		<-slow.asked
		cut.apart(true)
		w, err := Attach(t.Context(), ids[0], rival, other, AttachOptions{Options: Options{Store: sure}, AcceptLoss: true})
		if err != nil {
			t.Fatal(err)
		}
		late.hold.Store(true)
		cut.apart(false)
		time.Sleep(testTTL)
		close(slow.may)
		for {
			h, _, err := readHead(t.Context(), sure, ids[1])
			if err != nil {
				t.Fatal(err)
			}
			if h.Owner != nil {
				break
			}
			time.Sleep(time.Second)
		}
		swaps, swap := make(chan struct{}), make(chan struct{})
		theirs := begin(rival, other, &slowSwap{Store: sure, before: func() { close(swaps); <-swap }})
		<-swaps
		close(late.may)
		time.Sleep(testTTL)
		close(swap)
		b, a := <-theirs, <-ours
		alive := func(x attached) bool {
			if x.err != nil {
				t.Log(x.err)
				return false
			}
			err := errors.Join(x.v.WriteAt(t.Context(), make([]byte, Block), 0), x.v.Flush(t.Context()))
			t.Log(err)
			return err == nil
		}
		if one, two := alive(a), alive(b); one == two {
			t.Errorf("the node has the volume: %v, and so has the other: %v", one, two)
		}
		for _, v := range []*Volume{first, w, a.v, b.v} {
			if v != nil {
				_ = v.Close()
			}
		}
	})
}
