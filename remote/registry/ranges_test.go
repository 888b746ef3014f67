package registry_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/remote/registry"
)

// forgetful is a registry that honours ranges until it is told not to, as behind a cache that knows none.
type forgetful struct {
	*server
	whole atomic.Bool
	body  []byte
}

func newForgetful(t *testing.T, body []byte) *forgetful {
	f := &forgetful{body: body}
	f.server = newServer(t, func(w http.ResponseWriter, r *http.Request, _ int64) bool {
		if f.whole.Load() {
			r.Header.Del("Range")
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(f.body))
		return true
	})
	return f
}

// TestRangesEnd: a host that begins to answer ranges with the whole blob gives readers of ranges nothing but that reason, wherever in the
// blob they are, and those of the whole all of it. The log tells once that the host serves no ranges, and once that it does again.
func TestRangesEnd(t *testing.T) {
	f := newForgetful(t, data)
	var log bytes.Buffer
	opts := registry.Options{ConfigPath: []string{hostsDir(t, "reg.test", plain(f.host()))}, Log: slog.New(slog.NewTextHandler(&log, nil)),
		Retry: registry.Retry{First: time.Millisecond}}
	b := registry.New(opts).Blob(registry.Repository{Host: "reg.test", Path: repo}, digest.FromBytes(data), int64(len(data)))
	check := func(off int64, want error) {
		t.Helper()
		got := make([]byte, 1000)
		if _, err := b.ReadAt(t.Context(), got, off); !errors.Is(err, want) || err == nil && !bytes.Equal(got, data[off:off+1000]) {
			t.Errorf("at %d: %v, want %v", off, err, want)
		}
	}
	whole := func() {
		t.Helper()
		r, err := b.Whole(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, data) || r.Close() != nil {
			t.Errorf("whole: %d bytes of %d, %v", len(got), len(data), err)
		}
	}
	for range 2 {
		f.whole.Store(false)
		check(2000, nil)
		check(100_000, nil)
		f.whole.Store(true)
		for range 3 {
			check(2000, registry.ErrRange)
			check(100_000, registry.ErrRange)
			whole()
		}
	}
	ends, begins := strings.Count(log.String(), "serves no ranges"), strings.Count(log.String(), "serves ranges again")
	if ends != 2 || begins != 1 {
		t.Errorf("%d and %d times:\n%s", ends, begins, log.String())
	}
}

// TestRangesOfAnotherHost: a mirror that serves no ranges is asked for one once, while another host serves them, and is all the same
// read from where no other host serves anything.
func TestRangesOfAnotherHost(t *testing.T) {
	mirror, origin := newForgetful(t, data), newForgetful(t, data)
	mirror.whole.Store(true)
	b := blobOn(t, "reg.test", mirrored(mirror.host(), origin.host()), registry.Options{Retry: registry.Retry{Attempts: 2}})
	for i := range 20 {
		wantRange(t, b, i*100, 100)
	}
	if m, o := mirror.requests.Load(), origin.requests.Load(); m != 1 || o != 20 {
		t.Errorf("the mirror was asked %d times, the registry %d times", m, o)
	}
	if r, err := b.Whole(t.Context()); err != nil || r.Close() != nil || mirror.requests.Load() != 2 {
		t.Errorf("%v; for the whole blob the mirror was asked %d times", err, mirror.requests.Load()-1)
	}
	for name, fail := range map[string]http.HandlerFunc{
		"401": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) },
		"404": http.NotFound,
		"500": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) },
	} {
		origin.fault = func(w http.ResponseWriter, r *http.Request, _ int64) bool { fail(w, r); return true }
		r, err := b.Whole(t.Context())
		if err != nil {
			t.Errorf("the registry answers %s: %v", name, err)
			continue
		}
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, data) || r.Close() != nil {
			t.Errorf("the registry answers %s: %d bytes, %v", name, len(got), err)
		}
	}
}

// TestLacksRanges: a registry is known to serve no ranges while the last answers of all its hosts show that.
func TestLacksRanges(t *testing.T) {
	mirror, origin := newForgetful(t, data), newForgetful(t, data)
	for name, c := range map[string]struct{ toml string }{
		"one host": {plain(origin.host())}, "a mirror before it": {mirrored(mirror.host(), origin.host())},
	} {
		t.Run(name, func(t *testing.T) {
			r := registry.New(registry.Options{ConfigPath: []string{hostsDir(t, "reg.test", c.toml)}, Retry: registry.Retry{Attempts: 1}})
			b := r.Blob(registry.Repository{Host: "reg.test", Path: repo}, digest.FromBytes(data), int64(len(data)))
			want := func(lacks, serves bool) {
				t.Helper()
				_, _ = b.ReadAt(t.Context(), make([]byte, 100), 100) // fails where no range comes
				if l, s := r.LacksRanges(t.Context(), "reg.test"), r.ServesRanges(t.Context(), "reg.test"); l != lacks || s != serves {
					t.Errorf("lacks them: %v, serves them: %v; want %v, %v", l, s, lacks, serves)
				}
			}
			if r.LacksRanges(t.Context(), "reg.test") {
				t.Error("before it was asked")
			}
			two := name != "one host"
			mirror.whole.Store(two)
			origin.whole.Store(false)
			want(false, !two) // ServesRanges is of the first
			origin.whole.Store(true)
			want(true, false)
			want(true, false)
			origin.whole.Store(false)
			want(false, !two)
		})
	}
}

// TestWholeAndCut: an answer that breaks goes on by the next one, whose beginning is skipped.
func TestWholeAndCut(t *testing.T) {
	s := newServer(t, func(w http.ResponseWriter, _ *http.Request, n int64) bool {
		if n%3 == 0 {
			_, _ = w.Write(data) // or the client is gone
			return true
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		_, _ = w.Write(data[:[]int{0, 50_000, 150_000}[n%3]])
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	})
	b := blobOn(t, "reg.test", plain(s.host()), registry.Options{})
	for range 4 {
		r, err := b.Whole(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, data) || r.Close() != nil {
			t.Errorf("%d bytes, %v", len(got), err)
		}
	}
}
