package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A tripBed is a server at two addresses, of which the first counts as public, and a name server for it.
type tripBed struct {
	port   string
	inside atomic.Int64 // requests at the address that is not public

	mu      sync.Mutex // guards the fields below
	serve   func(w http.ResponseWriter, r *http.Request) bool
	lookups map[string]int
}

var outsideIP, insideIP = netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("127.0.0.1")

// addresses are those of a name, in the order in which they are asked for.
func addresses(name string, lookup int) []netip.Addr {
	switch {
	case strings.HasPrefix(name, "inside"):
		return []netip.Addr{insideIP}
	case strings.HasPrefix(name, "both"):
		return []netip.Addr{outsideIP, insideIP}
	case strings.HasPrefix(name, "turns") && lookup > 0:
		return []netip.Addr{insideIP}
	}
	return []netip.Addr{outsideIP}
}

func newTripBed(t *testing.T) *tripBed {
	t.Helper()
	b := &tripBed{lookups: map[string]int{}}
	var ls []net.Listener
	for ls == nil { // the second may not have the port
		first, err := net.Listen("tcp", net.JoinHostPort(outsideIP.String(), "0"))
		if err != nil {
			t.Fatal(err)
		}
		_, b.port, _ = net.SplitHostPort(first.Addr().String()) // a listener's
		second, err := net.Listen("tcp", net.JoinHostPort(insideIP.String(), b.port))
		if err != nil {
			first.Close()
			continue
		}
		ls = []net.Listener{first, second}
	}
	for _, l := range ls {
		s := httptest.NewUnstartedServer(b)
		s.Listener.Close()
		s.Listener = l
		s.Start()
		t.Cleanup(s.Close)
	}
	names, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var done sync.WaitGroup
	done.Go(func() { b.answerNames(names) })
	before := net.DefaultResolver
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "udp", names.LocalAddr().String())
	}}
	t.Cleanup(func() { net.DefaultResolver = before; names.Close(); done.Wait() })
	return b
}

// answerNames is a name server (RFC 1035) that knows addresses of IPv4.
func (b *tripBed) answerNames(c net.PacketConn) {
	p := make([]byte, 512)
	for {
		n, from, err := c.ReadFrom(p)
		if err != nil {
			return
		}
		var name []string
		end := 12
		for n > end && p[end] != 0 && end+1+int(p[end]) < n {
			name = append(name, string(p[end+1:end+1+int(p[end])]))
			end += 1 + int(p[end])
		}
		if end += 5; end > n {
			continue
		}
		a := append([]byte(nil), p[:end]...)
		a[2], a[3] = 0x81, 0x80
		copy(a[6:12], make([]byte, 6))
		if a[end-3] == 1 { // an IPv4 address
			host := strings.Join(name, ".")
			b.mu.Lock()
			all := addresses(host, b.lookups[host])
			b.lookups[host]++
			b.mu.Unlock()
			a[7] = byte(len(all))
			for _, ip := range all {
				a = append(append(a, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4), ip.AsSlice()...)
			}
		}
		_, _ = c.WriteTo(a, from) // or it is asked again
	}
}

// ServeHTTP implements http.Handler. It has a blob of one byte.
func (b *tripBed) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if at, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr); strings.HasPrefix(at.String(), insideIP.String()) {
		b.inside.Add(1)
	}
	w.Header().Set("Connection", "close") // so that names are looked up again
	b.mu.Lock()
	serve := b.serve
	b.mu.Unlock()
	if serve(w, r) {
		return
	}
	w.Header().Set("Content-Range", "bytes 0-0/1")
	w.WriteHeader(http.StatusPartialContent)
	_, _ = w.Write([]byte("x")) // or the client is gone
}

// TestTrips: what a server at a public address names is asked at public addresses alone, whatever its name says of it before or later:
// redirects, also those to its own name, and servers of tokens, with their redirects. A registry at another address may name any. The same
// holds for containerd's resolver, by which snapctl pulls, and which follows redirects itself.
func TestTrips(t *testing.T) {
	b := newTripBed(t)
	at := func(host, path string) string { return "http://" + net.JoinHostPort(host, b.port) + path }
	// leads redirects from each host to the next one.
	leads := func(hosts ...string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			hop := strings.Count(r.URL.Path, "/there")
			if hop >= len(hosts) {
				return false
			}
			w.Header().Set("Location", at(hosts[hop], strings.Repeat("/there", hop+1)))
			w.WriteHeader(http.StatusTemporaryRedirect)
			return true
		}
	}
	// token wants a token of a server that may redirect.
	token := func(from string, to ...string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			switch {
			case strings.HasPrefix(r.URL.Path, "/v2/") && r.Header.Get("Authorization") == "":
				w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s",service="s"`, at(from, "/token")))
				w.WriteHeader(http.StatusUnauthorized)
			case strings.HasPrefix(r.URL.Path, "/v2/"):
				return false
			case !leads(to...)(w, r):
				_ = json.NewEncoder(w).Encode(map[string]string{"token": "t"}) // or the client is gone
			}
			return true
		}
	}
	for _, c := range []struct {
		name     string
		registry string
		serve    func(http.ResponseWriter, *http.Request) bool
		refused  bool
	}{
		{"to a public place", "reg.test", leads("cdn.test"), false},
		{"to an address", "reg.test", leads("127.0.0.1"), true},
		{"to a name", "reg.test", leads("inside.test"), true},
		{"over a public place", "reg.test", leads("cdn.test", "inside.test"), true},
		{"of a registry with both addresses", "both.test", leads("inside.test"), true},
		{"to a place with both addresses", "reg.test", leads("both.test"), false},
		{"to the registry's own name, which has turned", "turns.test", leads("turns.test"), true},
		{"to a name that has turned", "reg.test", leads("turns.test", "cdn.test", "turns.test"), true},
		{"of a registry inside", "inside.test", leads("inside.test"), false},
		{"of a registry inside to a public place", "inside.test", leads("cdn.test"), false},
		{"of a registry inside, by a public place", "inside.test", leads("cdn.test", "inside.test"), true},
		{"for a public token", "reg.test", token("auth.test"), false},
		{"for a token inside", "reg.test", token("inside.test"), true},
		{"for a token that leads inside", "reg.test", token("auth.test", "inside.test"), true},
		{"for a token of both addresses' registry", "both.test", token("127.0.0.1"), true},
		{"for a token of its own name, which has turned", "turns.test", token("turns.test"), true},
		{"of a registry inside for a token inside", "inside.test", token("inside.auth.test"), false},
		{"of a registry inside for a public token", "inside.test", token("auth.test"), false},
		{"of a registry inside for a public token that leads inside", "inside.test", token("auth.test", "inside.test"), true},
	} {
		for i := range 4 {
			free, resolver := i%2 == 1, i > 1
			t.Run(fmt.Sprintf("%s, all are allowed %v, by containerd's resolver %v", c.name, free, resolver), func(t *testing.T) {
				b.mu.Lock()
				b.serve = c.serve
				clear(b.lookups)
				b.mu.Unlock()
				host := net.JoinHostPort(c.registry, b.port)
				var logins Logins
				if _, err := logins.Set(host, Login{PlainHTTP: true}); err != nil {
					t.Fatal(err)
				}
				r := New(Options{Logins: &logins, PrivatePlaces: free, Retry: Retry{Attempts: 2, First: time.Millisecond}})
				r.public = func(ip netip.Addr) bool { return ip == outsideIP }
				r.elsewhere.Transport.(*router).public = r.public
				before := b.inside.Load()
				read := func() error {
					_, err := r.Blob(Repository{host, "app"}, digest.FromString("x"), 1).ReadAt(t.Context(), make([]byte, 1), 0)
					return err
				}
				if resolver {
					read = func() error { return fetchByResolver(t.Context(), r, host+"/app:1") }
				}
				err := read()
				inside := b.inside.Load() - before
				if refused := c.refused && !free; refused && !errors.Is(err, ErrNotPublic) || !refused && err != nil {
					t.Errorf("got %v", err)
				}
				if !strings.HasPrefix(c.registry, "inside") && inside > 0 && !free {
					t.Errorf("%d requests came inside", inside)
				}
			})
		}
	}
}

// fetchByResolver reads a blob of one byte as containerd's client does.
func fetchByResolver(ctx context.Context, r *Registry, ref string) error {
	f, err := r.Resolver(ctx).Fetcher(ctx, ref)
	if err != nil {
		return err
	}
	in, err := f.Fetch(ctx, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromString("x"), Size: 1})
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, in)
	return errors.Join(err, in.Close())
}

// TestTripsAgain: a place to which a registry has sent us is remembered, and asked again only at public addresses.
func TestTripsAgain(t *testing.T) {
	b := newTripBed(t)
	host := net.JoinHostPort("reg.test", b.port)
	b.serve = func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasPrefix(r.URL.Path, "/v2/") {
			w.Header().Set("Location", "http://"+net.JoinHostPort("turns.test", b.port))
			w.WriteHeader(http.StatusTemporaryRedirect)
			return true
		}
		return false
	}
	var logins Logins
	if _, err := logins.Set(host, Login{PlainHTTP: true}); err != nil {
		t.Fatal(err)
	}
	r := New(Options{Logins: &logins, Retry: Retry{Attempts: 1}})
	r.public = func(ip netip.Addr) bool { return ip == outsideIP }
	blob := r.Blob(Repository{host, "app"}, digest.FromString("x"), 1)
	if _, err := blob.ReadAt(t.Context(), make([]byte, 1), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := blob.ReadAt(t.Context(), make([]byte, 1), 0); !errors.Is(err, ErrNotPublic) || b.inside.Load() > 0 {
		t.Errorf("%d requests came inside, %v", b.inside.Load(), err)
	}
}

// TestWhoRefuses: an error tells whether the registry has refused a blob, or the place to which it has sent us.
func TestWhoRefuses(t *testing.T) {
	storage := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }))
	defer storage.Close()
	for _, c := range []struct {
		name string
		to   string // "" where the registry refuses itself
		want bool
	}{{"the registry", "", false}, {"its storage", storage.URL, true}, {"its storage, by the same name", "/there", true}} {
		t.Run(c.name, func(t *testing.T) {
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if c.to == "" || r.URL.Path == c.to {
					w.WriteHeader(http.StatusForbidden)
					return
				}
				http.Redirect(w, r, c.to, http.StatusTemporaryRedirect)
			}))
			defer s.Close()
			host := s.Listener.Addr().String()
			var logins Logins
			if _, err := logins.Set(host, Login{PlainHTTP: true}); err != nil {
				t.Fatal(err)
			}
			r := New(Options{Logins: &logins, Retry: Retry{Attempts: 1}})
			_, err := r.Blob(Repository{host, "app"}, digest.FromString("x"), 1).ReadAt(t.Context(), make([]byte, 1), 0)
			var status *StatusError
			if !errors.As(err, &status) || status.Redirected != c.want || !errors.Is(err, ErrUnauthorized) {
				t.Errorf("got %v, %+v", err, status)
			}
		})
	}
}
