package images_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/remora-storage/remora/conformance/testbed"
)

// A lonely registry is one that only the client can use: remorad has not what it takes.
type lonely struct {
	host string   // that images are pulled from
	user string   // NAME:PASSWORD that the client has, if any
	args []string // that ctr and snapctl are called with
	env  []string // of the client, as is that of containerd, which downloads for ctr
}

// TestImagesOfTheClientAlone: real images, in make soak all those of the benchmarks, start with each client where only that client has
// the credentials, knows the proxy, or was told to use plain HTTP.
func TestImagesOfTheClientAlone(t *testing.T) {
	t.Parallel()
	hosts := map[string]string{}
	proxy := newForwardProxy(t, hosts)
	s := testbed.New(t, testbed.Options{LogLevel: "info", Config: impatient, ContainerdEnv: proxy.env("containerd")})
	hosts["proxied.test"] = s.Addr
	testbed.Must(t, os.MkdirAll(filepath.Join(s.HostsDir, "proxied.test"), 0o755))
	testbed.Must(t, os.WriteFile(filepath.Join(s.HostsDir, "proxied.test", "hosts.toml"), []byte("server = \"http://proxied.test\"\n"), 0o644))
	ways := map[string]lonely{
		"credentials": {host: serveAt(t, "127.0.0.1", askForCredentials(registryHandler(s))), user: testbed.User + ":" + testbed.Password},
		"plain HTTP":  {host: serveAt(t, outsideAddress(t), registryHandler(s)), args: []string{"--plain-http"}},
		"proxy":       {host: "proxied.test", env: proxy.env("client")},
	}
	hosts[ways["plain HTTP"].host] = ways["plain HTTP"].host // containerd asks for it, too, through the proxy
	pullers := map[string]func(ctx context.Context, l lonely, ref string) error{
		"ctr": func(ctx context.Context, l lonely, ref string) error {
			args := append([]string{"images", "pull", "--hosts-dir", s.HostsDir, "--snapshotter", "remora"}, l.args...)
			if l.user != "" {
				args = append(args, "--user", l.user)
			}
			_, err := s.Ctr(ctx, append(args, ref)...)
			return err
		},
		"snapctl": func(ctx context.Context, l lonely, ref string) error {
			args, env := append([]string{"pull"}, l.args...), append(s.SnapctlEnv(), l.env...)
			if name, password, ok := strings.Cut(l.user, ":"); ok {
				args, env = append(args, "--user", name), append(env, "SNAPCTL_PASSWORD="+password)
			}
			_, err := testbed.Output(ctx, env, "snapctl", append(args, ref)...)
			return err
		},
	}
	for _, labels := range []bool{true, false} {
		pullers[map[bool]string{true: "labels", false: "no labels"}[labels]] = func(ctx context.Context, l lonely, ref string) error {
			return outsideClientBy(ctx, s, ref, l.user, labels, func(c *http.Client) {
				for _, setting := range l.env {
					if at, ok := strings.CutPrefix(setting, "HTTP_PROXY="); ok {
						proxy, err := url.Parse(at)
						testbed.Must(t, err)
						c.Transport.(*http.Transport).Proxy = http.ProxyURL(proxy)
					}
				}
			}, len(l.args) > 0)
		}
	}
	programs := map[string]testbed.Program{}
	for _, p := range testbed.BenchPrograms[:testbed.Rounds(len(testbed.Programs), len(testbed.BenchPrograms))] {
		programs[p.Name] = p
	}
	var table strings.Builder
	for i, c := range testbed.Covering(t, testbed.Combinations(sortedKeys(programs), sortedKeys(pullers), sortedKeys(ways))) {
		p, l := programs[c[0]], ways[c[2]]
		layout, err := p.Layout(t.Context())
		testbed.Must(t, err)
		name := fmt.Sprintf("alone/%s%d:src", p.Name, i)
		testbed.Must(t, s.Push(t.Context(), layout, "src", name))
		ref := l.host + "/" + name
		if err := pullers[c[1]](t.Context(), l, ref); err != nil {
			t.Errorf("%s: %v", c, err)
			continue
		}
		how := suppliedBy(t, s, ref, len(manifestOf(t, layout, "src").Layers))
		fmt.Fprintf(&table, "%-11s %-10s %-12s %s\n", c[0], c[1], c[2], how)
		testbed.RunImage(t, s, ref, fmt.Sprint("alone", i), "remora", p)
		removeAll(t, s, ref)
	}
	t.Log("\n" + table.String())
}

func registryHandler(s *testbed.Stack) http.Handler {
	return httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: s.Addr})
}

// askForCredentials lets in whoever has the credentials of the test bed's registry.
func askForCredentials(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if name, password, _ := r.BasicAuth(); name != testbed.User || password != testbed.Password {
			w.Header().Set("WWW-Authenticate", `Basic realm="registry"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// serveAt serves at a free port of an address.
func serveAt(t *testing.T, address string, h http.Handler) (host string) {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
	testbed.Must(t, err)
	server := &httptest.Server{Listener: l, Config: &http.Server{Handler: h}}
	server.Start()
	t.Cleanup(server.Close)
	return l.Addr().String()
}

// outsideAddress returns an address of this machine that nobody takes for itself: a registry there is asked by TLS unless somebody says
// otherwise.
func outsideAddress(t *testing.T) string {
	t.Helper()
	all, err := net.InterfaceAddrs()
	testbed.Must(t, err)
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && n.IP.IsGlobalUnicast() {
			return n.IP.String()
		}
	}
	t.Fatal("this machine has no IPv4 address but the loopback's")
	return ""
}
