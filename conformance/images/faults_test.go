package images_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/remora-storage/remora/conformance/testbed"
)

// A fault spoils the answers to remorad's requests, which are those for ranges of blobs.
type fault func(w http.ResponseWriter, r *http.Request, pass http.Handler)

// faultyProxy stands before the registry. It fails on command, which no real registry does.
type faultyProxy struct {
	*httptest.Server
	fault atomic.Pointer[fault]
	every atomic.Bool  // request gets the fault, whatever is asked for
	delay atomic.Int64 // before each range, in nanoseconds
	pass  http.Handler
}

func newFaultyProxy(t *testing.T, s *testbed.Stack) *faultyProxy {
	t.Helper()
	return newFaultyProxyOn(t, s, "127.0.0.1", false)
}

// behind is the registry that stands behind a proxy.
type behind struct {
	http.Handler
	addr string
}

// newFaultyProxyOn has the proxy listen on an address of loopback, by TLS if that is wanted.
func newFaultyProxyOn(t *testing.T, s *testbed.Stack, ip string, tls bool) *faultyProxy {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(ip, "0"))
	testbed.Must(t, err)
	p := &faultyProxy{pass: behind{registryHandler(s), s.Addr}}
	p.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/blobs/") && r.Header.Get("Range") != "" {
			time.Sleep(time.Duration(p.delay.Load()))
		}
		of := strings.Contains(r.URL.Path, "/blobs/") && r.Header.Get("Range") != "" || p.every.Load()
		if f := p.fault.Load(); f != nil && of {
			(*f)(w, r, p.pass)
			return
		}
		p.pass.ServeHTTP(w, r)
	}))
	testbed.Must(t, p.Listener.Close())
	p.Listener = l
	t.Cleanup(p.Close)
	addr := l.Addr().String()
	if !tls {
		p.Start()
		testbed.Must(t, s.PlainHTTP(addr, addr))
		return p
	}
	p.EnableHTTP2 = true
	p.StartTLS()
	testbed.Must(t, os.MkdirAll(filepath.Join(s.HostsDir, addr), 0o755))
	toml := fmt.Sprintf("server = \"https://%s\"\nskip_verify = true\n", addr)
	testbed.Must(t, os.WriteFile(filepath.Join(s.HostsDir, addr, "hosts.toml"), []byte(toml), 0o644))
	return p
}

func status(code int) fault {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { w.WriteHeader(code) }
}

func hang(_ http.ResponseWriter, r *http.Request, _ http.Handler) { <-r.Context().Done() }

// recorded passes a request on and returns the answer for a fault to spoil.
func recorded(r *http.Request, pass http.Handler) *httptest.ResponseRecorder {
	rec := httptest.NewRecorder()
	pass.ServeHTTP(rec, r)
	return rec
}

func wrongBytes(w http.ResponseWriter, r *http.Request, pass http.Handler) {
	rec := recorded(r, pass)
	body := bytes.Clone(rec.Body.Bytes())
	for i := range body {
		body[i] ^= 0x5a
	}
	for k, v := range rec.Header() {
		w.Header()[k] = v
	}
	w.WriteHeader(rec.Code)
	_, _ = w.Write(body)
}

func cut(w http.ResponseWriter, r *http.Request, pass http.Handler) {
	rec := recorded(r, pass)
	for k, v := range rec.Header() {
		w.Header()[k] = v
	}
	w.WriteHeader(rec.Code)
	_, _ = w.Write(rec.Body.Bytes()[:rec.Body.Len()/3])
	panic(http.ErrAbortHandler)
}

func wholeBlob(w http.ResponseWriter, r *http.Request, pass http.Handler) {
	r.Header.Del("Range")
	pass.ServeHTTP(w, r)
}

var faults = map[string]fault{
	"401": status(401), "403": status(403), "404": status(404), "429": status(429), "500": status(500),
	"hangs": hang, "wrong bytes": wrongBytes, "cuts every body": cut, "200 to a range": wholeBlob,
}

const impatient = "stall_timeout = \"2s\"\nattempts = 3\n[fetch]\ndeadline = \"8s\"\nunreachable = \"eio\"\nbackground = \"off\"\n"

// TestFaultsAtPull: whatever the registry does to remorad, the pull ends in a container that
// runs, by the ordinary path, with the reason told.
func TestFaultsAtPull(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{Config: impatient})
	layout := filepath.Join(t.TempDir(), "layout")
	testbed.Must(t, writeManyLayers(layout, 3))
	_, err := s.Snapctl(t.Context(), "convert", "oci:"+layout+":src", s.Ref("small:lazy"))
	testbed.Must(t, err)
	p := newFaultyProxy(t, s)
	ref := p.Listener.Addr().String() + "/small:lazy"
	for name, f := range faults {
		t.Run(name, func(t *testing.T) {
			p.fault.Store(&f)
			out, err := s.Snapctl(t.Context(), "--json", "pull", ref)
			testbed.Must(t, err)
			var pulled struct {
				Layers []struct {
					How, Reason string
				}
			}
			testbed.Must(t, json.Unmarshal([]byte(out), &pulled))
			for _, l := range pulled.Layers {
				// A layer that is small enough to be one range, or whose blob containerd has got of an
				// earlier round, is imported.
				if l.How != "imported" && (l.How != "unpacked" || l.Reason == "") {
					t.Errorf("layer is %s, reason %q", l.How, l.Reason)
				}
			}
			t.Log(pulled.Layers[0].Reason)
			root := testbed.MountImage(t, s, ref, "remora")
			if got, err := os.ReadFile(filepath.Join(root, "layers/1")); err != nil || string(got) != "layer 1" {
				t.Errorf("got %q, %v", got, err)
			}
			p.fault.Store(nil)
		})
		// A new proxy forgets what remorad remembers of this one, and a new image its layers.
		removeAll(t, s, ref)
		testbed.Must(t, s.RestartRemorad(15))
	}
}

// TestFaultsWhileRunning: a read either has the right bytes or fails; and it has them once the
// registry is well again, without anybody restarting anything.
func TestFaultsWhileRunning(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{Config: impatient, LogLevel: "info"})
	_, _ = testbed.Pushed(t, s, testbed.Python)
	want := mountOrdinary(t, s)
	for _, name := range sortedKeys(faults) { // wrong bytes come last: the layer is read whole after them
		f, p := faults[name], newFaultyProxy(t, s) // what remorad remembers of a host is no other one's
		ref := p.Listener.Addr().String() + "/python:lazy"
		t.Run(name, func(t *testing.T) {
			_, err := s.Snapctl(t.Context(), "pull", ref)
			testbed.Must(t, err)
			root := testbed.MountImage(t, s, ref, "remora")
			p.fault.Store(&f)
			const file = "usr/share/common-licenses/GPL-3"
			wanted, err := os.ReadFile(filepath.Join(want, file))
			testbed.Must(t, err)
			got, err := os.ReadFile(filepath.Join(root, file))
			if err == nil && !bytes.Equal(got, wanted) {
				t.Fatal("wrong bytes were read")
			}
			// A third each time gets there in the end, and of whole answers the beginning is of use (TestRangesEnd).
			if err == nil && name != "cuts every body" && name != "200 to a range" {
				t.Error("the fault was not seen")
			}
			t.Log(err)
			p.fault.Store(nil)
			testbed.WaitFor(t, "reads to be right again", func() bool {
				got, err = os.ReadFile(filepath.Join(root, file))
				return err == nil
			})
			if !bytes.Equal(got, wanted) {
				t.Errorf("after the fault: wrong bytes, %d of them", len(got))
			}
		})
		removeAll(t, s, ref)
		waitNoLayers(t, s)
	}
}

func mountOrdinary(t *testing.T, s *testbed.Stack) string {
	t.Helper()
	testbed.Must(t, s.PullOrdinary(t.Context(), s.Ref("python:src"), "overlayfs"))
	return testbed.MountImage(t, s, s.Ref("python:src"), "overlayfs")
}

func waitNoLayers(t *testing.T, s *testbed.Stack) {
	t.Helper()
	testbed.WaitFor(t, "the layers of a removed image to go", func() bool {
		st, err := s.Status(t.Context())
		testbed.Must(t, err)
		return len(st.Layers) == 0
	})
}

// TestDiskFull: with no room at all for data, a container runs all the same.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{Config: "[cache]\nlimit = \"4MiB\"\n", LogLevel: "info"})
	_, lazy := testbed.Pushed(t, s, testbed.Python)
	_, err := s.Snapctl(t.Context(), "pull", lazy)
	testbed.Must(t, err)
	st, err := s.Status(t.Context())
	testbed.Must(t, err)
	if len(st.Layers) == 0 {
		t.Fatal("no layer is lazy: the limit is too small for the test")
	}
	testbed.RunImage(t, s, lazy, "c", "remora", testbed.Python)
	if st, err = s.Status(t.Context()); err != nil || st.Cache.Bytes > st.Cache.Limit {
		t.Errorf("%d bytes of %d, %v", st.Cache.Bytes, st.Cache.Limit, err)
	}
}
