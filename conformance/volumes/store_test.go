package volumes_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/minio/minio-go/v7/pkg/lifecycle"
	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/conformance/suite"
	"github.com/remora-storage/remora/conformance/testbed"
	"github.com/remora-storage/remora/remote/store"
	"github.com/remora-storage/remora/remote/store/s3store"
)

// An s3Server is a real one, with a bucket.
type s3Server struct {
	start       func() (*testbed.Process, error)
	process     *testbed.Process
	client      *minio.Client
	endpoint    string
	credentials string // file
}

const (
	s3User, s3Secret = "remora-tests", "remora-secret"
	s3Bucket         = "volumes"
)

// s3Servers are how each is started, with its data in a directory.
var s3Servers = map[string]func(addr, dir string) (env, args []string){
	"minio": func(addr, dir string) ([]string, []string) {
		return []string{"MINIO_ROOT_USER=" + s3User, "MINIO_ROOT_PASSWORD=" + s3Secret, "MINIO_BROWSER=off"},
			[]string{"minio", "server", "--quiet", "--address", addr, dir}
	},
	"versitygw": func(addr, dir string) ([]string, []string) {
		return nil, []string{"versitygw", "--access", s3User, "--secret", s3Secret, "--port", addr, "posix", dir}
	},
}

func startS3(t *testing.T, name string) *s3Server {
	t.Helper()
	testbed.NeedRoot(t)
	addr, err := testbed.FreeAddr()
	testbed.Must(t, err)
	dir := t.TempDir()
	data := filepath.Join(dir, "data")
	testbed.Must(t, os.Mkdir(data, 0o700))
	env, args := s3Servers[name](addr, data)
	s := &s3Server{endpoint: "http://" + addr, credentials: filepath.Join(dir, "credentials")}
	testbed.Must(t, os.WriteFile(s.credentials, fmt.Appendf(nil,
		"[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n", s3User, s3Secret), 0o600))
	s.start = func() (*testbed.Process, error) {
		return testbed.Start(filepath.Join(dir, "log"), func() bool {
			c, err := net.DialTimeout("tcp", addr, time.Second)
			if err != nil {
				return false
			}
			c.Close()
			resp, err := http.Get("http://" + addr + "/") // it may refuse us, once it can
			if err != nil {
				return false
			}
			resp.Body.Close()
			return resp.StatusCode != http.StatusServiceUnavailable
		}, env, args[0], args[1:]...)
	}
	s.process, err = s.start()
	testbed.Must(t, err)
	t.Cleanup(func() { testbed.Must(t, s.process.Stop(unix.SIGKILL)) })
	s.client, err = minio.New(addr, &minio.Options{Creds: credentials.NewStaticV4(s3User, s3Secret, "")})
	testbed.Must(t, err)
	testbed.WaitFor(t, name+" to make a bucket", func() bool {
		err = s.client.MakeBucket(t.Context(), s3Bucket, minio.MakeBucketOptions{})
		return err == nil
	})
	return s
}

func (s *s3Server) url(prefix string) string {
	return fmt.Sprintf("s3://%s/%s?endpoint=%s&region=us-east-1", s3Bucket, prefix, s.endpoint)
}

// TestStoreWarnings: a bucket that keeps what was deleted, or deletes what is in use, is warned of.
func TestStoreWarnings(t *testing.T) {
	t.Parallel()
	testbed.NeedRoot(t)
	srv := startS3(t, "minio")
	o, err := s3store.ParseURL(srv.url("ours"))
	testbed.Must(t, err)
	o.Credentials = srv.credentials
	s, err := s3store.Open(o)
	testbed.Must(t, err)
	mustWarn := func(when string, want ...string) {
		t.Helper()
		all, err := s.Warnings(t.Context())
		testbed.Must(t, err)
		if len(all) != len(want) {
			t.Errorf("%s: warnings %q, want %d", when, all, len(want))
			return
		}
		for i, w := range want {
			if !strings.Contains(all[i], w) {
				t.Errorf("%s: %q says nothing of %q", when, all[i], w)
			}
		}
	}
	set := func(rules ...lifecycle.Rule) {
		t.Helper()
		testbed.Must(t, srv.client.SetBucketLifecycle(t.Context(), s3Bucket, &lifecycle.Configuration{Rules: rules}))
	}
	rule := func(id, prefix string) lifecycle.Rule {
		return lifecycle.Rule{ID: id, Status: "Enabled", RuleFilter: lifecycle.Filter{Prefix: prefix}}
	}
	mustWarn("a plain bucket")
	testbed.Must(t, srv.client.EnableVersioning(t.Context(), s3Bucket))
	mustWarn("a bucket with versions", "old versions")
	noncurrent := rule("old", "")
	noncurrent.NoncurrentVersionExpiration.NoncurrentDays = 1
	set(noncurrent)
	mustWarn("old versions expire")
	others := rule("others", "theirs/")
	others.Expiration.Days = 1
	set(noncurrent, others)
	mustWarn("a rule about others' objects")
	expire := rule("tidy", "ours/v/")
	expire.Expiration.Days = 30
	set(noncurrent, expire)
	mustWarn("a rule that deletes what is in use", "tidy")
	testbed.Must(t, srv.client.SuspendVersioning(t.Context(), s3Bucket))
	disabled := expire
	disabled.Status = "Disabled"
	set(disabled)
	mustWarn("a rule that is disabled")
}

// TestS3Servers: real servers keep what a Store promises, and the probe says so.
func TestS3Servers(t *testing.T) {
	t.Parallel()
	testbed.NeedRoot(t)
	for name := range s3Servers {
		t.Run(name, func(t *testing.T) {
			srv := startS3(t, name)
			n := 0
			suite.Store(t, func(t *testing.T) store.Store {
				n++
				o, err := s3store.ParseURL(srv.url(fmt.Sprintf("suite-%d", n)))
				testbed.Must(t, err)
				o.Credentials = srv.credentials
				s, err := s3store.Open(o)
				testbed.Must(t, err)
				return s
			})
		})
	}
}

// TestVolumeS3: a volume in a bucket lives through kills of remorad, and through a time in which the server is gone and another in
// which it refuses the credentials: whoever writes waits, nobody sees an error, and it goes on by itself. A second node
// reads what the first one has written.
func TestVolumeS3(t *testing.T) {
	t.Parallel()
	srv := startS3(t, "minio")
	config := volumeConfig + fmt.Sprintf("credentials = %q\n", srv.credentials)
	a := testbed.New(t, testbed.Options{Bare: true, LogLevel: "info", Config: config})
	b := testbed.New(t, testbed.Options{Bare: true, LogLevel: "info", Config: config})
	mnt := filepath.Join(t.TempDir(), "mnt")
	st := srv.url("node")
	snapctl(t, a, "volume", "create", "--store", st, "data", "1G")
	snapctl(t, a, "volume", "mount", "data", mnt)
	unmountIfFailed(t, mnt)
	writers := testbed.KillUnderLoad(t, a, mnt, 3)
	testbed.Must(t, a.AwaitContainerd())

	for name, outage := range map[string]struct{ begin, end func() }{
		"the server is gone": {
			func() { testbed.Must(t, srv.process.Stop(unix.SIGKILL)) },
			func() {
				var err error
				srv.process, err = srv.start()
				testbed.Must(t, err)
			},
		},
		"the credentials are refused": {
			func() {
				testbed.Must(t, os.Rename(srv.credentials, srv.credentials+".right"))
				testbed.Must(t, os.WriteFile(srv.credentials, []byte("[default]\naws_access_key_id = x\naws_secret_access_key = y\n"), 0o600))
				testbed.Must(t, a.RestartRemorad(unix.SIGKILL)) // the right ones are not asked for again while they work
			},
			func() { testbed.Must(t, os.Rename(srv.credentials+".right", srv.credentials)) },
		},
	} {
		outage.begin()
		done := make(chan error, 1)
		go func() {
			f, err := os.OpenFile(filepath.Join(mnt, strings.ReplaceAll(name, " ", "-")), os.O_CREATE|os.O_WRONLY, 0o600)
			if err == nil {
				_, err = f.Write(make([]byte, 20<<20))
			}
			if err == nil {
				err = f.Sync()
			}
			if f != nil {
				f.Close()
			}
			done <- err
		}()
		select {
		case err := <-done:
			t.Errorf("%s: a write was flushed meanwhile (%v)", name, err)
		case <-time.After(3 * time.Second):
		}
		outage.end()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
		case <-time.After(2 * time.Minute):
			t.Fatalf("%s: the write does not go on", name)
		}
	}
	snapctl(t, a, "volume", "umount", "data")
	snapctl(t, b, "volume", "mount", "--store", st, "data", mnt)
	testbed.MustHoldWrites(t, writers, mnt)
	snapctl(t, b, "volume", "umount", "data")
	t.Log(strings.TrimSpace(snapctl(t, b, "volume", "fsck", "data")))
	snapctl(t, b, "volume", "rm", "data")
}

// proxyTo returns a handler that passes requests on to a server, with the host that they were signed for.
func proxyTo(t *testing.T, endpoint string) http.Handler {
	t.Helper()
	to, err := url.Parse(endpoint)
	testbed.Must(t, err)
	return &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(to)
		r.Out.Host = r.In.Host
	}}
}

// missingFront is a server before another one that answers 404 with a body while missing says so.
func missingFront(t *testing.T, endpoint, body string, missing *atomic.Bool) (url string) {
	t.Helper()
	proxy := proxyTo(t, endpoint)
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !missing.Load() {
			proxy.ServeHTTP(w, r)
			return
		}
		w.WriteHeader(http.StatusNotFound)
		_, _ = io.WriteString(w, body)
	}))
	t.Cleanup(front.Close)
	return front.URL
}
