package volumes_test

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/conformance/testbed"
)

// mustAnswer reads devices past the page cache.
func mustAnswer(t *testing.T, when string, devs ...string) {
	t.Helper()
	for _, dev := range devs {
		read := make(chan error, 1)
		go func() {
			f, err := os.OpenFile(dev, os.O_RDONLY|unix.O_DIRECT, 0)
			if err == nil {
				_, err = f.ReadAt(blockdev.AlignedBuffer(4096), 0)
				err = errors.Join(err, f.Close())
			}
			read <- err
		}()
		testbed.WaitFor(t, "a read of "+dev+" "+when, func() bool {
			select {
			case err := <-read:
				testbed.Must(t, err)
				return true
			default:
				return false
			}
		})
	}
}

// underWay returns how many requests a block device has under way.
func underWay(t *testing.T, dev string) (n int) {
	t.Helper()
	p, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(dev), "inflight"))
	testbed.Must(t, err)
	for _, s := range strings.Fields(string(p)) {
		i, err := strconv.Atoi(s)
		testbed.Must(t, err)
		n += i
	}
	return n
}

// TestVolumeApart: the store of a volume hangs under all the writes that its device can have under way. Volumes of another store and
// attached files are read, also by a remorad that was killed meanwhile and serves before the store is back. While a detach
// waits for that store, others are attached and detached. Then all writes have been carried out.
func TestVolumeApart(t *testing.T) {
	t.Parallel()
	testbed.NeedRoot(t)
	const writes = 128 // what a loop device has under way
	srv := startS3(t, "minio")
	hang := func(s unix.Signal) { testbed.Must(t, srv.process.Cmd.Process.Signal(s)) }
	s := testbed.New(t, testbed.Options{Bare: true, LogLevel: "info", Config: volumeConfig + "credentials = \"" + srv.credentials + "\"\n"})
	t.Cleanup(func() { hang(unix.SIGCONT) })
	attach := func(name string) string { return strings.TrimSpace(snapctl(t, s, "volume", "attach", name)) }
	for _, name := range []string{"writes", "leaves"} {
		snapctl(t, s, "volume", "create", "--store", srv.url("node"), name, "1G")
	}
	newVolume(t, s, "other")
	newVolume(t, s, "later")
	hung, leaves, other := attach("writes"), attach("leaves"), attach("other")
	file := filepath.Join(t.TempDir(), "disk.img")
	testbed.Must(t, errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, 64<<20)))
	disk := strings.TrimSpace(snapctl(t, s, "dev", "attach", file))
	to, err := os.OpenFile(hung, os.O_RDWR|unix.O_DIRECT, 0)
	testbed.Must(t, err)
	last, err := os.OpenFile(leaves, os.O_RDWR|unix.O_DIRECT, 0)
	testbed.Must(t, err)
	_, err = last.WriteAt(blockdev.AlignedBuffer(4096), 0) // and nothing is flushed
	testbed.Must(t, errors.Join(err, last.Close()))

	hang(unix.SIGSTOP)
	testbed.WaitFor(t, "the lease to run out", func() bool { return inspectOutageOf(t, s, "writes").Lease <= 0 })
	var writers sync.WaitGroup
	errs := make([]error, writes)
	for i := range writes {
		writers.Go(func() { _, errs[i] = to.WriteAt(blockdev.AlignedBuffer(4096), int64(i)<<20) })
	}
	testbed.WaitFor(t, "the writes to be under way", func() bool { return underWay(t, hung) == writes })
	mustAnswer(t, "beside a store that hangs", other, disk)

	testbed.Must(t, s.StopRemorad(unix.SIGKILL))
	testbed.Must(t, s.StartRemorad())
	mustAnswer(t, "of a remorad that was killed meanwhile", other, disk)

	d := beginDetachOf(t, s, "leaves")
	later := attach("later")
	another := filepath.Join(t.TempDir(), "another.img")
	testbed.Must(t, errors.Join(os.WriteFile(another, nil, 0o600), os.Truncate(another, 64<<20)))
	mustAnswer(t, "beside a detach that waits", later, strings.TrimSpace(snapctl(t, s, "dev", "attach", another)))
	for _, f := range []string{another, file} {
		snapctl(t, s, "dev", "detach", f)
	}
	for _, name := range []string{"later", "other"} {
		snapctl(t, s, "volume", "detach", name)
	}
	if n := underWay(t, hung); n != writes {
		t.Errorf("%d writes are under way, of %d", n, writes)
	}

	hang(unix.SIGCONT)
	writers.Wait()
	testbed.Must(t, errors.Join(append(errs, to.Close())...))
	if last, err := d.end(); err != nil {
		t.Errorf("detached: %s, %v", last, err)
	}
	snapctl(t, s, "volume", "detach", "writes")
	for _, name := range []string{"writes", "leaves", "other", "later"} {
		snapctl(t, s, "volume", "rm", name)
	}
}
