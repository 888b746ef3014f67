package registry

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
)

// TestSpare: a whole answer to a request for a range is what is read of the whole blob next, with no other request, once. It outlives the
// request's context and ends with that of its reader. One is set aside, and none is left when nobody wants it.
func TestSpare(t *testing.T) {
	body := bytes.Repeat([]byte("remora"), 1<<20) // more than connections hold
	d := digest.FromBytes(body)
	var asked, sending atomic.Int64
	ended := make(chan struct{}, 10)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		sending.Add(1)
		_, _ = w.Write(body) // until who asked leaves
		sending.Add(-1)
		ended <- struct{}{}
	}))
	defer srv.Close()
	var logins Logins
	if _, err := logins.Set(srv.Listener.Addr().String(), Login{PlainHTTP: true}); err != nil {
		t.Fatal(err)
	}
	reg := New(Options{Logins: &logins, Retry: Retry{Attempts: 1}})
	repo := Repository{srv.Listener.Addr().String(), "app"}
	blob := reg.Blob(repo, d, int64(len(body)))
	ranged := func(ctx context.Context, b *Blob) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		if _, err := b.Open(ctx, 10, 10, 0); !errors.Is(err, ErrRange) {
			t.Fatalf("got %v", err)
		}
	}
	ctx, spare := Sparing(t.Context())
	ranged(ctx, blob)
	ranged(ctx, blob)
	<-ended // of the second one, that is not set aside
	if asked.Load() != 2 || sending.Load() != 1 {
		t.Errorf("%d requests, of which %d go on", asked.Load(), sending.Load())
	}
	other := reg.Blob(Repository{repo.Host, "other"}, d, int64(len(body)))
	if body, _ := spareOf(ctx).take(other); body != nil {
		t.Error("another repository's blob is read of it")
	}
	in, err := blob.Whole(ctx)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(in)
	if err := errors.Join(err, in.Close()); err != nil || !bytes.Equal(got, body) || asked.Load() != 2 {
		t.Errorf("%d bytes by %d requests, %v", len(got), asked.Load(), err)
	}
	<-ended

	ranged(ctx, blob) // its reader leaves
	reader, leave := context.WithCancel(ctx)
	if in, err = blob.Whole(reader); err != nil || asked.Load() != 3 {
		t.Fatalf("%d requests, %v", asked.Load(), err)
	}
	leave()
	if _, err := io.ReadAll(in); !errors.Is(err, context.Canceled) {
		t.Errorf("who has left reads on: %v", err)
	}
	in.Close()
	<-ended

	ranged(ctx, blob) // nobody wants it
	spare.Close()
	<-ended
	ranged(ctx, blob) // nobody may
	<-ended
	for range maxAskedWithin + 10 { // no request is counted that is over
		ranged(t.Context(), blob)
		<-ended
	}
}

// closes counts what is closed.
type closes struct {
	io.Reader
	n atomic.Int64
}

func (c *closes) Close() error { c.n.Add(1); return nil }

// TestSpareEnds: an answer that is set aside is closed after a while.
func TestSpareEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := new(closes)
		_, spare := Sparing(t.Context())
		spare.offer(new(Blob), &stallReader{body: c, cancel: func(error) {}}, false)
		began := time.Now()
		for c.n.Load() == 0 {
			time.Sleep(time.Millisecond)
		}
		if took := time.Since(began); took > spareHolds+time.Millisecond {
			t.Errorf("closed after %s", took)
		}
		spare.Close()
		if body, _ := spare.take(new(Blob)); body != nil || c.n.Load() != 1 {
			t.Errorf("closed %d times", c.n.Load())
		}
	})
}
