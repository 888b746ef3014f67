package nbd_test

import (
	"context"
	"net"
	"path/filepath"
	"testing"

	"github.com/remora-storage/remora/blockdev/nbd"
)

// running serves until stop is called; ended then has what Serve returned.
func running(t testing.TB, s *nbd.Server) (socket string, stop func(), ended chan error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	t.Cleanup(stop)
	ended = make(chan error, 1)
	go func() { ended <- s.Serve(ctx, l) }()
	return path, stop, ended
}
