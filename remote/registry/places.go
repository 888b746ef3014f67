package registry

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/internal/fair"
)

// A manifest may name other places for a layer, a registry may send us to another host, and it names the server that gives tokens. All
// are the choice of people outside, and this machine reaches what they do not: its own services, its network, a cloud's metadata server.
// So whatever a server at a public address names must be at a public address, too, unless the operator allows others. Names say nothing:
// they may have several addresses, and others by the next time. What counts are the addresses of connections.

// ForeignURLs are the other places of a layer whose media type says that a registry may lack it.
func ForeignURLs(d ocispec.Descriptor) []string {
	if strings.Contains(d.MediaType, ".nondistributable.") || strings.Contains(d.MediaType, ".foreign.") {
		return d.URLs
	}
	return nil
}

// A trip is a request of a registry, with all that it leads to.
type trip struct {
	registry   string       // its scheme and host
	led        atomic.Bool  // somebody outside has chosen what is asked next
	token      fair.User    // who it asks a token for; "" if it is for none
	redirected atomic.Bool  // it has left its beginning
	after      atomic.Int64 // nanoseconds after which the last answer wants the next request of a token
}

type tripKey struct{}

// onTrip returns a context of a new trip. led says that somebody outside has chosen its beginning.
func onTrip(ctx context.Context, registry string, led bool) (context.Context, *trip) {
	t := &trip{registry: registry}
	t.led.Store(led)
	return context.WithValue(ctx, tripKey{}, t), t
}

// tripOf returns the trip that a request is of. One that net/http makes to follow a redirect, for containerd's resolver and for pushes, is
// of the trip of what was redirected: its answer has that in its context.
func tripOf(req *http.Request) *trip {
	t, _ := req.Context().Value(tripKey{}).(*trip)
	if by := req.Response; t == nil && by != nil && by.Request != nil {
		t, _ = by.Request.Context().Value(tripKey{}).(*trip)
	}
	return t
}

// A router makes requests, and knows by whose choice. Where somebody outside has chosen, no address is connected to that is not public.
type router struct {
	own, led *http.Transport // led has only such connections
	public   func(netip.Addr) bool
	free     bool                    // any address will do
	pace     func(host string) *pace // of servers of tokens
}

// route returns a router that makes connections as a transport does.
func (r *Registry) route(t *http.Transport) *router {
	next := t.DialContext
	if next == nil {
		next = (&net.Dialer{Timeout: dialTimeout}).DialContext
	}
	x := &router{own: t, public: r.public, free: r.opts.PrivatePlaces, pace: r.pace}
	t.DialContext = hurried(x.guarded(next))
	x.led = t.Clone()
	return x
}

type guardKey struct{}

type dial func(ctx context.Context, network, addr string) (net.Conn, error)

const dialTimeout = 30 * time.Second

// guarded makes connections as next does, and with a context of a guardKey only those to public addresses.
func (x *router) guarded(next dial) dial {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		if ctx.Value(guardKey{}) == nil {
			return next(ctx, network, addr)
		}
		d := net.Dialer{Timeout: dialTimeout, Control: func(_, address string, _ syscall.RawConn) error {
			if at, err := netip.ParseAddrPort(address); err != nil || !x.public(at.Addr().WithZone("")) {
				return notPublic(address)
			}
			return nil
		}}
		return d.DialContext(ctx, network, addr)
	}
}

func notPublic(host string) error {
	return fmt.Errorf("%s is %w, and only the image or its registry names it ([registry] private_places allows that)", host, ErrNotPublic)
}

// RoundTrip implements http.RoundTripper.
func (x *router) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx := req.Context()
	t := tripOf(req)
	if t == nil {
		_, t = onTrip(ctx, req.URL.Scheme+"://"+req.URL.Host, false)
	}
	ctx = context.WithValue(ctx, tripKey{}, t)
	proxied := false
	if x.own.Proxy != nil {
		proxy, err := x.own.Proxy(req)
		if err != nil {
			return nil, failed(req, err)
		}
		proxied = proxy != nil
	}
	by := x.own
	if t.led.Load() && !x.free {
		// A proxy makes the connection, and it alone knows to which address a name leads.
		if ip, ok := literal(req.URL); ok && proxied && !x.public(ip) {
			return nil, failed(req, notPublic(req.URL.Hostname()))
		}
		if !proxied {
			ctx = context.WithValue(ctx, guardKey{}, true)
		}
		// TLS shows that a connection of the registry's own is one, whatever its address.
		if req.URL.Scheme != "https" || t.registry != "https://"+req.URL.Host {
			by = x.led
		}
	}
	var at netip.AddrPort // not valid if it cannot be told
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(c httptrace.GotConnInfo) {
		at, _ = netip.ParseAddrPort(c.Conn.RemoteAddr().String())
	}})
	var p *pace
	if t.token != "" { // other requests have their place already
		p = x.pace(req.URL.Host)
		if err := p.awaitRest(ctx, req.URL.Host, t.token); err != nil {
			return nil, failed(req, err)
		}
	}
	began := time.Now()
	resp, err := by.RoundTrip(req.WithContext(ctx))
	if err == nil && p != nil {
		p.answered(t.token, resp, began)
		t.after.Store(int64(retryAfter(resp.Header.Get("Retry-After"))))
	}
	if err == nil && !x.isPrivate(req.URL, at.Addr(), proxied) {
		t.led.Store(true)
	}
	return resp, err
}

// isPrivate reports whether an answer came from where a server may name others that are not public.
func (x *router) isPrivate(u *url.URL, at netip.Addr, proxied bool) bool {
	if proxied {
		ip, ok := literal(u)
		return ok && !x.public(ip)
	}
	return at.IsValid() && !x.public(at.WithZone(""))
}

// CloseIdleConnections is what http.Client calls.
func (x *router) CloseIdleConnections() {
	x.own.CloseIdleConnections()
	x.led.CloseIdleConnections()
}

// failed ends a request that is not made.
func failed(req *http.Request, err error) error {
	if req.Body != nil {
		req.Body.Close() // RoundTrip has promised that
	}
	return err
}
