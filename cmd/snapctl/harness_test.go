package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/remora-storage/remora/cmd/internal/cli"
	"github.com/remora-storage/remora/cmd/internal/cmdtest"
)

// A user is somebody who types commands: with a home directory, and with containerd and remorad at sockets of their own,
// where nobody listens unless a test serves there.
type user struct {
	t                   *testing.T
	home                string
	containerd, remorad string // sockets
	patience            time.Duration
	types               string // what stdin has for the next command
}

func newUser(t *testing.T) *user {
	t.Helper()
	dir, err := os.MkdirTemp("", "snapctl-") // sockets want short paths
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	u := &user{t: t, home: dir, containerd: filepath.Join(dir, "containerd.sock"), remorad: filepath.Join(dir, "remora.sock")}
	t.Setenv("HOME", dir)
	t.Setenv("XDG_CACHE_HOME", filepath.Join(dir, "cache"))
	t.Setenv("DOCKER_CONFIG", filepath.Join(dir, "docker"))
	t.Setenv("CONTAINERD_ADDRESS", u.containerd)
	t.Setenv("REMORA_ADDRESS", u.remorad)
	t.Setenv("CONTAINERD_NAMESPACE", "")
	t.Setenv("SNAPCTL_PASSWORD", "")
	return u
}

// path returns the path of a file in the home directory.
func (u *user) path(name string) string { return filepath.Join(u.home, name) }

// file writes one.
func (u *user) file(name, text string) string {
	u.t.Helper()
	if err := os.WriteFile(u.path(name), []byte(text), 0o644); err != nil {
		u.t.Fatal(err)
	}
	return u.path(name)
}

// A result is what a command has said, and how it ended.
type result struct {
	t              *testing.T
	args           []string
	stdout, stderr string
	err            error
}

// run runs a command.
func (u *user) run(args ...string) *result {
	u.t.Helper()
	return u.runFor(u.t.Context(), args...)
}

func (u *user) runFor(ctx context.Context, args ...string) *result {
	u.t.Helper()
	var stdout, stderr cmdtest.Output
	err := u.app(&stdout, &stderr).run(ctx, append([]string{}, args...))
	return &result{t: u.t, args: args, stdout: stdout.String(), stderr: stderr.String(), err: err}
}

// app is a program of the user's.
func (u *user) app(stdout, stderr *cmdtest.Output) *app {
	return &app{stdin: strings.NewReader(u.types), stdout: stdout, stderr: stderr, fifos: u.path("fifos"), patience: u.patience}
}

// hurried is run where containerd is not there, for which it does not wait long.
func (u *user) hurried(args ...string) *result {
	u.t.Helper()
	u.patience = time.Millisecond
	defer func() { u.patience = 0 }()
	return u.run(args...)
}

// ok insists on success and returns what was printed.
func (r *result) ok() string {
	r.t.Helper()
	if r.err != nil {
		r.t.Fatalf("snapctl %q: %v\n%s%s", r.args, r.err, r.stdout, r.stderr)
	}
	return r.stdout
}

// fails insists on an exit code and on words in what is said about it.
func (r *result) fails(code int, words ...string) {
	r.t.Helper()
	if got := cli.Code(r.err); got != code {
		r.t.Fatalf("snapctl %q: exit code %d, want %d: %v", r.args, got, code, r.err)
	}
	contains(r.t, r.err.Error(), words...)
}

// contains insists on words in a text.
func contains(t *testing.T, text string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(text, w) {
			t.Errorf("%q is not in:\n%s", w, text)
		}
	}
}

// decode reads what a command printed with --json.
func decode[T any](r *result) (v T) {
	r.t.Helper()
	dec := json.NewDecoder(strings.NewReader(r.ok()))
	if err := dec.Decode(&v); err != nil {
		r.t.Fatalf("snapctl %q: %v:\n%s", r.args, err, r.stdout)
	}
	if dec.More() {
		r.t.Fatalf("snapctl %q: more than one object:\n%s", r.args, r.stdout)
	}
	return v
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

// program is the image that most tests use: two layers with something large enough to be read by parts.
func program(t *testing.T, types cmdtest.Types) *cmdtest.Image {
	t.Helper()
	return cmdtest.NewImage(t, types,
		[]cmdtest.File{{Path: "bin/"}, {Path: "bin/sh", Data: cmdtest.Noise(1, 300_000)}, {Path: "etc/"},
			{Path: "etc/motd", Data: []byte("hello\n")}},
		[]cmdtest.File{{Path: "app/"}, {Path: "app/data", Data: bytes.Repeat([]byte("data "), 100_000)},
			{Path: "app/main", Data: cmdtest.Noise(2, 100_000)}})
}
