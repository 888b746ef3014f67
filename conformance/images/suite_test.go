package images_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/remora-storage/remora/conformance/testbed"
)

// TestContainerdSuiteThroughTheSocket is containerd's own suite against the daemon.
func TestContainerdSuiteThroughTheSocket(t *testing.T) {
	t.Parallel()
	testbed.NeedRoot(t)
	// By this name the suite knows that directories of lower layers cannot be renamed on overlayfs.
	testsuite.SnapshotterSuite(t, "overlayfs", func(_ context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		dir, err := os.MkdirTemp("", "remora-suite-")
		if err != nil {
			return nil, nil, err
		}
		socket := filepath.Join(dir, "remora.sock")
		p, err := testbed.Start(filepath.Join(dir, "log"), func() bool {
			c, err := net.Dial("unix", socket)
			if err == nil {
				c.Close()
			}
			return err == nil
		}, nil, "remorad", "--root", root, "--address", socket)
		if err != nil {
			return nil, nil, err
		}
		conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return nil, nil, err
		}
		sn := proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "overlayfs")
		return sn, func() error {
			return errors.Join(conn.Close(), p.Stop(syscall.SIGTERM), os.RemoveAll(dir))
		}, nil
	})
}
