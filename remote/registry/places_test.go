package registry

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestPublic(t *testing.T) {
	for addr, want := range map[string]bool{
		"8.8.8.8": true, "2001:4860:4860::8888": true, "127.0.0.1": false, "10.1.2.3": false, "172.16.0.1": false, "192.168.1.1": false,
		"169.254.169.254": false, "100.64.0.1": false, "0.0.0.0": false, "::1": false, "fe80::1": false, "fd00::1": false,
		"::ffff:127.0.0.1": false, "224.0.0.1": false,
	} {
		if got := public(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s: public %v", addr, got)
		}
	}
}

func TestForeignURLs(t *testing.T) {
	urls := []string{"https://elsewhere.test/layer"}
	for mediaType, want := range map[string]int{
		"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip": 1, "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip": 1,
		ocispec.MediaTypeImageLayerGzip: 0, ocispec.MediaTypeImageLayer: 0,
	} {
		if got := ForeignURLs(ocispec.Descriptor{MediaType: mediaType, URLs: urls}); len(got) != want {
			t.Errorf("%s: %v", mediaType, got)
		}
	}
}

// TestPrivatePlaces: neither a layer's URL nor a public registry's redirect leads to this machine or its network, by address or
// by name; a registry on such a network may redirect there, and an operator may allow all.
func TestPrivatePlaces(t *testing.T) {
	asked := atomic.Int32{}
	inside := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		w.Header().Set("Content-Range", "bytes 0-0/1")
		w.WriteHeader(http.StatusPartialContent)
		_, _ = w.Write([]byte("x")) // or the client is gone
	}))
	defer inside.Close()
	at := inside.Listener.Addr().String()
	_, port, err := net.SplitHostPort(at)
	if err != nil {
		t.Fatal(err)
	}
	for _, place := range []string{inside.URL, "http://localhost:" + port, "http://LOCALHOST:" + port, "http://[::ffff:127.0.0.1]:" + port,
		"http://127.1:" + port, "http://2130706433:" + port} {
		for _, allowed := range []bool{false, true} {
			asked.Store(0)
			r := New(Options{PrivatePlaces: allowed, Retry: Retry{Attempts: 1}})
			d := digest.Digest("sha256:" + strings.Repeat("0", 64))
			b := r.Blob(Repository{Host: "registry.invalid", Path: "a"}, d, 1).WithURLs([]string{place})
			_, err := b.ReadAt(t.Context(), make([]byte, 1), 0)
			if n := asked.Load(); n > 0 != allowed && (allowed && place == inside.URL || !allowed) {
				t.Errorf("%s, allowed %v: asked %d times, %v", place, allowed, n, err)
			}
			if !allowed && err == nil {
				t.Errorf("%s: read", place)
			}
		}
	}
	// By a name that leads here: the connection itself is refused.
	u := &url.URL{Scheme: "http", Host: "innocent.test:" + port}
	r := New(Options{})
	ctx, err := r.outside(t.Context(), u)
	if err != nil {
		t.Fatal(err)
	}
	_, err = guarded(func(context.Context, string, string) (net.Conn, error) {
		return nil, errors.New("it was not guarded")
	})(context.WithValue(ctx, outsideKey{}, at), "tcp", at)
	if !errors.Is(err, ErrNotPublic) || errors.Is(err, ErrNotFound) || Retryable(err) {
		t.Errorf("got %v", err)
	}
	if !onPrivateNetwork(t.Context(), at) || onPrivateNetwork(t.Context(), "8.8.8.8:443") {
		t.Error("the network of a registry is told wrong")
	}
}
