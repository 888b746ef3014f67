package registry_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
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

// TestRangesEnd: a host that begins to answer ranges with the whole blob gives readers that have no other way the bytes that they asked
// for, and nothing to the others, which find out what to do. What lies too far into the blob is refused, with the reason. The log tells
// once that the host serves no ranges, and once that it does again.
func TestRangesEnd(t *testing.T) {
	far := int64(65 << 20)
	body := slices.Concat(data, make([]byte, far), data)
	f := newForgetful(t, body)
	var log bytes.Buffer
	opts := registry.Options{ConfigPath: []string{hostsDir(t, "reg.test", plain(f.host()))}, Log: slog.New(slog.NewTextHandler(&log, nil)),
		Retry: registry.Retry{First: time.Millisecond}}
	b := registry.New(opts).Blob(registry.Repository{Host: "reg.test", Path: repo}, digest.FromBytes(body), int64(len(body)))
	check := func(off int64, skip bool, want error) {
		t.Helper()
		ctx := t.Context()
		if skip {
			ctx = registry.Skipping(ctx)
		}
		got := make([]byte, 1000)
		_, err := b.ReadAt(ctx, got, off)
		if !errors.Is(err, want) || err == nil && !bytes.Equal(got, body[off:off+1000]) {
			t.Errorf("at %d, skipping %v: %v, want %v", off, skip, err, want)
		}
		if want != nil && skip && !strings.Contains(fmt.Sprint(err), "more than 64 MiB into it") {
			t.Errorf("the reason is not told: %v", err)
		}
	}
	for range 2 {
		f.whole.Store(false)
		for _, skip := range []bool{true, false} {
			check(2000, skip, nil)
			check(far+2000, skip, nil)
		}
		f.whole.Store(true)
		for range 3 {
			check(2000, false, registry.ErrRange)
			check(2000, true, nil)
			check(0, true, nil)
			check(far+2000, true, registry.ErrRange)
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
		"200": func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(data) }, // or the client is gone
	} {
		origin.fault = func(w http.ResponseWriter, r *http.Request, _ int64) bool { fail(w, r); return true }
		got := make([]byte, 100)
		if _, err := b.ReadAt(registry.Skipping(t.Context()), got, 500); err != nil || !bytes.Equal(got, data[500:600]) {
			t.Errorf("the registry answers %s: %v", name, err)
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

// TestSkippedAndCut: an answer that breaks where its beginning is skipped, or later, goes on by the next one.
func TestSkippedAndCut(t *testing.T) {
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
		got := make([]byte, 100_000)
		if _, err := b.ReadAt(registry.Skipping(t.Context()), got, 100_000); err != nil || !bytes.Equal(got, data[100_000:200_000]) {
			t.Errorf("%v", err)
		}
	}
}
