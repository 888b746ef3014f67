package main

import (
	"bytes"
	"context"
	"io"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/remora-storage/remora/cmd/internal/cmdtest"
)

// serving runs "dev serve" until the function returns, which gets what was printed.
func serving(u *user, use func(said string), args ...string) *result {
	u.t.Helper()
	ctx, stop := context.WithCancel(u.t.Context())
	defer stop()
	stdout, stderr := new(cmdtest.Output), new(cmdtest.Output)
	ended := make(chan error, 1)
	full := append([]string{"dev", "serve"}, args...)
	go func() { ended <- u.app(stdout, stderr).run(ctx, full) }()
	for said := ""; !strings.Contains(said, "serving "); said = stdout.String() {
		select {
		case err := <-ended:
			return &result{t: u.t, args: full, stdout: stdout.String(), stderr: stderr.String(), err: err}
		default:
		}
	}
	use(stdout.String())
	stop()
	return &result{t: u.t, args: full, stdout: stdout.String(), stderr: stderr.String(), err: <-ended}
}

// greeting returns how a server greets a client.
func greeting(t *testing.T, network, addr string) string {
	t.Helper()
	c, err := new(net.Dialer).DialContext(t.Context(), network, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	p := make([]byte, 16)
	if _, err := io.ReadFull(c, p); err != nil {
		t.Fatal(err)
	}
	return string(p)
}

// TestDevServe serves memory and a file, on a Unix socket and by TCP, until it is told to stop.
func TestDevServe(t *testing.T) {
	const hello = "NBDMAGICIHAVEOPT"
	u := newUser(t)
	socket := u.path("nbd.sock")
	serving(u, func(said string) {
		if want := "serving memory:1MiB (1MiB, read-write) at nbd+unix:///scratch?socket=" + socket + "\n"; said != want {
			t.Errorf("said %q, want %q", said, want)
		}
		if got := greeting(t, "unix", socket); got != hello {
			t.Errorf("greeted with %q", got)
		}
		st, err := os.Stat(socket)
		if err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("the socket: %v, %v", st, err)
		}
		u.run("dev", "serve", "--unix", socket, "memory:1MiB").fails(1, "another process already serves on "+socket)
	}, "--unix", socket, "--export", "scratch", "memory:1MiB").ok()
	if exists(socket) {
		t.Error("the socket stays")
	}
	file := u.file("disk.img", strings.Repeat("x", 1<<16))
	serving(u, func(said string) {
		contains(t, said, "(64KiB, read-only)", "nbd://127.0.0.1:")
		at := said[strings.Index(said, "127.0.0.1:"):]
		if got := greeting(t, "tcp", at[:strings.Index(at, "/")]); got != hello {
			t.Errorf("greeted with %q", got)
		}
	}, "--tcp", "127.0.0.1:0", "--read-only", "--verbose", file).ok()
	if p, err := os.ReadFile(file); err != nil || !bytes.Equal(p, bytes.Repeat([]byte("x"), 1<<16)) {
		t.Errorf("the file has changed: %v", err)
	}
}

// TestDevServeWarns: who can use a device that is served by TCP is said, on loopback as elsewhere.
func TestDevServeWarns(t *testing.T) {
	u := newUser(t)
	for _, c := range []struct {
		address string
		words   []string
	}{
		{":0", []string{"everyone who reaches it can use this device", "--tls-ca"}},
		{"127.0.0.1:0", []string{"every user of this machine can use this device", "--tls-ca", "--unix"}},
	} {
		r := serving(u, func(string) {}, "--tcp", c.address, "memory:1MiB")
		r.ok()
		contains(t, r.stderr, c.words...)
	}
	r := serving(u, func(string) {}, "--unix", u.path("nbd.sock"), "memory:1MiB")
	r.ok()
	if r.stderr != "" {
		t.Errorf("a warning of a socket that only root can use: %s", r.stderr)
	}
}

// TestDevServeUsage refuses what cannot be served, before it listens.
func TestDevServeUsage(t *testing.T) {
	u := newUser(t)
	file := u.file("not.pem", "hello")
	for want, args := range map[string][]string{
		"--unix and --tcp: choose one":     {"--unix", "a", "--tcp", ":1", "memory:1MiB"},
		"--clients 0: want 1 or more":      {"--clients", "0", "memory:1MiB"},
		"--tls-ca needs the server's own":  {"--tls-ca", file, "memory:1MiB"},
		"--tls-cert and --tls-key belong":  {"--tls-cert", file, "memory:1MiB"},
		"want a size, for example":         {"memory:lots"},
		"memory:0: want a size":            {"memory:0"},
		"one FILE, memory:SIZE or IMAGE@L": {},
	} {
		u.run(append([]string{"dev", "serve"}, args...)...).fails(2, want)
	}
	u.run("dev", "serve", u.path("none.img")).fails(1, "none.img")
	u.run("dev", "serve", "--tls-cert", file, "--tls-key", file, "memory:1MiB").fails(1, "--tls-cert "+file)
	u.run("dev", "serve", "--unix", file, "memory:1MiB").fails(1, file+" is there and is no socket")
	u.hurried("dev", "serve", "app@sha256:"+strings.Repeat("0", 64)).fails(1, u.containerd)
}

// TestLayerTarget tells layers from files.
func TestLayerTarget(t *testing.T) {
	u := newUser(t)
	layer := "sha256:" + strings.Repeat("0", 64)
	for target, want := range map[string]bool{
		"app@" + layer: true, "r.example.com/app:1@" + layer: true, "@" + layer: false, "app": false, "app@sha256:short": false,
		"disk@home.img": false,
	} {
		if image, d, ok := layerTarget(target); ok != want || ok && image+"@"+d.String() != target {
			t.Errorf("%s: %s, %s, %v", target, image, d, ok)
		}
	}
	if _, _, ok := layerTarget(u.file("x@"+layer, "")); ok {
		t.Error("a file of such a name is no file")
	}
}
