package autofs_test

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/blockdev/autofs"
	"github.com/remora-storage/remora/blockdev/mounts"
)

// bed is a directory that is the lower one of overlays.
type bed struct {
	server        *autofs.Server
	lower, merged string
	asked         atomic.Int64
	let           chan error // what becomes of a question
}

func newBed(t *testing.T) *bed {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	b := &bed{lower: filepath.Join(t.TempDir(), "lower"), merged: filepath.Join(t.TempDir(), "merged"), let: make(chan error, 10)}
	var err error
	b.server, err = autofs.New(func(dir string) error {
		b.asked.Add(1)
		err := <-b.let
		if err == nil {
			err = unix.Mount("layer", dir, "tmpfs", 0, "")
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, "file"), []byte("here"), 0o644)
		}
		return err
	}, slog.New(slog.DiscardHandler))
	if errors.Is(err, os.ErrNotExist) {
		t.Skip("this kernel has no autofs")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		close(b.let)
		if err := errors.Join(blockdev.Unmount(b.merged), blockdev.Unmount(b.lower), b.server.Close()); err != nil {
			t.Error(err)
		}
	})
	for _, dir := range []string{b.lower, b.merged} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.server.Mount(b.lower); err != nil {
		t.Fatal(err)
	}
	return b
}

// client runs a command in a process group of its own: those of this one never wait.
func client(name string, args ...string) (string, error) {
	c := exec.Command(name, args...)
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := c.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, out)
	}
	return string(out), err
}

// overlay mounts an overlay with a directory below it, and insists on what is in it.
func (b *bed) overlay(lower string) error {
	if _, err := client("mount", "-t", "overlay", "overlay", "-o", "lowerdir="+lower+":"+filepath.Dir(b.merged), b.merged); err != nil {
		return err
	}
	p, err := os.ReadFile(filepath.Join(b.merged, "file"))
	if err == nil && string(p) != "here" {
		err = fmt.Errorf("the overlay has %q", p)
	}
	return errors.Join(err, blockdev.Unmount(b.merged))
}

func (b *bed) begin() (ended chan error) {
	ended = make(chan error, 1)
	go func() { ended <- b.overlay(b.lower + "/") }()
	for b.asked.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	return ended
}

// TestWaits: who mounts an overlay on the directory waits, and has then what was mounted; many ask once.
func TestWaits(t *testing.T) {
	b := newBed(t)
	ended := b.begin()
	entered := make(chan error, 5)
	for range cap(entered) {
		go func() {
			out, err := client("cat", filepath.Join(b.lower, "file"))
			if err == nil && out != "here" {
				err = fmt.Errorf("got %q", out)
			}
			entered <- err
		}()
	}
	select {
	case err := <-ended:
		t.Fatalf("mounted before anything was there: %v", err)
	case <-time.After(50 * time.Millisecond): // nothing is to happen
	}
	b.let <- nil
	if err := <-ended; err != nil {
		t.Error(err)
	}
	for range cap(entered) {
		if err := <-entered; err != nil {
			t.Error(err)
		}
	}
	if n := b.asked.Load(); n != 1 {
		t.Errorf("asked %d times", n)
	}
	if err := b.overlay(b.lower + "/"); err != nil {
		t.Errorf("later: %v", err)
	}
}

// TestFails: what cannot be had fails, and can be had later. Without what makes the kernel wait, an overlay fails as well.
func TestFails(t *testing.T) {
	b := newBed(t)
	b.let <- errors.New("as the test says")
	if err := b.overlay(b.lower + "/"); err == nil {
		t.Error("mounted without a layer")
	}
	if err := b.overlay(b.lower); err == nil {
		t.Error("mounted on autofs itself")
	}
	b.let <- nil
	if err := b.overlay(b.lower + "/"); err != nil {
		t.Errorf("later: %v", err)
	}
}

// TestServerGone: once nobody answers, those who waited are let go by Quiet, and those who come fail. A new mount answers again.
func TestServerGone(t *testing.T) {
	b := newBed(t)
	ended := b.begin()
	all, err := mounts.Under(filepath.Dir(b.lower))
	if err != nil || len(all) != 1 || all[0].Type != autofs.Type {
		t.Fatalf("mounts %v, %v", all, err)
	}
	if err := b.server.Quiet(all[0]); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err == nil {
		t.Error("mounted without a layer")
	}
	if err := b.overlay(b.lower + "/"); err == nil {
		t.Error("mounted though nobody answers")
	}
	b.let <- errors.New("too late") // whom it is for has gone
	if err := errors.Join(blockdev.Unmount(b.lower), b.server.Mount(b.lower)); err != nil {
		t.Fatal(err)
	}
	b.let <- nil
	if err := b.overlay(b.lower + "/"); err != nil {
		t.Errorf("armed again: %v", err)
	}
}
