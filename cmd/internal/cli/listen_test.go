package cli_test

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/cmd/internal/cli"
)

// TestListenUnixMode: a socket is its owner's alone from the moment it is there, though the umask allows everything.
func TestListenUnixMode(t *testing.T) {
	dir, err := os.MkdirTemp("", "cli-") // sockets want short paths
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	defer unix.Umask(unix.Umask(0))
	path := filepath.Join(dir, "made", "s.sock")
	l, err := cli.ListenUnix(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v, %v", st, err)
	}
	if st, err := os.Stat(filepath.Dir(path)); err != nil || st.Mode().Perm() != 0o755 {
		t.Errorf("its directory: %v, %v", st, err)
	}
	if _, err := cli.ListenUnix(t.Context(), path); err == nil {
		t.Error("a socket that is served is taken over")
	}
}
