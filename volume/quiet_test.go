package volume

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/remote/store"
	"github.com/remora-storage/remora/remote/store/simstore"
)

// TestQuiet: a store is away for longer than the lease. While programs may use a volume its writes and flushes wait. Once only its node
// does, they are answered when the journal has them, those that wait, too, whatever the class. The volume is not given up without its
// store, and what was written is there when it is attached again, after a power cut as well.
func TestQuiet(t *testing.T) {
	t.Parallel()
	for _, class := range []Class{Remote, Local, Writethrough} {
		t.Run(string(class), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				st := newTestStore(t)
				quiet := NewQuiet()
				h, at, v := newOpened(t, st, Spec{Size: 8 << 20, Class: class}, Options{Quiet: quiet})
				mustWrite(t, v, 0)
				st.SetFaults(simstore.Faults{Outage: store.ErrAway})
				flush := func() error { return v.WriteZeroes(t.Context(), 4*Block, Block, blockdev.Zeroing{}) }
				if class != Writethrough { // which flushes with each write
					mustSet(t, v, 4, 4)
					flush = func() error { return v.Flush(t.Context()) }
				}
				time.Sleep(time.Minute)
				var answered atomic.Int32
				answers := make(chan error, 3)
				for _, request := range []func() error{
					func() error { return v.WriteAt(t.Context(), bytes.Repeat([]byte{1}, Block), Block) },
					func() error { return v.WriteSync(t.Context(), bytes.Repeat([]byte{2}, Block), 2*Block) },
					flush,
				} {
					go func() {
						err := request()
						answered.Add(1)
						answers <- err
					}()
				}
				var alone atomic.Bool
				end := quiet.Begin(alone.Load)
				time.Sleep(time.Minute)
				if n := answered.Load(); n > 0 {
					t.Fatalf("%d requests were answered without a lease, though programs may wait for them", n)
				}
				alone.Store(true)
				for range cap(answers) {
					if err := <-answers; err != nil {
						t.Error(err)
					}
				}
				mustSet(t, v, 3, 3)
				mustFlush(t, v)
				ctx, stop := context.WithTimeout(t.Context(), time.Minute)
				defer stop()
				if err := v.Detach(ctx); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("given up without its store: %v", err)
				}
				end()
				if _, certain, err := v.lease.Certain(); certain || err != nil {
					t.Errorf("a lease without its store: %v, %v", certain, err)
				}
				at.crash(true)
				if err := v.Close(); err != nil {
					t.Fatal(err)
				}
				st.SetFaults(simstore.Faults{})
				v, err := openVolume(t, st, at, h.ID, Options{})
				if err != nil {
					t.Fatal(err)
				}
				mustBe(t, v, 0, 1, 2, 3)
				if err := v.Detach(t.Context()); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}

// TestQuietEnds: what only this node used is used by others again, and flushes wait for the store as before.
func TestQuietEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newTestStore(t)
		quiet := NewQuiet()
		_, _, v := newOpened(t, st, Spec{Size: 8 << 20}, Options{Quiet: quiet})
		quiet.Begin(func() bool { return true })()
		st.SetFaults(simstore.Faults{Outage: store.ErrAway})
		mustSet(t, v, 0, 1)
		flushed := make(chan error, 1)
		go func() { flushed <- v.Flush(t.Context()) }()
		time.Sleep(time.Second)
		synctest.Wait()
		select {
		case err := <-flushed:
			t.Errorf("flushed without the store: %v", err)
		default:
		}
		st.SetFaults(simstore.Faults{})
		if err := <-flushed; err != nil {
			t.Error(err)
		}
		if err := v.Detach(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

// waitQuiet is a request that waits for what does not come.
func waitQuiet(t *testing.T, q *Quiet) (own bool, err error) {
	return q.Or(t.Context(), func(ctx context.Context) error {
		<-ctx.Done()
		return context.Cause(ctx)
	})
}

// TestQuietLooksTogether: however many requests wait, the machine is looked at ten times a second.
func TestQuietLooksTogether(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := NewQuiet()
		var looks, looking atomic.Int32
		var alone atomic.Bool
		defer q.Begin(func() bool {
			if looking.Add(1) > 1 {
				t.Error("two look")
			}
			defer looking.Add(-1)
			looks.Add(1)
			time.Sleep(10 * time.Millisecond)
			return alone.Load()
		})()
		var requests sync.WaitGroup
		for range 64 {
			requests.Go(func() {
				if own, err := waitQuiet(t, q); !own || err != nil {
					t.Errorf("answered %v: %v", own, err)
				}
			})
			time.Sleep(time.Millisecond) // so that no two began together
		}
		before := looks.Load()
		time.Sleep(10 * time.Second)
		if n := looks.Load() - before; n < 50 || n > 101 {
			t.Errorf("the machine was looked at %d times in ten seconds", n)
		}
		alone.Store(true)
		requests.Wait()
	})
}

// TestQuietLooksAfterRequest: a request is not answered by a look that had begun before it came.
func TestQuietLooksAfterRequest(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := NewQuiet()
		looks := make(chan bool)
		defer q.Begin(func() bool { return <-looks })()
		answers := make(chan string, 2)
		request := func(name string) {
			go func() {
				if own, err := waitQuiet(t, q); !own || err != nil {
					t.Errorf("%s was answered %v: %v", name, own, err)
				}
				answers <- name
			}()
			synctest.Wait()
		}
		request("first")
		request("second") // while it is looked for the first
		looks <- true
		if name := <-answers; name != "first" {
			t.Errorf("the %s request was answered", name)
		}
		looks <- false // a program has come
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(answers) > 0 {
			t.Error("the second request was answered though a program was there since")
		}
		looks <- true
		<-answers
	})
}
