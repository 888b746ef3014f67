package volume

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/remote/store"
	"github.com/remora-storage/remora/remote/store/simstore"
)

// slowSwap is a store in which something happens just before the first swap of a head.
type slowSwap struct {
	store.Store
	once   sync.Once
	before func()
}

func (s *slowSwap) PutIfMatch(ctx context.Context, key string, p []byte, version string) (store.Object, error) {
	if strings.HasSuffix(key, "/head") {
		s.once.Do(s.before)
	}
	return s.Store.PutIfMatch(ctx, key, p, version)
}

func mustSet(t *testing.T, v *Volume, block int, b byte) {
	t.Helper()
	if err := v.WriteAt(t.Context(), bytes.Repeat([]byte{b}, Block), int64(block)*Block); err != nil {
		t.Fatal(err)
	}
}

func mustFlush(t *testing.T, v *Volume) {
	t.Helper()
	if err := v.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// mustBe fails unless blocks have the bytes of want, one each.
func mustBe(t *testing.T, v *Volume, want ...byte) {
	t.Helper()
	for i, b := range want {
		p := make([]byte, Block)
		if _, err := v.ReadAt(t.Context(), p, int64(i)*Block); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(p, bytes.Repeat([]byte{b}, Block)) {
			t.Errorf("block %d has %d, want %d", i, p[0], b)
		}
	}
}

// TestStaleJournal: a node dies with writes that nobody flushed, and opens its journal when it comes back. Before its swap of the
// head another node takes the volume, flushes a block and lets it go. What the journal has of that block is not replayed.
func TestStaleJournal(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newTestStore(t)
		h, _, err := Create(t.Context(), st, "v", Spec{Size: 8 << 20})
		if err != nil {
			t.Fatal(err)
		}
		a, b := newSimNode(t), newSimNode(t)
		v, err := openVolume(t, st, a, h.ID, Options{})
		if err != nil {
			t.Fatal(err)
		}
		mustSet(t, v, 0, 1)
		mustFlush(t, v)
		st.SetFaults(simstore.Faults{Outage: errors.New("out")})
		for range 3 { // more than the other node will: its numbers go on from what was flushed
			mustSet(t, v, 0, 2)
		}
		if err := v.Close(); err != nil {
			t.Fatal(err)
		}
		st.SetFaults(simstore.Faults{})

		fenced, swap, left := make(chan struct{}), make(chan struct{}), make(chan struct{})
		go func() {
			defer close(left)
			w, err := openVolume(t, st, b, h.ID, Options{Store: &slowSwap{Store: st, before: func() { close(fenced); <-swap }}})
			if err != nil {
				t.Error(err)
				return
			}
			p := bytes.Repeat([]byte{3}, Block)
			if err := errors.Join(w.WriteAt(t.Context(), p, 0), w.Flush(t.Context()), w.Detach(t.Context())); err != nil {
				t.Error(err)
			}
		}()
		<-fenced
		v, err = openVolume(t, st, a, h.ID, Options{Store: &slowSwap{Store: st, before: func() { close(swap); <-left }}})
		if err != nil {
			t.Fatal(err)
		}
		mustBe(t, v, 3)
		if err := v.Detach(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

// fork returns a second engine that goes on from what v knows at this moment, and the machine it is on: a copy with the memory and the
// disk of v's.
func fork(ctx context.Context, v *Volume, at *simNode, st store.Store) (*Volume, *simNode, error) {
	m := v.owned.member
	m.mu.Lock()
	opts := m.opts
	v.mu.RLock()
	head, version, on := v.head.clone(), v.version, at.copy()
	v.mu.RUnlock()
	opts.Diary = &on.diary
	twin := NewMember(st, opts)
	twin.owns, twin.version, twin.state, twin.until, twin.due = 1, m.version, m.state, m.until, m.due
	m.mu.Unlock()
	run, stop := context.WithCancel(context.Background())
	twin.stop = stop
	twin.mu.Lock()
	twin.beginLookingLocked()
	twin.mu.Unlock()
	twin.started.Go(func() { twin.watch(run) })
	twin.started.Go(func() { twin.renew(run) })
	disk, err := on.Open(v.id, v.owned.id)
	if err != nil {
		return nil, nil, err
	}
	with := v.opts
	with.Store = st
	t := taking{id: v.id, member: twin, journals: on, opts: AttachOptions{Options: with}, disk: disk, journal: v.owned.id, existing: true}
	if t.past, err = readPast(disk, t.journal, head, false); err != nil {
		return nil, nil, err
	}
	w, err := t.open(ctx, head, version)
	return w, on, err
}

// TestForked: of two copies of a machine that go on from the same memory the one that commits second has lost the volume: its flush
// fails and says why, and the head stays as the other has left it.
func TestForked(t *testing.T) {
	t.Parallel()
	for _, class := range []Class{Remote, Writethrough} {
		synctest.Test(t, func(t *testing.T) {
			st := newTestStore(t)
			_, at, v := newOpened(t, st, Spec{Size: 8 << 20, Class: class}, Options{})
			for range 3 {
				mustSet(t, v, 0, 1)
				mustFlush(t, v)
			}
			w, _, err := fork(t.Context(), v, at, st)
			if err != nil {
				t.Fatal(err)
			}
			mustBe(t, w, 1)
			for range 2 {
				mustSet(t, v, 1, 2)
				mustFlush(t, v)
			}
			err = w.WriteAt(t.Context(), bytes.Repeat([]byte{3}, Block), Block)
			if err == nil {
				err = w.Flush(t.Context())
			}
			if !errors.Is(err, ErrFenced) || !strings.Contains(err.Error(), "its last segment is 5, not 3") {
				t.Errorf("%s: the copy's flush: %v", class, err)
			}
			if err := w.Close(); err != nil {
				t.Error(err)
			}
			mustSet(t, v, 2, 4)
			mustFlush(t, v)
			mustBe(t, v, 1, 2, 4)
			if err := v.Detach(t.Context()); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// leaseless is a store that can be told not to answer for leases.
type leaseless struct {
	store.Store
	off atomic.Bool
}

func (l *leaseless) PutIfMatch(ctx context.Context, key string, p []byte, version string) (store.Object, error) {
	if l.off.Load() && strings.HasPrefix(key, "node/") {
		return store.Object{}, errors.New("no answer")
	}
	return l.Store.PutIfMatch(ctx, key, p, version)
}

// TestCommitLeased: a node whose lease is uncertain commits nothing until it is certain again.
func TestCommitLeased(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := &leaseless{Store: newTestStore(t)}
		h, _, v := newOpened(t, st, Spec{Size: 8 << 20, Class: Local}, Options{})
		committed := func() uint64 {
			h, _, err := readHead(t.Context(), st, h.ID)
			if err != nil {
				t.Fatal(err)
			}
			return h.Write
		}
		st.off.Store(true)
		time.Sleep(8 * time.Second)
		mustSet(t, v, 0, 1)
		if margin, held := v.owned.member.Margin(); margin <= 0 || margin > defaultMaxAge || !held {
			t.Fatalf("the lease is certain for %v: it is to end before what is old is committed", margin)
		}
		time.Sleep(time.Minute)
		if n := committed(); n != 0 {
			t.Errorf("write %d was committed without a lease", n)
		}
		if w := v.Status().Waits; len(w) != 1 || w[0].What != "hold the lease" {
			t.Errorf("%+v waits, want the lease", w)
		}
		st.off.Store(false)
		time.Sleep(time.Minute)
		if n := committed(); n != 1 {
			t.Errorf("write %d is committed after the lease was renewed, want 1", n)
		}
		if w := v.Status().Waits; len(w) > 0 {
			t.Errorf("%+v waits though the lease is certain", w)
		}
		if err := v.Detach(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

// accept attaches a volume though it may have lost writes.
func accept(t *testing.T, st store.Store, at *simNode, id ID) (*Volume, error) {
	node := at.member(st)
	return Attach(t.Context(), id, node, at, AttachOptions{Options: Options{Store: st}, AcceptLoss: true})
}

// mustHaveAccepted fails unless the store says that a loss was accepted, and what of.
func mustHaveAccepted(t *testing.T, st store.Store, id ID, detail string) {
	t.Helper()
	synctest.Wait()
	events, err := Events(t.Context(), st, id)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range events {
		if e.What == EventLoss && strings.Contains(e.Detail, detail) {
			return
		}
	}
	t.Errorf("the events are %+v, want a loss with %q", events, detail)
}

// TestForkedJournal: the journal of the copy that lost the volume is not replayed over what the other has committed, though the head
// names a journal of its id. It is kept when the loss is accepted. That of the other is replayed.
func TestForkedJournal(t *testing.T) {
	t.Parallel()
	for _, class := range []Class{Remote, Local} {
		synctest.Test(t, func(t *testing.T) {
			st := newTestStore(t)
			h, at, v := newOpened(t, st, Spec{Size: 8 << 20, Class: class}, Options{})
			mustSet(t, v, 0, 1)
			if err := v.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			w, twin, err := fork(t.Context(), v, at, st)
			if err != nil {
				t.Fatal(err)
			}
			mustSet(t, v, 1, 2)
			if err := v.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			for range 3 { // more than the other has
				mustSet(t, w, 1, 3)
			}
			mustSet(t, v, 2, 4)
			if err := errors.Join(v.Close(), w.Close()); err != nil {
				t.Fatal(err)
			}
			if v, err = openVolume(t, st, at, h.ID, Options{}); err != nil {
				t.Fatal(err)
			}
			mustBe(t, v, 1, 2, 4)
			if err := v.Close(); err != nil {
				t.Fatal(err)
			}
			if _, err = openVolume(t, st, twin, h.ID, Options{}); !errors.Is(err, ErrLoss) || !strings.Contains(err.Error(), "another history") {
				t.Fatalf("%s: the journal of the copy that lost the volume: %v", class, err)
			}
			if w, err = accept(t, st, twin, h.ID); err != nil {
				t.Fatal(err)
			}
			mustBe(t, w, 1, 2)
			if twin.orphans != 1 {
				t.Errorf("%s: %d journals were kept", class, twin.orphans)
			}
			mustHaveAccepted(t, st, h.ID, "another history")
			if err := w.Detach(t.Context()); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestPutBack: the store goes back to an earlier state. An owner that lives is fenced, and not by another node. Its journal brings back
// what the store has lost if it has all of it; else the volume is refused, with what is missing.
func TestPutBack(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		more int // writes of 512 KiB that are flushed: the journal gives their room away when it is a quarter of it
		want string
	}{"the journal has all": {1, ""}, "it has not": {20, "writes 3 to "}} {
		synctest.Test(t, func(t *testing.T) {
			st := newTestStore(t)
			h, at, v := newOpened(t, st, Spec{Size: 8 << 20}, Options{})
			for range 2 {
				mustSet(t, v, 0, 1)
				mustFlush(t, v)
			}
			earlier := st.Snapshot()
			mustSet(t, v, 1, 2)
			for range tc.more {
				if err := v.WriteAt(t.Context(), bytes.Repeat([]byte{2}, 512<<10), 1<<20); err != nil {
					t.Fatal(err)
				}
				mustFlush(t, v)
			}
			st.Restore(earlier)
			mustSet(t, v, 2, 3)
			if err := v.Flush(t.Context()); !errors.Is(err, ErrFenced) || !strings.Contains(err.Error(), "it went back") {
				t.Errorf("%s: a flush: %v", name, err)
			}
			if err := v.Close(); err != nil {
				t.Fatal(err)
			}
			v, err := openVolume(t, st, at, h.ID, Options{})
			if tc.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				mustBe(t, v, 1, 2, 3)
			} else {
				if !errors.Is(err, ErrLoss) || !strings.Contains(err.Error(), tc.want) {
					t.Fatalf("%s: %v, want %q", name, err, tc.want)
				}
				if v, err = accept(t, st, at, h.ID); err != nil {
					t.Fatal(err)
				}
				mustBe(t, v, 1, 0, 0)
				mustHaveAccepted(t, st, h.ID, tc.want)
			}
			if err := v.Detach(t.Context()); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestPutBackBehindJournal: the store goes back to an earlier state, and the journal has let go of all that the store had: it holds nothing
// that shows a hole. The volume is refused all the same.
func TestPutBackBehindJournal(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newTestStore(t)
		h, at, v := newOpened(t, st, Spec{Size: 8 << 20}, Options{})
		mustSet(t, v, 0, 1)
		mustFlush(t, v)
		earlier := st.Snapshot()
		emptied := func() bool {
			v.journal.mu.Lock()
			defer v.journal.mu.Unlock()
			return v.journal.super.start.seq > 1 && v.journal.super.start == v.journal.end
		}
		for tries := 0; !emptied(); tries++ {
			if tries == 100 {
				t.Fatal("the journal lets nothing go")
			}
			if err := v.WriteAt(t.Context(), bytes.Repeat([]byte{2}, 512<<10), 1<<20); err != nil {
				t.Fatal(err)
			}
			mustFlush(t, v)
			time.Sleep(time.Second)
		}
		if err := v.Close(); err != nil {
			t.Fatal(err)
		}
		st.Restore(earlier)
		if _, err := openVolume(t, st, at, h.ID, Options{}); !errors.Is(err, ErrLoss) || !strings.Contains(err.Error(), "were let go") {
			t.Fatalf("a store that lacks what the journal let go: %v", err)
		}
		v, err := accept(t, st, at, h.ID)
		if err != nil {
			t.Fatal(err)
		}
		mustBe(t, v, 1)
		if err := v.Detach(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

// TestJournalDiskFull: a write waits while the journal's disk is full, and status says so; it ends when there is room. Reads and what
// makes room in the ring go on. A failed sync is final.
func TestJournalDiskFull(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newTestStore(t)
		h, at, v := newOpened(t, st, Spec{Size: 8 << 20}, Options{})
		large := bytes.Repeat([]byte{1}, 2<<20) // of which the ring gives the room away
		if err := v.WriteAt(t.Context(), large, 0); err != nil {
			t.Fatal(err)
		}
		at.full.Store(true)
		mustFlush(t, v)
		wrote := make(chan error, 2)
		for i := range int64(2) {
			go func() {
				wrote <- errors.Join(v.WriteAt(t.Context(), bytes.Repeat([]byte{byte(2 + i)}, Block), i*Block), v.Flush(t.Context()))
			}()
		}
		time.Sleep(10 * time.Minute)
		if len(wrote) > 0 {
			t.Errorf("a write has ended: %v", <-wrote)
		}
		if w := v.Status().Waits; len(w) != 1 || w[0].What != waitForRoom || !errors.Is(w[0].Reason, unix.ENOSPC) {
			t.Errorf("%+v waits, want the journal", w)
		}
		mustBe(t, v, 1, 1)
		at.full.Store(false)
		if err := errors.Join(<-wrote, <-wrote); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		if w := v.Status().Waits; len(w) > 0 {
			t.Errorf("%+v waits though there is room", w)
		}
		if used, _ := v.journal.used(); used > 0 || v.journal.super.start.pos < int64(len(large)) {
			t.Errorf("%d bytes of the journal are in use, which begins at %d", used, v.journal.super.start.pos)
		}
		mustBe(t, v, 2, 3, 1)
		if err := v.Close(); err != nil {
			t.Fatal(err)
		}
		v, err := openVolume(t, st, at, h.ID, Options{})
		if err != nil {
			t.Fatal(err)
		}
		mustBe(t, v, 2, 3, 1)
		fail := func(err error) {
			for _, d := range at.journals {
				d.mu.Lock()
				d.failing = err
				d.mu.Unlock()
			}
		}
		fail(unix.ENOSPC)
		mustSet(t, v, 0, 4)
		if err := v.journal.sync(); !errors.Is(err, ErrJournal) {
			t.Errorf("a sync that fails: %v", err)
		}
		fail(nil)
		if err := v.WriteAt(t.Context(), large, 0); !errors.Is(err, ErrJournal) {
			t.Errorf("a write after a failed sync: %v", err)
		}
		if err := v.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// unheard is a store whose answer to a swap of a head is lost if somebody stops waiting for it.
type unheard struct {
	store.Store
	stop atomic.Pointer[context.CancelFunc]
}

func (u *unheard) PutIfMatch(ctx context.Context, key string, p []byte, version string) (store.Object, error) {
	o, err := u.Store.PutIfMatch(ctx, key, p, version)
	if stop := u.stop.Swap(nil); stop != nil && strings.HasSuffix(key, "/head") {
		(*stop)()
		return store.Object{}, context.Canceled
	}
	return o, err
}

// TestReleasedUnheard: a volume that was given up while its caller stopped waiting was given up, not taken by another node, and its
// journal goes.
func TestReleasedUnheard(t *testing.T) {
	t.Parallel()
	st := &unheard{Store: newTestStore(t)}
	h, at, v := newOpened(t, st, Spec{Size: 8 << 20}, Options{})
	mustSet(t, v, 0, 1)
	mustFlush(t, v)
	ctx, stop := context.WithCancel(t.Context())
	st.stop.Store(&stop)
	if err := v.Detach(ctx); err == nil {
		t.Fatal("its end is known, though nobody heard of it")
	}
	if err := v.Detach(t.Context()); err != nil {
		t.Errorf("the second time: %v", err)
	}
	if n := len(at.journals); n > 0 {
		t.Errorf("%d journals stay", n)
	}
	v, err := openVolume(t, st, at, h.ID, Options{})
	if err != nil {
		t.Fatal(err)
	}
	mustBe(t, v, 1)
	if err := v.Detach(t.Context()); err != nil {
		t.Error(err)
	}
}
