package registry

import (
	"errors"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/remora-storage/remora/internal/fair"
)

// TestOutage: a host that answers 5xx twice in a row is left alone for 0.1, 0.2, 0.4 … 10 s, each time until one request has failed, by
// the repository that got these answers and by no other. Any other answer ends that.
func TestOutage(t *testing.T) {
	for _, status := range []int{500, 502, 503, 504} {
		synctest.Test(t, func(t *testing.T) {
			p := newPace(Retry{}.withDefaults())
			ask := func(who fair.User, status int) error {
				release, err := p.enter(t.Context(), "reg.test", who)
				if err != nil {
					return err
				}
				p.answered(who, answer(status, ""), time.Now())
				release()
				return nil
			}
			if err := errors.Join(ask("reg.test/bad", status), ask("reg.test/bad", 404), ask("reg.test/bad", status)); err != nil {
				t.Fatalf("after one in a row: %v", err)
			}
			for _, want := range []time.Duration{100, 200, 400, 800, 1600, 3200, 6400, 10000, 10000} {
				want *= time.Millisecond
				if err := ask("reg.test/bad", status); err != nil {
					t.Fatalf("before it is left alone for %s: %v", want, err)
				}
				p.answered("reg.test/bad", answer(status, ""), time.Now().Add(-time.Second)) // what was under way says nothing new
				var said *StatusError
				err := ask("reg.test/bad", status)
				if !errors.As(err, &said) || said.Status != status || said.RetryAfter != want || !Retryable(err) {
					t.Fatalf("left alone for %s: %v, %+v", want, err, said)
				}
				for range 10 {
					if err := ask("reg.test/good", http.StatusPartialContent); err != nil {
						t.Errorf("another repository: %v", err)
					}
				}
				time.Sleep(want)
			}
			if err := ask("reg.test/bad", status); err != nil {
				t.Fatal(err)
			}
			if err := ask("reg.test/bad", status); !Unasked(err) {
				t.Errorf("left alone: %v", err)
			}
			p.era.Add(1)
			if err := ask("reg.test/bad", 206); err != nil {
				t.Errorf("forgiven: %v", err)
			}
			if err := errors.Join(ask("reg.test/bad", status), ask("reg.test/bad", 206)); err != nil {
				t.Errorf("it has served: %v", err)
			}
		})
	}
}

// TestOutageOfMany: many readers of a host that fails for a minute ask it seldom, and all are served soon after it serves again. Those of
// another repository, for which it never fails, are served as ever.
func TestOutageOfMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const readers, lasts = 20, time.Minute
		retry := Retry{}.withDefaults()
		p := newPace(retry)
		over := time.Now().Add(lasts)
		var asked atomic.Int64
		try := func(who fair.User, status func() int) error {
			return retry.do(t.Context(), func(int) error {
				release, err := p.enter(t.Context(), "reg.test", who)
				if err != nil {
					return err
				}
				defer release()
				began := time.Now()
				time.Sleep(20 * time.Millisecond)
				resp := answer(status(), "")
				p.answered(who, resp, began)
				if resp.StatusCode != http.StatusPartialContent {
					return &StatusError{Host: "reg.test", Status: resp.StatusCode}
				}
				return nil
			})
		}
		var all sync.WaitGroup
		for range readers {
			all.Go(func() {
				for try("reg.test/bad", func() int {
					if time.Now().After(over) {
						return http.StatusPartialContent
					}
					asked.Add(1)
					return http.StatusServiceUnavailable
				}) != nil { // readers do not give up
				}
			})
		}
		all.Go(func() {
			for time.Now().Before(over) {
				began := time.Now()
				err := try("reg.test/good", func() int { return http.StatusPartialContent })
				if took := time.Since(began); err != nil || took > 20*time.Millisecond {
					t.Errorf("another repository was served after %s, %v", took, err)
				}
			}
		})
		all.Wait()
		t.Logf("%d readers made %d requests in %s, and were served %s after it", readers, asked.Load(), lasts, time.Since(over))
		if n, late := asked.Load(), time.Since(over); n > 15*readers || late > 2*retry.Max {
			t.Errorf("%d readers made %d requests in %s, and were served %s after it", readers, n, lasts, late)
		}
	})
}
