package images_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/remora-storage/remora/conformance/testbed"
)

// A forwardProxy leads to hosts whose names only it knows: by CONNECT for TLS, and for plain HTTP by requests for whole URLs. Its
// clients say by a user's name who they are.
type forwardProxy struct {
	*httptest.Server
	hosts map[string]string // addresses by the names that clients ask for, with their ports

	mu    sync.Mutex // guards the field below
	asked map[proxied]*traffic
}

type proxied struct{ user, host string }

// traffic is what went through the proxy for one user to one host.
type traffic struct{ requests, bytes int64 }

func newForwardProxy(t *testing.T, hosts map[string]string) *forwardProxy {
	t.Helper()
	p := &forwardProxy{hosts: hosts, asked: map[proxied]*traffic{}}
	p.Server = httptest.NewServer(p)
	t.Cleanup(p.Close)
	return p
}

// env has a program use the proxy as a user.
func (p *forwardProxy) env(user string) []string {
	at := "http://" + user + ":hidden@" + p.Listener.Addr().String()
	return []string{"HTTPS_PROXY=" + at, "HTTP_PROXY=" + at}
}

// of returns what went through it so far.
func (p *forwardProxy) of(user, host string) traffic {
	p.mu.Lock()
	defer p.mu.Unlock()
	if t := p.asked[proxied{user, host}]; t != nil {
		return *t
	}
	return traffic{}
}

func (p *forwardProxy) count(who proxied, requests, bytes int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := p.asked[who]
	if t == nil {
		t = new(traffic)
		p.asked[who] = t
	}
	t.requests += requests
	t.bytes += bytes
}

func (p *forwardProxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	user := proxyUser(r)
	at := p.hosts[r.Host]
	p.count(proxied{user, r.Host}, 1, 0)
	switch {
	case user == "":
		w.Header().Set("Proxy-Authenticate", `Basic realm="proxy"`)
		w.WriteHeader(http.StatusProxyAuthRequired)
	case at == "":
		w.WriteHeader(http.StatusBadGateway)
	case r.Method == http.MethodConnect:
		p.tunnel(w, proxied{user, r.Host}, at)
	default:
		p.forward(w, r, proxied{user, r.Host}, at)
	}
}

func proxyUser(r *http.Request) string {
	basic, _ := strings.CutPrefix(r.Header.Get("Proxy-Authorization"), "Basic ")
	plain, err := base64.StdEncoding.DecodeString(basic)
	user, password, _ := strings.Cut(string(plain), ":")
	if err != nil || password != "hidden" {
		return ""
	}
	return user
}

// tunnel joins two connections, until either ends.
func (p *forwardProxy) tunnel(w http.ResponseWriter, who proxied, at string) {
	there, err := net.Dial("tcp", at)
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	defer there.Close()
	w.WriteHeader(http.StatusOK)
	here, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer here.Close()
	var up sync.WaitGroup
	defer up.Wait()
	defer here.Close()
	up.Go(func() {
		_, _ = io.Copy(there, buffered) // until one of both ends
		there.Close()
	})
	_, _ = io.Copy(here, counting{there, func(n int64) { p.count(who, 0, n) }})
}

// forward makes a request that is not for the proxy itself.
func (p *forwardProxy) forward(w http.ResponseWriter, r *http.Request, who proxied, at string) {
	out := r.Clone(r.Context())
	out.RequestURI, out.URL.Host = "", at
	out.Header.Del("Proxy-Authorization")
	out.Header.Del("Proxy-Connection")
	resp, err := http.DefaultTransport.RoundTrip(out)
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	defer resp.Body.Close()
	for k, v := range resp.Header {
		w.Header()[k] = v
	}
	w.WriteHeader(resp.StatusCode)
	_, _ = io.Copy(w, counting{resp.Body, func(n int64) { p.count(who, 0, n) }}) // or the client is gone
}

type counting struct {
	io.Reader
	came func(n int64)
}

func (c counting) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.came(int64(n))
	return n, err
}

// TestForwardProxy: registries that are out of reach but for a proxy serve lazily, by HTTPS_PROXY and HTTP_PROXY of remorad's own
// environment. What NO_PROXY names is not asked for through it: such an image is the client's. doctor tells that the two daemons differ.
func TestForwardProxy(t *testing.T) {
	t.Parallel()
	hosts := map[string]string{}
	p := newForwardProxy(t, hosts)
	s := testbed.New(t, testbed.Options{LogLevel: "info", Config: impatient, ContainerdEnv: p.env("containerd"),
		RemoradEnv: append(p.env("remorad"), "NO_PROXY=direct.test")})
	a := newAuthority(t)
	secure := tlsRegistry(t, s, a, "secure.test", false)
	hosts["secure.test:443"], hosts["plain.test"], hosts["direct.test"] = secure, s.Addr, s.Addr
	for name, toml := range map[string]string{
		"secure.test": fmt.Sprintf("server = \"https://secure.test\"\nca = %q\n", a.file("authority")),
		"plain.test":  "server = \"http://plain.test\"\n",
		"direct.test": "server = \"http://direct.test\"\n",
	} {
		testbed.Must(t, os.MkdirAll(filepath.Join(s.HostsDir, name), 0o755))
		testbed.Must(t, os.WriteFile(filepath.Join(s.HostsDir, name, "hosts.toml"), []byte(toml), 0o644))
	}
	m := &matrix{s: s}
	for registry, as := range map[string]string{"secure.test": "secure.test:443", "plain.test": "plain.test"} {
		for _, kind := range []string{"lazy", "import"} {
			before := p.of("remorad", as)
			m.insist(t, registry, "ctr", kind)
			after := p.of("remorad", as)
			t.Logf("%s, %s: remorad made %d requests of the proxy, and %d bytes came", registry, kind, after.requests-before.requests,
				after.bytes-before.bytes)
			if n := after.bytes - before.bytes; n < 5<<20 {
				t.Errorf("%s, %s: %d bytes came through the proxy, which are not the image", registry, kind, n)
			}
		}
	}
	if how := m.try(t, "direct.test", "ctr", "lazy"); how != "unpacked" {
		t.Errorf("layers that only containerd can get are %s", how)
	}
	if ours, theirs := p.of("remorad", "direct.test"), p.of("containerd", "direct.test"); ours.requests > 0 || theirs.bytes < 5<<20 {
		t.Errorf("what NO_PROXY names: remorad made %d requests, and %d bytes came for containerd", ours.requests, theirs.bytes)
	}
	proxiesDiffer(t, s)
}

// proxiesDiffer has doctor compare the daemons' environments.
func proxiesDiffer(t *testing.T, s *testbed.Stack) {
	t.Helper()
	out, err := s.Snapctl(t.Context(), "doctor", "--json", "--containerd-config", s.ContainerdConfig())
	var said struct {
		Findings []struct{ Check, Result, Detail, Fix string }
	}
	if jerr := json.Unmarshal([]byte(out), &said); jerr != nil {
		t.Fatalf("%v, %v: %s", err, jerr, out)
	}
	for _, f := range said.Findings {
		if f.Check != "proxies" {
			continue
		}
		if f.Result != "warning" || !strings.Contains(f.Detail, `NO_PROXY is "" for containerd and "direct.test" for remorad`) ||
			!strings.Contains(f.Fix, `Environment="HTTPS_PROXY=http://containerd:`) || strings.Contains(f.Detail+f.Fix, "hidden") {
			t.Errorf("doctor says %+v", f)
		}
		return
	}
	t.Errorf("doctor says nothing of proxies: %s", out)
}
