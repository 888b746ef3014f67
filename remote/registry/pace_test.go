package registry

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
)

func answer(status int, after string) *http.Response {
	resp := &http.Response{StatusCode: status, Header: http.Header{}}
	if after != "" {
		resp.Header.Set("Retry-After", after)
	}
	return resp
}

// TestPace: many who ask a host that serves ten requests a second, and refuses the others without a word when to come again, are all
// served at about its rate, and few requests are refused.
func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const asked, rate = 400, 10
		p := newPace(Retry{}.withDefaults())
		began := time.Now()
		var mu sync.Mutex // guards the fields below
		tokens, filled := rate, began
		served, refused := 0, 0
		var all sync.WaitGroup
		for range asked {
			all.Go(func() {
				for range 15 {
					release, err := p.enter(t.Context(), "reg.test", "reg.test")
					if err != nil {
						t.Error(err)
						return
					}
					sent := time.Now()
					time.Sleep(50 * time.Millisecond)
					mu.Lock()
					if n := int(time.Since(filled) * rate / time.Second); n > 0 {
						tokens, filled = min(tokens+n, rate), filled.Add(time.Duration(n)*time.Second/rate)
					}
					status := http.StatusTooManyRequests
					if tokens > 0 {
						tokens--
						served++
						status = http.StatusPartialContent
					} else {
						refused++
					}
					mu.Unlock()
					p.answered("reg.test", answer(status, ""), sent)
					release()
					if status == http.StatusPartialContent {
						return
					}
				}
				t.Error("refused 15 times")
			})
		}
		all.Wait()
		took := time.Since(began)
		t.Logf("%d served and %d refused within %s", served, refused, took)
		if served != asked || refused > asked || took > 4*asked/rate*time.Second {
			t.Errorf("%d served and %d refused within %s", served, refused, took)
		}
	})
}

// TestRetryAfter: a host is not asked before the time that it has named, whoever asks and whatever was under way; what answers
// otherwise is asked at any time.
func TestRetryAfter(t *testing.T) {
	for _, c := range []struct {
		name   string
		status int
		after  string
		rests  time.Duration
	}{
		{"429 with a time", 429, "7", 7 * time.Second},
		{"429 without", 429, "", firstPause},
		{"503 with a time", 503, "3", 3 * time.Second},
		{"503 without, twice", 503, "", 100 * time.Millisecond},
		{"501 without", 501, "", 0},
		{"429 until a date", 429, "Sat, 01 Jan 2000 00:00:07 GMT", 7 * time.Second}, // time begins with the year 2000 here
		{"429 until a date that is over", 429, "Fri, 31 Dec 1999 23:59:59 GMT", firstPause},
		{"503 until a date", 503, "Sat, 01 Jan 2000 00:10:00 GMT", 10 * time.Minute},
		{"429 for a minute", 429, "60", maxRest},
		{"429 for ten minutes", 429, "600", 10 * time.Minute},
		{"429 for a day", 429, "86400", maxAfter},
		{"503 for ten minutes", 503, "600", 10 * time.Minute},
		{"429 with nonsense", 429, "soon", firstPause},
		{"served", 206, "9", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPace(Retry{}.withDefaults())
				began := time.Now()
				enter := func() {
					release, err := p.enter(t.Context(), "reg.test", "reg.test")
					for ; errors.As(err, new(*restError)); release, err = p.enter(t.Context(), "reg.test", "reg.test") {
						var status *StatusError
						if !errors.As(err, &status) || !Retryable(err) || status.RetryAfter != c.rests-time.Since(began) {
							t.Fatalf("got %v", err)
						}
						time.Sleep(min(status.RetryAfter, time.Minute)) // what cannot wait is told so
					}
					if err != nil {
						t.Fatal(err)
					}
					release()
				}
				enter()
				p.answered("reg.test", answer(c.status, c.after), began)
				p.answered("reg.test", answer(c.status, c.after), began.Add(-time.Second)) // an answer to an earlier request says nothing new
				enter()
				if got := time.Since(began); got != c.rests {
					t.Errorf("asked again after %s, want %s", got, c.rests)
				}
				ctx, cancel := context.WithCancel(t.Context())
				cancel()
				p.until = time.Now().Add(time.Hour)
				if _, err := p.enter(ctx, "reg.test", "reg.test"); err == nil {
					t.Error("who leaves is let in")
				}
			})
		})
	}
}

// TestTooManyRequests: a blob is read though the host refuses most requests for a while.
func TestTooManyRequests(t *testing.T) {
	body := bytes.Repeat([]byte("remora"), 1000)
	d := digest.FromBytes(body)
	var asked atomic.Int64
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if asked.Add(1)%2 == 1 {
			w.Header().Set("Retry-After", "0")
			w.WriteHeader(http.StatusTooManyRequests)
			return
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
	}))
	t.Cleanup(srv.Close)
	host := srv.Listener.Addr().String()
	var logins Logins
	if _, err := logins.Set(host, Login{PlainHTTP: true}); err != nil {
		t.Fatal(err)
	}
	reg := New(Options{Logins: &logins, Retry: Retry{Attempts: 1, First: time.Millisecond}})
	got := make([]byte, len(body))
	if _, err := reg.Blob(Repository{host, "app"}, d, int64(len(body))).ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, body) {
		t.Errorf("%v", err)
	}
}
