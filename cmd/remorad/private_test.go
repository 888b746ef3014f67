package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/cmd/internal/control"
)

// TestFilesArePrivate: whatever the umask is, nothing below --root can be reached by other users, and neither can the socket.
func TestFilesArePrivate(t *testing.T) {
	defer unix.Umask(unix.Umask(0))
	d := newDaemon(t, "")
	store := "file:" + d.path("store")
	if err := d.Login(t.Context(), &control.LoginRequest{Host: "r.example.com", User: "robot", Secret: "secret"}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.CreateVolume(t.Context(), &control.CreateVolumeRequest{VolumeRequest: control.VolumeRequest{Name: "v", Store: store},
		Size: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	if open := d.reachable("root", "store"); len(open) > 0 {
		t.Errorf("others can reach %v", open)
	}
	if st, err := os.Stat(d.path("remora.sock")); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", st, err)
	}
	if err := d.stop(); err != nil {
		t.Error(err)
	}
}

// reachable returns what other users can read or write of some directories and all that is in them.
func (d *testDaemon) reachable(dirs ...string) (open []string) {
	d.t.Helper()
	seen := 0
	for _, dir := range dirs {
		err := filepath.WalkDir(d.path(dir), func(path string, e fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			st, err := e.Info()
			if err != nil {
				return err
			}
			seen++
			if st.Mode().Perm()&0o077 != 0 && st.Mode().Type() != fs.ModeSymlink {
				open = append(open, path)
			}
			return nil
		})
		if err != nil {
			d.t.Fatal(err)
		}
	}
	if seen < 5 {
		d.t.Errorf("only %d files were looked at", seen)
	}
	return open
}

// TestRootThatExists: a root keeps the mode that somebody has given it, and what is made in it is private all the same.
func TestRootThatExists(t *testing.T) {
	defer unix.Umask(unix.Umask(0))
	d := newDaemon(t, "")
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(d.path("root")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(d.path("root"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := d.start(""); err != nil {
		t.Fatal(err)
	}
	if err := d.Login(t.Context(), &control.LoginRequest{Host: "r.example.com", User: "robot", Secret: "secret"}); err != nil {
		t.Fatal(err)
	}
	if open := d.reachable("root"); !slices.Equal(open, []string{d.path("root")}) {
		t.Errorf("others can reach %v", open)
	}
}
