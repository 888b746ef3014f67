package volumes_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/conformance/testbed"
)

// stateOf is what this node does with the volume data.
func stateOf(t *testing.T, s *testbed.Stack) string {
	t.Helper()
	var d struct{ State string }
	testbed.Must(t, json.Unmarshal([]byte(snapctl(t, s, "volume", "inspect", "data", "--json")), &d))
	return d.State
}

// A detaching is a detach under way, which waits for its store.
type detaching struct{ verb }

// beginDetach begins to detach data, whose store is away, and returns when remorad has said what that waits for.
func beginDetach(t *testing.T, s *testbed.Stack) *detaching {
	t.Helper()
	return beginDetachOf(t, s, "data")
}

// beginDetachOf is beginDetach for a volume of another name.
func beginDetachOf(t *testing.T, s *testbed.Stack, name string) *detaching {
	t.Helper()
	d := &detaching{beginVerb(t, s, "detach", name)}
	if !d.says.Scan() || !strings.Contains(d.says.Text(), "not in the store yet") {
		t.Errorf("a detach says %q", d.says.Text())
	}
	return d
}

// end waits for the end and returns the last line.
func (d *detaching) end() (last string, err error) {
	for d.says.Scan() {
		last = d.says.Text()
	}
	return last, d.cmd.Wait()
}

// stop interrupts it.
func (d *detaching) stop(t *testing.T) {
	t.Helper()
	testbed.Must(t, d.cmd.Process.Signal(os.Interrupt))
	if _, err := d.end(); err == nil {
		t.Error("detached, though the store did not answer")
	}
}

// A segmentGate is an S3 server that takes no segments while it is shut, and answers everything else.
type segmentGate struct {
	mu   sync.Mutex // guards open
	open chan struct{}
}

// newSegmentGate returns a gate before a server, which is open, and its URL.
func newSegmentGate(t *testing.T, endpoint string) (*segmentGate, string) {
	t.Helper()
	g := &segmentGate{open: make(chan struct{})}
	close(g.open)
	proxy := proxyTo(t, endpoint)
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/seg/") {
			g.mu.Lock()
			open := g.open
			g.mu.Unlock()
			select {
			case <-open:
			case <-r.Context().Done():
				return
			}
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(func() {
		g.let()
		front.Close()
	})
	return g, front.URL
}

func (g *segmentGate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open = make(chan struct{})
}

func (g *segmentGate) let() {
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-g.open:
	default:
		close(g.open)
	}
}

// TestVolumeBounces: a volume that is being given up, and waits for its store for that, is wanted on its node again. It is kept, and
// whoever detached it is told. An interrupted detach goes on by itself.
func TestVolumeBounces(t *testing.T) {
	t.Parallel()
	testbed.NeedRoot(t)
	srv := startS3(t, "minio")
	gate, endpoint := newSegmentGate(t, srv.endpoint)
	s, mnt := onS3(t, srv, endpoint, "local", volumeConfig)
	file := filepath.Join(mnt, "file")
	write := func(b byte) {
		t.Helper()
		f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
		testbed.Must(t, err)
		_, err = f.Write(bytes.Repeat([]byte{b}, 1<<20))
		testbed.Must(t, errors.Join(err, f.Sync(), f.Close()))
	}
	write(1)
	gate.shut()
	write(2) // the store does not have it
	snapctl(t, s, "volume", "umount", "--keep-attached", "data")

	beginDetach(t, s).stop(t)
	if state := stateOf(t, s); state != "leaving" {
		t.Errorf("%s after an interrupted detach", state)
	}
	other := beginDetach(t, s)
	snapctl(t, s, "volume", "mount", "data", mnt)
	if why, err := other.end(); err == nil || !strings.Contains(why, "attached again") {
		t.Errorf("the other detach: %q (%v)", why, err)
	}
	write(3)
	if state := stateOf(t, s); state != "attached" {
		t.Errorf("%s after it was attached again", state)
	}
	gate.let()
	write(4)
	got, err := os.ReadFile(file)
	testbed.Must(t, err)
	for i, b := range []byte{1, 2, 3, 4} {
		if !bytes.Equal(got[i<<20:(i+1)<<20], bytes.Repeat([]byte{b}, 1<<20)) {
			t.Errorf("the %d. megabyte is wrong", i+1)
		}
	}

	// Nobody waits for the end of this one.
	gate.shut()
	write(5)
	snapctl(t, s, "volume", "umount", "--keep-attached", "data")
	beginDetach(t, s).stop(t)
	gate.let()
	testbed.WaitFor(t, "the volume to be given up", func() bool { return stateOf(t, s) == "absent" })
	mustBeWhole(t, s)
}

// TestVolumeUnmountedWithoutStore: the store of a mounted volume of class remote is away for longer than the lease. The volume is unmounted
// meanwhile, and given up to its journal, as at a machine's end. What was written and not flushed is there when it is mounted again.
func TestVolumeUnmountedWithoutStore(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{Bare: true, LogLevel: "info", Config: volumeConfig})
	store := newVolume(t, s, "data")
	dir := strings.TrimPrefix(store, "file:")
	mnt := filepath.Join(t.TempDir(), "mnt")
	snapctl(t, s, "volume", "mount", "data", mnt)
	unmountIfFailed(t, mnt)
	testbed.Must(t, os.Rename(dir, dir+".aside"))
	back := sync.OnceFunc(func() { testbed.Must(t, os.Rename(dir+".aside", dir)) })
	t.Cleanup(back)
	testbed.WaitFor(t, "the lease to run out", func() bool { return inspectOutage(t, s).Lease <= 0 })
	want := bytes.Repeat([]byte("data"), 64<<10)
	testbed.Must(t, os.WriteFile(filepath.Join(mnt, "file"), want, 0o600))
	waited := time.AfterFunc(time.Minute, back) // so that nothing stays hung
	snapctl(t, s, "volume", "umount", "--keep-attached", "data")
	snapctl(t, s, "volume", "detach", "--abandon-to-journal", "data")
	if !waited.Stop() {
		t.Error("an unmount has waited for a store that is away")
	}
	back()
	snapctl(t, s, "volume", "mount", "data", mnt)
	if got, err := os.ReadFile(filepath.Join(mnt, "file")); err != nil || !bytes.Equal(got, want) {
		t.Errorf("what was written is not there (%v)", err)
	}
	snapctl(t, s, "volume", "umount", "data")
	mustBeWhole(t, s)
}

// TestVolumeAbandoned: the store of a volume of class remote is away for longer than the lease. The volume is given up to its journal
// with what a program has written to the device and not flushed, and a volume of another store is attached and detached as ever. So it is
// where remorad was killed meanwhile, and never found the store again. All of it is there when the volume is attached again.
func TestVolumeAbandoned(t *testing.T) {
	t.Parallel()
	for name, again := range map[string]bool{"written to": false, "remorad started again": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := testbed.New(t, testbed.Options{Bare: true, LogLevel: "info", Config: volumeConfig})
			store := newVolume(t, s, "data")
			other := newVolume(t, s, "other")
			dir := strings.TrimPrefix(store, "file:")
			dev := strings.TrimSpace(snapctl(t, s, "volume", "attach", "data"))
			testbed.Must(t, os.Rename(dir, dir+".aside"))
			back := sync.OnceFunc(func() { testbed.Must(t, os.Rename(dir+".aside", dir)) })
			t.Cleanup(back)
			testbed.WaitFor(t, "the lease to run out", func() bool { return inspectOutage(t, s).Lease <= 0 })
			want := bytes.Repeat([]byte("data"), 64<<10)
			if again {
				testbed.Must(t, s.StopRemorad(unix.SIGKILL))
				testbed.Must(t, s.StartRemorad())
				want = make([]byte, len(want))
			} else {
				f, err := os.OpenFile(dev, os.O_WRONLY, 0)
				testbed.Must(t, err)
				_, err = f.WriteAt(want, 1<<20) // into pages of the kernel
				testbed.Must(t, err)
				closed := make(chan error, 1)
				go func() { closed <- f.Close() }() // for which the kernel hands them down
				// snapctl would close the file as its last user, and wait, if it were started before.
				testbed.WaitFor(t, "the file to be closed here", func() bool {
					open, err := filepath.Glob("/proc/self/fd/*")
					testbed.Must(t, err)
					return !slices.ContainsFunc(open, func(fd string) bool {
						to, err := os.Readlink(fd)
						return err == nil && to == dev
					})
				})
				defer func() { testbed.Must(t, <-closed) }()
			}
			waited := time.AfterFunc(time.Minute, back) // so that nothing stays hung
			snapctl(t, s, "volume", "detach", "--abandon-to-journal", "data")
			snapctl(t, s, "volume", "attach", "--store", other, "other")
			snapctl(t, s, "volume", "detach", "other")
			if !waited.Stop() {
				t.Error("a detach has waited for a store that is away")
			}
			back()
			dev = strings.TrimSpace(snapctl(t, s, "volume", "attach", "data"))
			got := make([]byte, len(want))
			f, err := os.Open(dev)
			testbed.Must(t, err)
			_, err = f.ReadAt(got, 1<<20)
			testbed.Must(t, errors.Join(err, f.Close()))
			if !bytes.Equal(got, want) {
				t.Error("what was written is not there")
			}
			snapctl(t, s, "volume", "detach", "data")
			mustBeWhole(t, s)
		})
	}
}

// TestVolumeWithoutDevice: a node that lost its device with the holder, or by a reboot, stores what its journal has and gives the volume
// up by itself; another node gets it then.
func TestVolumeWithoutDevice(t *testing.T) {
	t.Parallel()
	a := testbed.New(t, testbed.Options{Bare: true, LogLevel: "info", Config: volumeConfig})
	b := testbed.New(t, testbed.Options{Bare: true, LogLevel: "info", Config: volumeConfig})
	store := newVolume(t, a, "data", "--class", "local", "--max-age", "1h")
	dev := strings.TrimSpace(snapctl(t, a, "volume", "attach", "data"))
	want := bytes.Repeat([]byte("data"), 1<<18)
	f, err := os.OpenFile(dev, os.O_RDWR, 0)
	testbed.Must(t, err)
	_, err = f.Write(want)
	testbed.Must(t, errors.Join(err, f.Sync(), f.Close()))
	testbed.Must(t, a.StopRemorad(unix.SIGKILL))
	testbed.Must(t, a.KillHolder())
	testbed.Must(t, blockdev.DropLoop(dev))
	testbed.Must(t, a.StartRemorad())
	testbed.WaitFor(t, "the volume to be given up", func() bool { return stateOf(t, a) == "absent" })
	f, err = os.Open(strings.TrimSpace(snapctl(t, b, "volume", "attach", "--store", store, "data")))
	testbed.Must(t, err)
	got := make([]byte, len(want))
	_, err = io.ReadFull(f, got)
	testbed.Must(t, errors.Join(err, f.Close()))
	if !bytes.Equal(got, want) {
		t.Error("what was flushed is not there")
	}
	snapctl(t, b, "volume", "detach", "data")
	mustBeRight(t, b, "data", store)
}
