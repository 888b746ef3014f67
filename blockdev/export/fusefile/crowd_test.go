package fusefile_test

import (
	"bytes"
	"context"
	"os"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev"
)

// silent is a device of which nothing comes before it is let go.
type silent struct {
	blockdev.Device
	asked, answer chan struct{}
}

func (d *silent) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	d.asked <- struct{}{}
	select {
	case <-d.answer:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	return d.Device.ReadAt(ctx, p, off)
}

// TestCrowd: a file for whose bytes many readers wait leaves room for the readers of others. What exceeds its share fails.
func TestCrowd(t *testing.T) {
	f := serve(t)
	data := randomBytes(1 << 20)
	d := &silent{Device: blockdev.Memory(data), asked: make(chan struct{}), answer: make(chan struct{})}
	f.Export(node, d)
	path := f.Export(node+1, blockdev.Memory(data))
	read := func() fuse.Status {
		_, status := f.Read(nil, &fuse.ReadIn{InHeader: fuse.InHeader{NodeId: node}, Size: 4096}, make([]byte, 4096))
		return status
	}
	const share = 2048 // of 4096 requests that the kernel sends ahead
	results := make(chan fuse.Status)
	for range share {
		go func() { results <- read() }()
		<-d.asked
	}
	for range 10 {
		if status := read(); status != fuse.Status(unix.EIO) {
			t.Errorf("beyond its share a read gives %v", status)
		}
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, data) {
		t.Errorf("another file: %d bytes, %v", len(got), err)
	}
	close(d.answer)
	for range share {
		if status := <-results; status != fuse.OK {
			t.Errorf("within its share: %v", status)
		}
	}
	go func() { <-d.asked }()
	if status := read(); status != fuse.OK {
		t.Errorf("later: %v", status)
	}
}
