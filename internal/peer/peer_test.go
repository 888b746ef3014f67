package peer_test

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/remora-storage/remora/internal/peer"
)

// TestOf: each end of a connection in this process is this process.
func TestOf(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	there, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer there.Close()
	here, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	for name, c := range map[string]net.Conn{"who listens": there, "who connected": here} {
		if got, err := peer.Of(c.(*net.UnixConn)); err != nil || int(got.Pid) != os.Getpid() || int(got.Uid) != os.Geteuid() {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	here.Close()
	if got, err := peer.Of(here.(*net.UnixConn)); err == nil {
		t.Errorf("of a closed connection: %+v", got)
	}
}
