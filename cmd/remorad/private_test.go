package main

import (
	"io/fs"
	"os"
	"path/filepath"
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
	seen := 0
	for _, dir := range []string{"root", "store"} {
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
				t.Errorf("%s has mode %v", path, st.Mode())
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if seen < 5 {
		t.Errorf("only %d files were looked at", seen)
	}
	if st, err := os.Stat(d.path("remora.sock")); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", st, err)
	}
	if err := d.stop(); err != nil {
		t.Error(err)
	}
}
