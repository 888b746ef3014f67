package registry_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/remote/registry"
)

// data is the blob that all servers here serve.
var data = func() []byte {
	r := rand.New(rand.NewPCG(1, 2))
	p := make([]byte, 300_000)
	for i := range p {
		p[i] = byte(r.Uint32())
	}
	return p
}()

var repo = "some/app"

// server is a registry that misbehaves as a test says: a real HTTP server, since no registry
// fails on command.
type server struct {
	*httptest.Server
	requests atomic.Int64
	fault    func(w http.ResponseWriter, r *http.Request, n int64) (handled bool)
}

func newServer(t *testing.T, fault func(w http.ResponseWriter, r *http.Request, n int64) bool) *server {
	t.Helper()
	s := &server{fault: fault}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n := s.requests.Add(1)
	if s.fault != nil && s.fault(w, r, n) {
		return
	}
	if !strings.Contains(r.URL.Path, "/blobs/") {
		http.NotFound(w, r)
		return
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
}

func (s *server) host() string { return s.Listener.Addr().String() }

// hostsDir writes hosts.toml for a registry.
func hostsDir(t *testing.T, reg, toml string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, reg), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, reg, "hosts.toml"), []byte(toml), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

func plain(host string) string {
	return fmt.Sprintf("server = %q\n[host.%q]\n  capabilities = [\"pull\",\"resolve\"]\n", "http://"+host, "http://"+host)
}

func blobOn(t *testing.T, reg, toml string, opts registry.Options) *registry.Blob {
	t.Helper()
	opts.ConfigPath = []string{hostsDir(t, reg, toml)}
	if opts.Retry.First == 0 {
		opts.Retry.First = time.Millisecond
	}
	if opts.Stall == 0 {
		opts.Stall = 2 * time.Second
	}
	return registry.New(opts).Blob(registry.Repository{Host: reg, Path: repo}, digest.FromBytes(data), int64(len(data)))
}

func read(ctx context.Context, b *registry.Blob, off, n int) ([]byte, error) {
	p := make([]byte, n)
	k, err := b.ReadAt(ctx, p, int64(off))
	return p[:k], err
}

func wantRange(t *testing.T, b *registry.Blob, off, n int) {
	t.Helper()
	got, err := read(t.Context(), b, off, n)
	if err != nil {
		t.Fatalf("read %d+%d: %v", off, n, err)
	}
	if !bytes.Equal(got, data[off:off+n]) {
		t.Fatalf("read %d+%d: wrong bytes", off, n)
	}
}

func TestRanges(t *testing.T) {
	s := newServer(t, nil)
	b := blobOn(t, "reg.test", plain(s.host()), registry.Options{})
	for _, r := range [][2]int{{0, 1}, {0, len(data)}, {len(data) - 1, 1}, {1234, 56789}} {
		wantRange(t, b, r[0], r[1])
	}
	for _, r := range [][2]int64{{-1, 5}, {0, int64(len(data)) + 1}, {int64(len(data)), 1}, {5, 0}} {
		if _, err := b.Open(t.Context(), r[0], r[1], 0); err == nil {
			t.Errorf("range %d+%d outside the blob was accepted", r[0], r[1])
		}
	}
}

// answer is a fault: every request gets a status.
func answer(status int) func(http.ResponseWriter, *http.Request, int64) bool {
	return func(w http.ResponseWriter, _ *http.Request, _ int64) bool {
		w.WriteHeader(status)
		return true
	}
}

// TestWrongAnswers: each of these must be an error, and never data.
func TestWrongAnswers(t *testing.T) {
	t.Parallel() // with others that wait
	partial := func(w http.ResponseWriter, contentRange string, body []byte) bool {
		w.Header().Set("Content-Range", contentRange)
		w.WriteHeader(http.StatusPartialContent)
		_, _ = w.Write(body)
		return true
	}
	for name, c := range map[string]struct {
		fault func(w http.ResponseWriter, r *http.Request, n int64) bool
		want  error
	}{
		"200 to a range": {func(w http.ResponseWriter, _ *http.Request, _ int64) bool {
			_, _ = w.Write(data)
			return true
		}, registry.ErrRange},
		"range of other bytes": {func(w http.ResponseWriter, _ *http.Request, _ int64) bool {
			return partial(w, fmt.Sprintf("bytes 0-99/%d", len(data)), data[:100])
		}, registry.ErrRange},
		"other total": {func(w http.ResponseWriter, _ *http.Request, _ int64) bool {
			return partial(w, "bytes 100-199/12345", data[100:200])
		}, registry.ErrRange},
		"no Content-Range": {func(w http.ResponseWriter, _ *http.Request, _ int64) bool {
			return partial(w, "", data[100:200])
		}, registry.ErrRange},
		"nonsense Content-Range": {func(w http.ResponseWriter, _ *http.Request, _ int64) bool {
			return partial(w, "bytes 99999999999999999999-1/-", data[100:200])
		}, registry.ErrRange},
		"short body": {func(w http.ResponseWriter, _ *http.Request, _ int64) bool {
			return partial(w, fmt.Sprintf("bytes 100-199/%d", len(data)), data[100:150])
		}, registry.ErrRange}, // its length is announced
		"404":                     {answer(404), registry.ErrNotFound},
		"403":                     {answer(403), registry.ErrUnauthorized},
		"401 without a challenge": {answer(401), registry.ErrUnauthorized},
		"401 for ever": {func(w http.ResponseWriter, r *http.Request, _ int64) bool {
			if r.URL.Path == "/token" {
				_, _ = io.WriteString(w, `{"token":"x"}`)
				return true
			}
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+r.Host+`/token",service="s",error="invalid_token"`)
			w.WriteHeader(401)
			return true
		}, registry.ErrUnauthorized},
		"redirects for ever": {func(w http.ResponseWriter, r *http.Request, _ int64) bool {
			http.Redirect(w, r, r.URL.String(), http.StatusTemporaryRedirect)
			return true
		}, nil},
		"redirect to a file": {func(w http.ResponseWriter, r *http.Request, _ int64) bool {
			w.Header().Set("Location", "file:///etc/passwd")
			w.WriteHeader(307)
			return true
		}, nil},
		"500 for ever": {func(w http.ResponseWriter, _ *http.Request, _ int64) bool { w.WriteHeader(500); return true }, nil},
		"429 for ever": {func(w http.ResponseWriter, _ *http.Request, _ int64) bool { w.WriteHeader(429); return true }, nil},
		"nothing but a header": {func(w http.ResponseWriter, _ *http.Request, _ int64) bool {
			c, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				t.Error(err)
				return true
			}
			_, _ = io.WriteString(c, "HTTP/1.1 206 Partial Content\r\n")
			c.Close()
			return true
		}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, c.fault)
			b := blobOn(t, "reg.test", plain(s.host()), registry.Options{Retry: registry.Retry{Attempts: 3}})
			got, err := read(t.Context(), b, 100, 100)
			if err == nil || len(got) == 100 {
				t.Fatalf("got %d bytes and error %v", len(got), err)
			}
			if c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			t.Log(err)
		})
	}
}

// TestTransientFailures: each of these must be overcome.
func TestTransientFailures(t *testing.T) {
	for name, fault := range map[string]func(w http.ResponseWriter, r *http.Request, n int64) bool{
		"500 twice": func(w http.ResponseWriter, _ *http.Request, n int64) bool {
			if n <= 2 {
				w.WriteHeader(500)
			}
			return n <= 2
		},
		"429 with Retry-After": func(w http.ResponseWriter, _ *http.Request, n int64) bool {
			if n == 1 {
				w.Header().Set("Retry-After", "0")
				w.WriteHeader(429)
			}
			return n == 1
		},
		"cut in the middle, again and again": func(w http.ResponseWriter, r *http.Request, n int64) bool {
			var from, to int
			if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &from, &to); err != nil {
				t.Error(err)
			}
			if to-from < 2000 {
				return false
			}
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to, len(data)))
			w.Header().Set("Content-Length", fmt.Sprint(to-from+1))
			w.WriteHeader(206)
			_, _ = w.Write(data[from : from+(to-from)/2])
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		},
		"connection reset": func(w http.ResponseWriter, _ *http.Request, n int64) bool {
			if n > 2 {
				return false
			}
			c, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				t.Error(err)
				return true
			}
			_ = c.(*net.TCPConn).SetLinger(0)
			c.Close()
			return true
		},
		"hangs before the header": func(_ http.ResponseWriter, r *http.Request, n int64) bool {
			if n == 1 {
				<-r.Context().Done()
			}
			return n == 1
		},
		"hangs in the body": func(w http.ResponseWriter, r *http.Request, n int64) bool {
			if n > 1 {
				return false
			}
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 1000-200999/%d", len(data)))
			w.WriteHeader(206)
			_, _ = w.Write(data[1000:5000])
			w.(http.Flusher).Flush()
			<-r.Context().Done()
			return true
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, fault)
			b := blobOn(t, "reg.test", plain(s.host()), registry.Options{Stall: 200 * time.Millisecond, Retry: registry.Retry{Attempts: 12}})
			wantRange(t, b, 1000, 200_000)
		})
	}
}

func TestContextEndsAWait(t *testing.T) {
	s := newServer(t, func(_ http.ResponseWriter, r *http.Request, _ int64) bool { <-r.Context().Done(); return true })
	b := blobOn(t, "reg.test", plain(s.host()), registry.Options{Stall: time.Hour})
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, err := read(ctx, b, 0, 10); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
}

func TestMirrorThenOrigin(t *testing.T) {
	var asked []string
	var mu sync.Mutex
	note := func(name string, status int) func(w http.ResponseWriter, r *http.Request, n int64) bool {
		return func(w http.ResponseWriter, r *http.Request, _ int64) bool {
			mu.Lock()
			asked = append(asked, name+" ns="+r.URL.Query().Get("ns"))
			mu.Unlock()
			if status != 0 {
				w.WriteHeader(status)
			}
			return status != 0
		}
	}
	origin := newServer(t, note("origin", 0))
	for name, status := range map[string]int{"mirror has it": 0, "mirror lacks it": 404, "mirror is broken": 502} {
		t.Run(name, func(t *testing.T) {
			asked = nil
			mirror := newServer(t, note("mirror", status))
			toml := fmt.Sprintf("server = %q\n[host.%q]\n  capabilities = [\"pull\"]\n  [host.%q.header]\n    x-test = \"mirror only\"\n",
				"http://"+origin.host(), "http://"+mirror.host(), "http://"+mirror.host())
			b := blobOn(t, "reg.test", toml, registry.Options{})
			wantRange(t, b, 7, 77)
			if asked[0] != "mirror ns=reg.test" {
				t.Errorf("asked %v: want the mirror first, with ns", asked)
			}
			if status != 0 && len(asked) < 2 {
				t.Errorf("asked %v: want the origin after the mirror", asked)
			}
		})
	}
}

// TestTokens: credentials go to the token server alone, expired tokens are renewed, and what a
// redirect leads to never sees them.
func TestTokens(t *testing.T) {
	var tokens atomic.Int64
	storage := newServer(t, func(w http.ResponseWriter, r *http.Request, _ int64) bool {
		if r.Header.Get("Authorization") != "" {
			t.Error("the storage behind a redirect was sent credentials")
		}
		return false
	})
	var reg *server
	reg = newServer(t, func(w http.ResponseWriter, r *http.Request, n int64) bool {
		if r.URL.Path == "/token" {
			if err := r.ParseForm(); err != nil {
				t.Error(err)
			}
			user, pass, _ := r.BasicAuth()
			if (user != "robot" || pass != "secret") && (r.Form.Get("username") != "robot" || r.Form.Get("password") != "secret") {
				w.WriteHeader(401)
				return true
			}
			token := fmt.Sprintf("token-%d", tokens.Add(1))
			_ = json.NewEncoder(w).Encode(map[string]any{"token": token, "access_token": token})
			return true
		}
		if r.Header.Get("Authorization") != fmt.Sprintf("Bearer token-%d", tokens.Load()) || tokens.Load() == 0 {
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(
				`Bearer realm="http://%s/token",service="reg",scope="repository:%s:pull",error="invalid_token"`, reg.host(), repo))
			w.WriteHeader(401)
			return true
		}
		http.Redirect(w, r, "http://"+storage.host()+r.URL.Path+"/blobs/?signature=abc", http.StatusTemporaryRedirect)
		return true
	})
	config := filepath.Join(t.TempDir(), "config.json")
	auth := base64.StdEncoding.EncodeToString([]byte("robot:secret"))
	if err := os.WriteFile(config, []byte(`{"auths":{"`+reg.host()+`":{"auth":"`+auth+`"}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	b := blobOn(t, "reg.test", plain(reg.host()), registry.Options{DockerConfig: config})
	wantRange(t, b, 0, 1000)
	before := reg.requests.Load()
	wantRange(t, b, 5000, 1000)
	if n := reg.requests.Load() - before; n != 0 {
		t.Errorf("the second read asked the registry %d times: the redirect was not remembered", n)
	}
	tokens.Add(1) // all tokens so far have expired
	storage.fault = func(w http.ResponseWriter, r *http.Request, _ int64) bool {
		if r.URL.Query().Get("signature") == "abc" && storage.requests.Load() == 3 {
			w.WriteHeader(403) // and so has the signature
			return true
		}
		return false
	}
	wantRange(t, b, 9000, 1000)

	wrong := blobOn(t, "reg.test", plain(reg.host()), registry.Options{Retry: registry.Retry{Attempts: 2}})
	_, err := read(t.Context(), wrong, 0, 10)
	if !errors.Is(err, registry.ErrUnauthorized) {
		t.Errorf("without credentials: got %v", err)
	}
	if err != nil && (strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "signature")) {
		t.Errorf("a credential is in the message: %v", err)
	}
}

func TestCredentialHelper(t *testing.T) {
	dir := t.TempDir()
	helper := "#!/bin/sh\nread host\n" +
		"echo \"{\\\"ServerURL\\\":\\\"$host\\\",\\\"Username\\\":\\\"robot\\\",\\\"Secret\\\":\\\"fromhelper\\\"}\"\n"
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-test"), []byte(helper), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	s := newServer(t, func(w http.ResponseWriter, r *http.Request, _ int64) bool {
		if _, pass, _ := r.BasicAuth(); pass != "fromhelper" {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(401)
			return true
		}
		return false
	})
	config := filepath.Join(dir, "config.json")
	if err := os.WriteFile(config, []byte(`{"credHelpers":{"`+s.host()+`":"test"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	wantRange(t, blobOn(t, "reg.test", plain(s.host()), registry.Options{DockerConfig: config}), 3, 33)
}

// TestSecretsAreNotTold: whatever goes wrong behind a redirect to a signed URL, neither it nor the token is in the error, which goes to
// the log.
func TestSecretsAreNotTold(t *testing.T) {
	closed := httptest.NewServer(nil)
	closed.Close()
	for name, fails := range map[string]func(w http.ResponseWriter, r *http.Request, n int64) bool{
		"500": answer(500), "403": answer(403), "404": answer(404),
		"302 to itself": func(w http.ResponseWriter, r *http.Request, _ int64) bool {
			http.Redirect(w, r, r.URL.String(), http.StatusFound)
			return true
		},
		"a cut answer": func(w http.ResponseWriter, _ *http.Request, _ int64) bool {
			w.Header().Set("Content-Length", "100")
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 0-99/%d", len(data)))
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(data[:10])
			return true
		},
		"a broken connection": func(w http.ResponseWriter, _ *http.Request, _ int64) bool {
			if c, _, err := w.(http.Hijacker).Hijack(); err == nil {
				c.Close()
			}
			return true
		},
		"nobody there": nil,
	} {
		t.Run(name, func(t *testing.T) {
			storage := closed.Listener.Addr().String()
			if fails != nil {
				storage = newServer(t, fails).host()
			}
			var asked atomic.Bool
			var reg *server
			reg = newServer(t, func(w http.ResponseWriter, r *http.Request, _ int64) bool {
				switch {
				case r.URL.Path == "/token":
					_ = json.NewEncoder(w).Encode(map[string]any{"token": "secret-token", "access_token": "secret-token"})
				case r.Header.Get("Authorization") != "Bearer secret-token":
					w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+reg.host()+`/token",service="reg",scope="repository:`+repo+`:pull"`)
					w.WriteHeader(401)
				default:
					asked.Store(true)
					to := "http://user:secret-word@" + storage + r.URL.Path + "/blobs/?signature=secret-signature"
					http.Redirect(w, r, to, http.StatusTemporaryRedirect)
				}
				return true
			})
			var log bytes.Buffer
			opts := registry.Options{
				Retry: registry.Retry{Attempts: 2}, Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})),
			}
			b := blobOn(t, "reg.test", plain(reg.host()), opts)
			_, err := read(t.Context(), b, 0, 100)
			if err == nil || !asked.Load() {
				t.Fatalf("it was read, or the token was not used: %v", err)
			}
			if said := err.Error() + log.String(); strings.Contains(said, "secret") {
				t.Errorf("a secret is told: %s", said)
			}
		})
	}
}

func TestLoginsSurvive(t *testing.T) {
	path := filepath.Join(t.TempDir(), "logins.json")
	l, err := registry.OpenLogins(path, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	want := registry.Login{User: "u", Secret: "s", PlainHTTP: true}
	if changed, err := l.Set("reg.test:5000", want); err != nil || !changed {
		t.Fatal(changed, err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", st.Mode(), err)
	}
	again, err := registry.OpenLogins(path, slog.New(slog.DiscardHandler))
	if err != nil || again.Get("reg.test:5000") != want {
		t.Fatalf("got %+v, %v", again.Get("reg.test:5000"), err)
	}
}

func TestNothingIsLeft(t *testing.T) {
	s := newServer(t, nil)
	b := blobOn(t, "reg.test", plain(s.host()), registry.Options{})
	wantRange(t, b, 0, 10)
	before := runtime.NumGoroutine()
	for range 20 {
		r, err := b.Open(t.Context(), 0, int64(len(data)), 0)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = r.Read(make([]byte, 10)) // and leave
		r.Close()
	}
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if runtime.NumGoroutine() <= before+4 { // idle connections
			return
		}
	}
	t.Errorf("%d goroutines, %d before", runtime.NumGoroutine(), before)
}

func TestRetryable(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		want bool
	}{
		"none":      {nil, false},
		"canceled":  {context.Canceled, false},
		"500":       {&registry.StatusError{Status: 500}, true},
		"501":       {&registry.StatusError{Status: 501}, false},
		"429":       {&registry.StatusError{Status: 429}, true},
		"404":       {&registry.StatusError{Status: 404}, false},
		"416":       {&registry.StatusError{Status: 416}, false},
		"range":     {fmt.Errorf("x: %w", registry.ErrRange), false},
		"cut":       {io.ErrUnexpectedEOF, true},
		"refused":   {&net.OpError{Op: "dial", Err: errors.New("refused")}, true},
		"a mystery": {errors.New("x"), false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := registry.Retryable(c.err); got != c.want {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

// TestAnnouncedRanges: a range that contradicts itself, or the request, is refused; what a server announces sizes nothing.
func TestAnnouncedRanges(t *testing.T) {
	for _, header := range []string{
		"bytes 100-199/50", "bytes 100-199/150", "bytes 100-90/300000", "bytes 0-99/300000", "bytes 100-9223372036854775806/300000",
		"bytes 100-199/9223372036854775807", "bytes 100-299/300000", "bytes */300000", "",
	} {
		s := newServer(t, func(w http.ResponseWriter, _ *http.Request, _ int64) bool {
			w.Header().Set("Content-Range", header)
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(data[100:200])
			return true
		})
		b := blobOn(t, s.host(), plain(s.host()), registry.Options{Retry: registry.Retry{Attempts: 1}})
		if _, err := b.ReadAt(t.Context(), make([]byte, 100), 100); !errors.Is(err, registry.ErrRange) {
			t.Errorf("%q: %v", header, err)
		}
	}
}
