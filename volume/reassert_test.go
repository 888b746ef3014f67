package volume

import (
	"errors"
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
