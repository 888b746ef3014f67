package s3store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// stillFor is how long no byte of a request may move on its connection, as the kernel sees it: acknowledged by the other side, or
	// received. A slow link moves.
	stillFor = 8 * time.Second
	// longStill is that of a request without a body that is tried again here. Others are tried again by whoever made them.
	longStill = 64 * time.Second
	// mostStill bounds it altogether.
	mostStill = time.Hour
	looks     = 8 // in that time
)

// errStill says that a request was given up.
var errStill = errors.New("nothing has moved on the connection: given up")

// moving gives a request up whose bytes do not move: a connection that has died silently says nothing else. What is tried again then
// goes by another connection. A server may also take long to answer what it has received whole, or be behind something that takes
// all immediately and passes it on slowly: so the same request has twice the time at each further try, and keeps that as long as it
// needs it.
type moving struct {
	http.RoundTripper
	still time.Duration

	mu    sync.Mutex               // guards the field below
	given map[string]time.Duration // by method and path: what a request had that was given up
}

const mostGiven = 1024 // requests that are remembered

func newMoving(inner http.RoundTripper, still time.Duration) *moving {
	return &moving{RoundTripper: inner, still: still, given: map[string]time.Duration{}}
}

// RoundTrip implements http.RoundTripper.
func (m *moving) RoundTrip(r *http.Request) (*http.Response, error) {
	for {
		still, begun := m.stillOf(r), time.Now()
		resp, err := m.once(r, still)
		switch {
		case err == nil:
			m.answered(r, time.Since(begun))
			return resp, nil
		case !errors.Is(err, errStill): // it tells nothing of the server: whoever made the request may have left
			return nil, err
		}
		m.gaveUp(r, still)
		if r.Body != nil && r.Body != http.NoBody || still >= longStill {
			return resp, err
		}
	}
}

func keyOf(r *http.Request) string { return r.Method + " " + r.URL.Path }

func (m *moving) stillOf(r *http.Request) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	return max(m.still, min(2*m.given[keyOf(r)], mostStill))
}

// answered gives the next such request less time, unless this one needed more than that.
func (m *moving) answered(r *http.Request, took time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch had := m.given[keyOf(r)]; {
	case took >= had:
	case had <= m.still:
		delete(m.given, keyOf(r))
	default:
		m.given[keyOf(r)] = had / 2
	}
}

func (m *moving) gaveUp(r *http.Request, still time.Duration) {
	m.mu.Lock()
	if len(m.given) == mostGiven {
		clear(m.given)
	}
	m.given[keyOf(r)] = still
	m.mu.Unlock()
	if c, ok := m.RoundTripper.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections() // they may be as dead
	}
}

// once makes one try.
func (m *moving) once(r *http.Request, still time.Duration) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(r.Context())
	w := &watch{still: still, cancel: cancel, since: time.Now()}
	w.mu.Lock()
	w.timer = time.AfterFunc(still/looks, w.look)
	w.mu.Unlock()
	trace := &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { w.got(i.Conn) }}
	resp, err := m.RoundTripper.RoundTrip(r.WithContext(httptrace.WithClientTrace(ctx, trace)))
	if err != nil {
		return nil, w.end(err)
	}
	resp.Body = &watched{resp.Body, w, func() { m.gaveUp(r, still) }}
	return resp, nil
}

// watch looks whether bytes move on the connection of one request.
type watch struct {
	still  time.Duration
	cancel context.CancelCauseFunc

	mu    sync.Mutex // guards the fields below
	timer *time.Timer
	conn  net.Conn // nil until there is one
	bytes uint64   // that have moved on it
	since time.Time
	ended bool
	why   error // it was given up
}

func (w *watch) got(c net.Conn) {
	bytes, _ := movedOn(c)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.conn, w.bytes, w.since = c, bytes, time.Now()
}

func (w *watch) look() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		return
	}
	now := time.Now()
	if w.conn == nil {
		w.since = now // to connect has its own time
	} else if bytes, ok := movedOn(w.conn); !ok || bytes != w.bytes {
		w.bytes, w.since = bytes, now
	}
	if now.Sub(w.since) >= w.still {
		w.why = fmt.Errorf("%w after %v", errStill, w.still)
		w.cancel(w.why)
		return
	}
	w.timer.Reset(w.still / looks)
}

// end ends a request, and says of its error why it was given up if it was.
func (w *watch) end(err error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = true
	w.timer.Stop()
	w.cancel(nil)
	if err != nil && w.why != nil {
		return w.why
	}
	return err
}

// movedOn returns how many bytes the kernel knows to have moved on a connection, both ways. ok is false if it does not say.
func movedOn(c net.Conn) (bytes uint64, ok bool) {
	if t, is := c.(interface{ NetConn() net.Conn }); is { // of TLS
		c = t.NetConn()
	}
	t, is := c.(*net.TCPConn)
	if !is {
		return 0, false
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return 0, false
	}
	var info *unix.TCPInfo
	cerr := raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) })
	if cerr != nil || err != nil {
		return 0, true // it is closed: nothing moves any more
	}
	return info.Bytes_acked + info.Bytes_received, true
}

// watched is the body of an answer. The request goes on until it is read or closed.
type watched struct {
	io.ReadCloser
	w      *watch
	gaveUp func()
}

func (b *watched) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err == nil {
		return n, nil
	}
	if err = b.w.end(err); errors.Is(err, errStill) {
		b.gaveUp()
	}
	return n, err
}

func (b *watched) Close() error {
	_ = b.w.end(nil)
	return b.ReadCloser.Close()
}
