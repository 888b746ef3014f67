package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/remora-storage/remora/cmd/internal/control"
)

// TestServe starts remorad, asks it for everything that it tells of itself, stops it, and starts it again on the same root.
func TestServe(t *testing.T) {
	d := newDaemon(t, "cache.limit = \"64MiB\"\nmetrics.address = \"127.0.0.1:0\"\n")
	st, err := d.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if st.Root != d.path("root") || st.Backend.Name != "" || st.Backend.Reason != "this machine has no way" || st.Cache.Limit != 64<<20 ||
		st.Holder.PID != 0 {
		t.Errorf("status: %+v", st)
	}
	if len(st.Layers)+len(st.Broken)+len(st.Waiting) > 0 {
		t.Errorf("something is there: %+v", st)
	}
	if s, err := os.Stat(d.path("remora.sock")); err != nil || s.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", s, err)
	}
	for call, do := range map[string]func() error{
		"cache": func() error {
			c, err := d.Cache(t.Context())
			if err == nil && (len(c.Entries) != 0 || c.Limit != 64<<20) {
				t.Errorf("cache: %+v", c)
			}
			return err
		},
		"prune":  func() error { _, err := d.Prune(t.Context()); return err },
		"detach": func() error { _, err := d.Detach(t.Context()); return err },
		"disks":  func() error { _, err := d.Disks(t.Context()); return err },
		"login": func() error {
			return d.Login(t.Context(), &control.LoginRequest{Host: "r.example.com", User: "robot", Secret: "secret"})
		},
	} {
		if err := do(); err != nil {
			t.Errorf("%s: %v", call, err)
		}
	}
	if s, err := os.Stat(d.path("root/logins.json")); err != nil || s.Mode().Perm() != 0o600 {
		t.Errorf("what was logged in: %v, %v", s, err)
	}
	_, err = d.Pin(t.Context(), &control.PinRequest{Image: "r.example.com/none:1", Pin: true})
	fails(t, err, "r.example.com/none:1")
	_, err = d.AttachDisk(t.Context(), &control.AttachDiskRequest{File: "disk.img", Sector: 4096})
	fails(t, err, "disk.img is no absolute path")
	if r, err := d.DetachDisk(t.Context(), &control.DetachDiskRequest{Name: d.path("disk.img")}); err != nil || r.Disk != nil {
		t.Errorf("a disk that was never attached: %+v, %v", r, err)
	}

	// A second one, on the same root or the same socket.
	fails(t, d.run(t.Context()), "another remorad runs on "+d.path("root"))
	fails(t, d.run(t.Context(), "--root", d.path("other")), "already serves on "+d.path("remora.sock"))

	if err := d.stop(); err != nil {
		t.Errorf("the end: %v", err)
	}
	if _, err := os.Stat(d.path("remora.sock")); err == nil {
		t.Error("the socket stays")
	}
	if err := d.start(""); err != nil {
		t.Fatalf("the second start: %v", err)
	}
	if err := d.stop(); err != nil {
		t.Errorf("the second end: %v", err)
	}
}

// TestMetrics: metrics are served until the end, and profiles of the process only where they have an address of their own: a
// port, or a socket of root's.
func TestMetrics(t *testing.T) {
	dir := shortDir(t)
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	socket, profiles := filepath.Join(dir, "s.sock"), filepath.Join(dir, "pprof.sock")
	for want, at := range map[string]addresses{
		"[metrics] address": {socket, "nowhere:port", ""}, "[pprof] address": {socket, "", "nowhere:port"}, "is no socket": {file, "", ""},
	} {
		fails(t, listen(t.Context(), at, grpc.NewServer(), prometheus.NewRegistry(), t.FailNow, discard()), want)
	}

	addr := freePort(t)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	metrics := prometheus.NewRegistry()
	metrics.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "remora_test"}, func() float64 { return 42 }))
	go func() {
		ended <- listen(ctx, addresses{socket, addr, profiles}, grpc.NewServer(), metrics, func() {}, discard())
	}()
	get := func(c *http.Client, path string) (status int, body string) {
		waitFor(t, "metrics are served", func() bool {
			resp, err := c.Get("http://" + addr + path)
			if err != nil {
				return false
			}
			defer resp.Body.Close()
			p, err := io.ReadAll(resp.Body)
			status, body = resp.StatusCode, string(p)
			return err == nil
		})
		return status, body
	}
	if status, body := get(http.DefaultClient, "/metrics"); !regexp.MustCompile(`(?m)^remora_test 42$`).MatchString(body) {
		t.Errorf("metrics: %d\n%s", status, body)
	}
	if status, body := get(http.DefaultClient, "/debug/pprof/"); status != http.StatusNotFound {
		t.Errorf("profiles beside the metrics: %d\n%s", status, body)
	}
	private := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", profiles)
	}}}
	defer private.CloseIdleConnections()
	if status, body := get(private, "/debug/pprof/"); status != http.StatusOK || !strings.Contains(body, "goroutine") {
		t.Errorf("profiles: %d\n%s", status, body)
	}
	if st, err := os.Stat(profiles); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the socket of profiles: %v, %v", st, err)
	}
	stop()
	if err := <-ended; err != nil {
		t.Errorf("the end: %v", err)
	}
	if _, err := http.Get("http://" + addr + "/metrics"); err == nil {
		t.Error("metrics are served after the end")
	}

	ctx, stop = context.WithCancel(t.Context())
	at := filepath.Join(dir, "metrics.sock")
	go func() {
		ended <- listen(ctx, addresses{socket, at, ""}, grpc.NewServer(), metrics, func() {}, discard())
	}()
	waitFor(t, "the socket of metrics", func() bool {
		st, err := os.Stat(at)
		if err == nil && st.Mode().Perm() != 0o600 {
			t.Errorf("the socket of metrics has mode %v", st.Mode())
		}
		return err == nil
	})
	stop()
	if err := <-ended; err != nil {
		t.Errorf("the end: %v", err)
	}
}
