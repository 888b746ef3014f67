package node_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/remora-storage/remora/volume"
	"github.com/remora-storage/remora/volume/node"
)

// hands are node.Hands whose every action ends when the test says so, or when it is stopped.
type hands struct {
	mu     sync.Mutex
	did    []string
	opens  chan error // what Open returns; it waits for that
	leaves chan error
	in     bool          // the device is in use
	kernel chan struct{} // closed when the kernel gives the device up; nil for immediately
}

func newHands() *hands {
	return &hands{opens: make(chan error), leaves: make(chan error)}
}

func (h *hands) note(what string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.did = append(h.did, what)
}

func (h *hands) wait(ctx context.Context, stop <-chan struct{}, end chan error, stopped error) error {
	select {
	case err := <-end:
		return err
	case <-stop:
		return stopped
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (h *hands) Open(ctx context.Context, _ node.How, stop <-chan struct{}, tell func(string)) error {
	h.note("open")
	tell("waits for a lease")
	return h.wait(ctx, stop, h.opens, errors.New("stopped"))
}

func (h *hands) Export(context.Context) error { h.note("export"); return nil }

func (h *hands) Withdraw(context.Context) error {
	h.note("withdraw")
	if h.kernel != nil {
		<-h.kernel
		h.note("withdrawn")
	}
	if h.in {
		return errors.New("in use")
	}
	return nil
}

func (h *hands) Leave(ctx context.Context, stop <-chan struct{}) error {
	h.note("leave")
	return h.wait(ctx, stop, h.leaves, node.ErrKept)
}

func (h *hands) Abandon(context.Context) error { h.note("abandon"); return nil }

// verb is a call under way.
type verb struct {
	stop context.CancelFunc
	err  chan error
}

func begin(call func(context.Context) error) verb {
	ctx, stop := context.WithCancel(context.Background())
	v := verb{stop, make(chan error, 1)}
	go func() { v.err <- call(ctx) }()
	synctest.Wait()
	return v
}

func (v verb) ends(t *testing.T, want error) {
	t.Helper()
	synctest.Wait()
	select {
	case err := <-v.err:
		if !errors.Is(err, want) {
			t.Errorf("it ended with %v, want %v", err, want)
		}
	default:
		t.Fatal("it waits still")
	}
}

func (v verb) waits(t *testing.T) {
	t.Helper()
	synctest.Wait()
	select {
	case err := <-v.err:
		t.Fatalf("it ended: %v", err)
	default:
	}
}

type bed struct {
	*hands
	all *node.Attachments
	id  volume.ID
}

func (b bed) attach(ctx context.Context) error {
	return b.all.Attach(ctx, b.id, b.hands, node.How{}, func(what string) { b.note(what) })
}

func (b bed) detach(ctx context.Context) error {
	_, err := b.all.Detach(ctx, b.id)
	return err
}

func (b bed) abandon(ctx context.Context) error {
	_, err := b.all.Abandon(ctx, b.id)
	return err
}

func (b bed) is(t *testing.T, state string) {
	t.Helper()
	synctest.Wait()
	if st := b.all.StateOf(b.id); st.Name != state {
		t.Errorf("it is %+v, want %s; done: %q", st, state, b.did)
	}
}

// TestCallers is about those who wait: a verb is nobody's, and each is told what became of his wish.
func TestCallers(t *testing.T) {
	t.Parallel()
	within := func(name string, f func(t *testing.T, b bed)) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := bed{newHands(), node.New(), volume.NewID()}
				f(t, b)
				b.all.Close()
			})
		})
	}
	open := func(t *testing.T, b bed) {
		t.Helper()
		v := begin(b.attach)
		b.opens <- nil
		v.ends(t, nil)
		b.is(t, "attached")
	}
	within("the first caller of two leaves", func(t *testing.T, b bed) {
		first, second := begin(b.attach), begin(b.attach)
		first.stop()
		first.ends(t, context.Canceled)
		second.waits(t)
		b.opens <- nil
		second.ends(t, nil)
	})
	within("the only caller leaves", func(t *testing.T, b bed) {
		v := begin(b.attach)
		b.is(t, "opening")
		v.stop()
		v.ends(t, context.Canceled)
		b.is(t, "absent")
	})
	within("a detach is interrupted", func(t *testing.T, b bed) {
		open(t, b)
		v := begin(b.detach)
		v.stop()
		v.ends(t, context.Canceled)
		b.is(t, "leaving")
		again := begin(b.detach)
		b.leaves <- nil
		again.ends(t, nil)
		b.is(t, "absent")
	})
	within("an attach while it is given up", func(t *testing.T, b bed) {
		open(t, b)
		away, back := begin(b.detach), begin(b.attach)
		away.ends(t, node.ErrAttachedAgain)
		back.ends(t, nil)
		b.is(t, "attached")
	})
	within("a detach while it is taken", func(t *testing.T, b bed) {
		v, away := begin(b.attach), begin(b.detach)
		v.ends(t, node.ErrDetachedMeanwhile)
		away.ends(t, nil)
		b.is(t, "absent")
	})
	within("what cannot wait for the store", func(t *testing.T, b bed) {
		open(t, b)
		patient, hasty := begin(b.detach), begin(b.abandon)
		patient.ends(t, nil)
		hasty.ends(t, nil)
		b.is(t, "absent")
	})
	within("in use", func(t *testing.T, b bed) {
		open(t, b)
		b.in = true
		if err := b.detach(t.Context()); err == nil || err.Error() != "in use" {
			t.Errorf("detached: %v", err)
		}
		b.is(t, "attached")
	})
	within("the store refuses", func(t *testing.T, b bed) {
		open(t, b)
		refused := errors.New("refused")
		v := begin(b.detach)
		b.leaves <- refused
		v.ends(t, refused)
		b.is(t, "stuck")
		v = begin(b.detach) // tries again
		b.leaves <- nil
		v.ends(t, nil)
	})
	within("the end of remorad", func(t *testing.T, b bed) {
		open(t, b)
		v := begin(b.detach)
		b.all.Close()
		if err := <-v.err; err == nil {
			t.Error("given up, though nobody knows")
		}
		if err := b.attach(t.Context()); err == nil {
			t.Error("attached after the end")
		}
	})
	within("the end of remorad while the kernel gives a device up", func(t *testing.T, b bed) {
		open(t, b)
		b.kernel = make(chan struct{})
		v := begin(b.detach)
		closed := make(chan struct{})
		go func() {
			b.all.Close()
			close(closed)
		}()
		if err := <-v.err; err == nil {
			t.Error("given up, though nobody knows")
		}
		synctest.Wait()
		select {
		case <-closed:
			t.Error("closed, and something is under way still")
		default:
		}
		close(b.kernel)
		<-closed
		if !slices.Contains(b.did, "withdrawn") {
			t.Errorf("done before the end: %q", b.did)
		}
	})
	within("the end of remorad while the kernel never gives a device up", func(t *testing.T, b bed) {
		open(t, b)
		b.kernel = make(chan struct{})
		v := begin(b.detach)
		synctest.Wait()
		began := time.Now()
		b.all.Close()
		if took := time.Since(began); took < time.Second || took > time.Minute {
			t.Errorf("closed after %v", took)
		}
		if err := <-v.err; err == nil {
			t.Error("given up, though nobody knows")
		}
		close(b.kernel)
	})
	within("half taken", func(t *testing.T, b bed) {
		v := begin(b.attach)
		b.opens <- volume.ErrHalfTaken
		v.ends(t, volume.ErrHalfTaken)
		b.is(t, "leaving")
		v = begin(b.attach) // first it must be known whose it is
		v.waits(t)
		b.leaves <- nil
		b.opens <- nil
		v.ends(t, nil)
	})
	within("an earlier process left it without a device", func(t *testing.T, b bed) {
		b.all.Adopt(b.id, b.hands, false)
		b.is(t, "leaving")
		time.Sleep(time.Hour) // it waits for the store
		b.leaves <- nil
		b.is(t, "absent")
	})
	within("an earlier process left it attached", func(t *testing.T, b bed) {
		b.all.Adopt(b.id, b.hands, true)
		b.is(t, "attached")
	})
}
