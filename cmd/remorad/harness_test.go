package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/blockdev/mounts"
	"github.com/remora-storage/remora/cmd/internal/cli"
	"github.com/remora-storage/remora/cmd/internal/cmdtest"
	"github.com/remora-storage/remora/cmd/internal/control"
	"github.com/remora-storage/remora/snapshotter"
)

// TestMain lets this program be the holder that a daemon under test starts, or a daemon that starts one and does no more.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "start-holder" {
		cli.Main("remorad", func(context.Context, []string, io.Writer, io.Writer) error { return startHolder(os.Args[2]) })
	}
	if len(os.Args) > 1 && os.Args[1] == "holder" {
		cli.Main("remorad", run)
	}
	os.Exit(m.Run())
}

// noBackend is a machine on which no layer can be lazy, and nothing is mounted.
type noBackend struct{}

func (noBackend) Bind(string, string) error { return errors.New("nothing is mounted here") }

func (noBackend) Gates(func(string) error) (snapshotter.Gates, error) {
	return nil, errors.New("there are none in this test")
}

func (noBackend) Probe(string, blockdev.Backend, bool) (snapshotter.Capabilities, error) {
	return snapshotter.Capabilities{LazyReason: "this machine has no way", Reason: "no loop device", IDReason: "nor idmapped mounts"}, nil
}
func (noBackend) TryUpper(string) error                                 { return nil }
func (noBackend) MountImage(string, string, bool) error                 { return errors.New("nothing is mounted here") }
func (noBackend) Unmount(string) error                                  { return nil }
func (noBackend) LoopFile(string) string                                { return "" }
func (noBackend) UnmountUnused(string) error                            { return nil }
func (noBackend) Own() ([]mounts.Mount, error)                          { return nil, nil }
func (noBackend) Everywhere(func(mounts.Namespace, mounts.Mount)) error { return nil }

// shortDir is a directory for sockets, whose paths must be short.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "remorad-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// A testDaemon is remorad, in the test's process.
type testDaemon struct {
	*control.Client
	t          *testing.T
	dir        string // root, config.toml, remora.sock
	log        *cmdtest.Output
	containerd *cmdtest.Containerd
	stop       func() error // ends it, once, and returns how it ended
}

// newDaemon starts remorad on a machine without a back end, with more in its configuration, and waits until it answers.
func newDaemon(t *testing.T, more string, args ...string) *testDaemon {
	t.Helper()
	d, err := tryDaemon(t, more, args...)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// tryDaemon is newDaemon for one that may end instead, with the returned error.
func tryDaemon(t *testing.T, more string, args ...string) (*testDaemon, error) {
	t.Helper()
	d := &testDaemon{t: t, dir: shortDir(t), log: new(cmdtest.Output)}
	d.containerd = cmdtest.NewContainerd(t, d.path("containerd.sock"))
	return d, d.start(more, args...)
}

func (d *testDaemon) path(name string) string { return filepath.Join(d.dir, name) }

func (d *testDaemon) start(more string, args ...string) error {
	d.t.Helper()
	config := "containerd.address = \"" + d.containerd.Socket + "\"\nregistry.docker_config = \"\"\nregistry.config_path = []\n" + more
	if err := os.WriteFile(d.path("config.toml"), []byte(config), 0o600); err != nil {
		d.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		defer close(ended)
		ended <- d.run(ctx, args...)
	}()
	d.stop = sync.OnceValue(func() error {
		stop()
		return <-ended
	})
	d.t.Cleanup(func() { _ = d.stop() }) // whose test asked how it ended knows
	client, closer, err := control.Dial(d.path("remora.sock"))
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { closer.Close() })
	d.Client = client
	for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		if _, err := client.Status(ctx); err == nil {
			return nil
		}
		select {
		case err := <-ended:
			d.stop = func() error { return err }
			return err
		default:
		}
		if time.Now().After(end) {
			d.t.Fatalf("remorad does not answer:\n%s", d.log)
		}
	}
}

// run is the program, until it ends.
func (d *testDaemon) run(ctx context.Context, args ...string) error {
	full := []string{"--config", d.path("config.toml"), "--root", d.path("root"), "--address", d.path("remora.sock"), "--holder", "none"}
	return flags{kernel: noBackend{}}.run(ctx, append(full, args...), d.log, d.log)
}

// fails insists on an error that has words in it.
func fails(t *testing.T, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("no error, want one with %q", words)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q is not in: %v", w, err)
		}
	}
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// waitFor waits for a condition.
func waitFor(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

// freePort returns an address on this machine that nobody listens on now.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
