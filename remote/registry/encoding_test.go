package registry_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/remora-storage/remora/remote/registry"
)

// TestEncodings: no byte that a proxy has encoded on the way is taken for one of the blob: a range in an encoding is refused, and a
// whole answer in gzip is unpacked, or else refused.
func TestEncodings(t *testing.T) {
	for _, c := range []struct {
		name       string
		says       []string // Content-Encoding
		pack       func([]byte) []byte
		ranges     bool // are answered by 206
		part       error
		all, whole bool // a range of all, and what is asked for without a range, are served
	}{
		{"identity, by ranges", []string{"identity"}, asIs, true, nil, true, true},
		{"gzip of a range", []string{"gzip"}, gzipped, true, registry.ErrRange, false, true},
		{"a range that is said to be gzip", []string{"gzip"}, asIs, true, registry.ErrRange, false, false},
		{"gzip of all", []string{"gzip"}, gzipped, false, registry.ErrRange, true, true},
		{"gzip of all, in capitals", []string{"GZIP"}, gzipped, false, registry.ErrRange, true, true},
		{"gzip beside identity", []string{"identity, gzip"}, gzipped, false, registry.ErrRange, true, true},
		{"gzip that is none", []string{"gzip"}, asIs, false, registry.ErrRange, false, false},
		{"half of it", []string{"gzip"}, func(p []byte) []byte { return gzipped(p)[:len(p)/2] }, false, registry.ErrRange, false, false},
		{"gzip of less", []string{"gzip"}, func(p []byte) []byte { return gzipped(p[:100]) }, false, registry.ErrRange, false, false},
		{"gzip twice", []string{"gzip", "gzip"}, func(p []byte) []byte { return gzipped(gzipped(p)) }, false, errAny, false, false},
		{"br", []string{"br"}, asIs, false, errAny, false, false},
		{"br of a range", []string{"br"}, asIs, true, registry.ErrRange, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			packed := c.pack(data) // which takes the race detector seconds on a busy machine: no client waits for that
			s := newServer(t, func(w http.ResponseWriter, r *http.Request, _ int64) bool {
				if got := r.Header.Get("Accept-Encoding"); got != "identity" {
					t.Errorf("asked for %q", got)
				}
				w.Header()["Content-Encoding"] = c.says
				first, last := 0, len(data)-1
				if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &first, &last); err == nil && c.ranges {
					w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, last, len(data)))
					w.WriteHeader(http.StatusPartialContent)
					if last-first < len(data)-1 {
						_, _ = w.Write(c.pack(data[first : last+1])) // or the client is gone
						return true
					}
				}
				_, _ = w.Write(packed) // or the client is gone
				return true
			})
			opts := registry.Options{Retry: registry.Retry{Attempts: 2, First: time.Millisecond}}
			b := blobOn(t, "reg.test", plain(s.host()), opts)
			got, err := read(t.Context(), b, 1000, 100)
			if c.part == nil && (err != nil || !bytes.Equal(got, data[1000:1100])) {
				t.Errorf("a part: %v", err)
			} else if c.part != nil && (err == nil || c.part != errAny && !errors.Is(err, c.part)) {
				t.Errorf("a part: %v, want %v", err, c.part)
			}
			if got, err = read(t.Context(), b, 0, len(data)); (err == nil) != c.all || err == nil && !bytes.Equal(got, data) {
				t.Errorf("a range of all: %v", err)
			}
			r, err := b.Whole(t.Context())
			if err == nil {
				got, err = io.ReadAll(r)
				r.Close()
			}
			if (err == nil) != c.whole || err == nil && !bytes.Equal(got, data) {
				t.Errorf("whole: %v", err)
			}
		})
	}
}

var errAny = errors.New("any")

// TestEncodedAndCut: a whole answer in gzip that breaks goes on by another whole one, of which what came before is skipped.
func TestEncodedAndCut(t *testing.T) {
	var whole atomic.Int64
	p := gzipped(data)
	s := newServer(t, func(w http.ResponseWriter, r *http.Request, n int64) bool {
		if r.Header.Get("Range") != "" {
			t.Errorf("asked for %s", r.Header.Get("Range"))
		}
		whole.Add(1)
		w.Header().Set("Content-Encoding", "gzip")
		if n > 1 {
			_, _ = w.Write(p) // or the client is gone
			return true
		}
		_, _ = w.Write(p[:len(p)/2])
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	})
	b := blobOn(t, "reg.test", plain(s.host()), registry.Options{})
	r, err := b.Whole(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, data) || whole.Load() != 2 {
		t.Errorf("%d bytes, %v; asked %d times", len(got), err, whole.Load())
	}
}
