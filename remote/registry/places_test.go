package registry

import (
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
		"::ffff:127.0.0.1": false, "224.0.0.1": false, "0.1.2.3": false, "198.18.0.1": false, "198.19.255.255": false, "198.20.0.1": true,
		"192.0.0.8": false, "192.0.2.1": false, "203.0.113.1": false, "240.0.0.1": false, "255.255.255.255": false, "100.128.0.1": true,
		"64:ff9b::7f00:1": false, "64:ff9b::a9fe:a9fe": false, "64:ff9b::808:808": true, "64:ff9b:1::808:808": false, // NAT64
		"2002:a00:1::1": false, "2002:7f00:1::": false, "2002:808:808::1": true, // 6to4
		"2001::1": false, "2001:db8::1": false, "3fff::1": false, "fec0::1": false, "ff02::1": false, "::": false, "::127.0.0.1": false,
		"::ffff:0:127.0.0.1": false, "100::1": false, "5f00::1": false, "4000::1": false, "2a00:1450::1": true,
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
}

// TestProxiedPlaces: where a proxy makes the connections, a server outside cannot name addresses that are not public, however they are
// written; it can name names, of which only the proxy knows where they lead.
func TestProxiedPlaces(t *testing.T) {
	var asked []string
	proxy := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { asked = append(asked, r.URL.Host) }))
	defer proxy.Close()
	via, err := url.Parse(proxy.URL)
	if err != nil {
		t.Fatal(err)
	}
	x := New(Options{}).route(&http.Transport{Proxy: http.ProxyURL(via)})
	defer x.CloseIdleConnections()
	for host, want := range map[string]bool{
		"innocent.test": true, "8.8.8.8": true, "127.0.0.1": false, "169.254.169.254": false, "127.1": false, "0x7f.1": false,
		"2130706433": false,
		"[::1]":      false, "[fe80::1%25eth0]": false, "localhost": false, "LOCALHOST.": false, "a.localhost": false, "１２７.0.0.1": false,
	} {
		for _, led := range []bool{true, false} {
			asked = nil
			ctx, trip := onTrip(t.Context(), "", led)
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+host+"/", nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := x.RoundTrip(req)
			if err == nil {
				resp.Body.Close()
			}
			if want = want || !led; (err == nil) != want || len(asked) > 0 != want || !want && !errors.Is(err, ErrNotPublic) {
				t.Errorf("%s, led %v: %v, the proxy was asked for %q", host, led, err, asked)
			}
			if public := host == "innocent.test" || host == "8.8.8.8"; !led && trip.led.Load() != public {
				t.Errorf("%s: its answers lead to public places alone: %v", host, !public)
			}
		}
	}
}
