package registry

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"syscall"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A manifest may name other places for a layer, and a registry may send us to another host. Both are the choice of people
// outside, and this machine reaches what they do not: its own services, its network, a cloud's metadata server. So such a
// place is public, unless the operator allows others, or the registry that sends us there is on such a network itself.

// ForeignURLs are the other places of a layer whose media type says that a registry may lack it.
func ForeignURLs(d ocispec.Descriptor) []string {
	if strings.Contains(d.MediaType, ".nondistributable.") || strings.Contains(d.MediaType, ".foreign.") {
		return d.URLs
	}
	return nil
}

type outsideKey struct{}

// outside returns a context in which a connection to u's host is made only if that has a public address.
func (r *Registry) outside(ctx context.Context, u *url.URL) (context.Context, error) {
	if r.opts.PrivatePlaces {
		return ctx, nil
	}
	host := u.Hostname()
	ip, err := netip.ParseAddr(host)
	if err == nil && !public(ip) || strings.EqualFold(host, "localhost") { // a proxy may make the connection
		return nil, notPublic(host)
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return context.WithValue(ctx, outsideKey{}, net.JoinHostPort(host, port)), nil
}

func notPublic(host string) error {
	return fmt.Errorf("%s is %w, and only the image or its registry names it ([registry] private_places allows that)", host, ErrNotPublic)
}

type dial func(ctx context.Context, network, addr string) (net.Conn, error)

// guarded makes connections as next does, but for those of a context of outside.
func guarded(next dial) dial {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		if outside, _ := ctx.Value(outsideKey{}).(string); outside != addr { // a proxy's is another one
			return next(ctx, network, addr)
		}
		d := net.Dialer{Timeout: dialTimeout, Control: func(_, address string, _ syscall.RawConn) error {
			if at, err := netip.ParseAddrPort(address); err != nil || !public(at.Addr()) {
				return notPublic(address)
			}
			return nil
		}}
		return d.DialContext(ctx, network, addr)
	}
}

const dialTimeout = 30 * time.Second

// guard has a transport make its connections by guarded and hurried.
func guard(t *http.Transport) {
	next := t.DialContext
	if next == nil {
		next = (&net.Dialer{Timeout: dialTimeout}).DialContext
	}
	t.DialContext = hurried(guarded(next))
}

var sharedAddresses = netip.MustParsePrefix("100.64.0.0/10") // RFC 6598

// public reports whether an address is one of the whole internet.
func public(ip netip.Addr) bool {
	ip = ip.Unmap()
	return ip.IsGlobalUnicast() && !ip.IsPrivate() && !sharedAddresses.Contains(ip) // loopback and link-local are not global
}

// onPrivateNetwork reports whether a registry is where places need not be public.
func onPrivateNetwork(ctx context.Context, hostport string) bool {
	host := (&url.URL{Host: hostport}).Hostname()
	if ip, err := netip.ParseAddr(host); err == nil {
		return !public(ip)
	}
	all, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return false
	}
	for _, ip := range all {
		if !public(ip) {
			return true
		}
	}
	return false
}
