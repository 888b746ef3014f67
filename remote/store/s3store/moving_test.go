package s3store_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/conformance/tools/link"
)

const givenUp = "nothing has moved on the connection"

// again tries until it is not given up, as whoever makes a request does, and returns how often it was. A busy machine may keep an
// answer longer than a short Still.
func again(try func() error) (given int, err error) {
	for ; given < 10; given++ {
		if err = try(); err == nil || !strings.Contains(err.Error(), givenUp) && !strings.Contains(err.Error(), "i/o timeout") {
			return given, err // to connect has its own time, and may end with it
		}
	}
	return given, err
}

// TestSilentConnections: what connections that have died silently were to carry is tried again by another one: a read by itself, a
// write by whoever makes it.
func TestSilentConnections(t *testing.T) {
	t.Parallel()
	o := fake(t)
	k, err := link.New(strings.TrimPrefix(o.Endpoint, "http://"), link.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	})
	o.Endpoint, o.Still = "http://"+k.Addr(), 400*time.Millisecond
	s, body := open(t, o), bytes.Repeat([]byte("segment."), 1<<20)
	put := func(key string) func() error {
		return func() error {
			_, err := s.Put(t.Context(), key, body)
			return err
		}
	}
	if _, err := again(put("k")); err != nil {
		t.Fatal(err)
	}
	k.Silence()
	var got []byte
	if _, err := again(func() (err error) {
		got, _, err = s.Get(t.Context(), "k", 0, -1)
		return err
	}); err != nil || !bytes.Equal(got, body) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	k.Silence()
	if given, err := again(put("k2")); given == 0 || err != nil {
		t.Errorf("put by a dead connection: given up %d times, then %v", given, err)
	}
}

// TestSlowMoves: a body that moves slowly is not given up, however long it takes.
func TestSlowMoves(t *testing.T) {
	t.Parallel()
	o := fake(t)
	var asked atomic.Int32
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		for p := make([]byte, 2<<10); ; time.Sleep(100 * time.Millisecond) { // the rate of a link of 20 kB/s
			if _, err := io.ReadFull(r.Body, p); err != nil {
				break
			}
		}
		w.Header().Set("ETag", "\"e\"")
	}))
	small := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) { // the sender's kernel keeps the rest
		cerr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 4096) })
		if cerr != nil {
			return cerr
		}
		return err
	}}
	l, err := small.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv.Listener.Close()
	srv.Listener = l
	srv.Start()
	t.Cleanup(srv.Close)
	o.Endpoint, o.Still = srv.URL, 2*time.Second
	begin := time.Now()
	_, err = open(t, o).Put(t.Context(), "k", make([]byte, 128<<10))
	if took := time.Since(begin); err != nil || asked.Load() != 1 || took < 2*o.Still {
		t.Errorf("after %v and %d requests: %v", took, asked.Load(), err)
	}
}

// TestSlowAnswer: a server that takes its time for an answer gets more of it at each try, and keeps that as long as it needs it, also
// when somebody has left meanwhile: what is renewed for ever is not given up each time before.
func TestSlowAnswer(t *testing.T) {
	t.Parallel()
	o := fake(t)
	var received atomic.Pointer[func()]
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if then := received.Swap(nil); then != nil {
			(*then)()
		}
		select {
		case <-time.After(time.Second): // what the server needs
			w.Header().Set("ETag", "\"e\"")
		case <-r.Context().Done():
		}
	}))
	t.Cleanup(srv.Close)
	o.Endpoint, o.Still = srv.URL, 200*time.Millisecond
	s := open(t, o)
	put := func() error {
		_, err := s.Put(t.Context(), "k", []byte("v"))
		return err
	}
	if given, err := again(put); err != nil || given == 0 {
		t.Fatalf("given up %d times, then %v", given, err)
	}
	leaving, leave := context.WithCancel(t.Context())
	then := func() { leave() }
	received.Store(&then)
	if _, err := s.Put(leaving, "k", []byte("v")); err == nil {
		t.Error("put for somebody who had left")
	}
	all := 0
	for range 4 {
		given, err := again(put)
		if all += given; err != nil {
			t.Fatal(err)
		}
	}
	if all > 2 {
		t.Errorf("what had got its time was given up %d times", all)
	}
}

// TestBodyStops: an answer that stops half way is given up, and a read of something else is not held up by it.
func TestBodyStops(t *testing.T) {
	t.Parallel()
	o := fake(t)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Last-Modified", "Mon, 02 Jan 2023 03:04:05 GMT")
		w.Header().Set("ETag", "\"e\"")
		w.Header().Set("Content-Length", "8")
		_, _ = io.WriteString(w, "0123")
		_ = http.NewResponseController(w).Flush()
		if strings.HasSuffix(r.URL.Path, "/stops") {
			<-r.Context().Done()
			return
		}
		_, _ = io.WriteString(w, "4567")
	}))
	t.Cleanup(srv.Close)
	o.Endpoint, o.Still = srv.URL, 200*time.Millisecond
	s := open(t, o)
	if p, _, err := s.Get(t.Context(), "stops", 0, -1); err == nil || !strings.Contains(err.Error(), givenUp) {
		t.Errorf("%q, %v", p, err)
	}
	var got []byte
	if _, err := again(func() (err error) {
		got, _, err = s.Get(t.Context(), "goes", 0, -1)
		return err
	}); err != nil || string(got) != "01234567" {
		t.Errorf("%q, %v", got, err)
	}
}
