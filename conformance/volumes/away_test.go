package volumes_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/conformance/testbed"
)

// awayFor is longer than volumeConfig's lease.
const awayFor = 6 * time.Second

// mountTwo mounts two volumes of a store, and puts load on both.
func mountTwo(t *testing.T, s *testbed.Stack, store string) (names []string, loads []*testbed.Load) {
	t.Helper()
	for _, class := range []string{"remote", "local"} {
		mnt := filepath.Join(t.TempDir(), "mnt")
		snapctl(t, s, "volume", "create", "--store", store, "--class", class, class, "1G")
		snapctl(t, s, "volume", "mount", class, mnt)
		unmountIfFailed(t, mnt)
		l := testbed.StartLoad(t, mnt)
		l.MustReach(t, 200)
		names, loads = append(names, class), append(loads, l)
	}
	return names, loads
}

// outlive has a store go and come back under two volumes: their writers see no error, and go on.
func outlive(t *testing.T, s *testbed.Stack, store, why string, gone, back func()) {
	t.Helper()
	names, loads := mountTwo(t, s, store)
	gone()
	end := time.Now().Add(awayFor)
	testbed.WaitFor(t, "inspect to say why the volumes wait", func() bool {
		for _, l := range loads {
			l.MustRun(t)
		}
		return strings.Contains(snapctl(t, s, "volume", "inspect", names[0]), why)
	})
	for _, verb := range [][]string{{"create", "--store", store, "other", "1G"}, {"init", store}} { // no other store is made in its place
		mustRefuse(t, s, "the store ", append([]string{"volume"}, verb...)...)
	}
	for time.Now().Before(end) {
		for _, l := range loads {
			l.MustRun(t)
		}
		time.Sleep(50 * time.Millisecond)
	}
	back()
	for i, l := range loads {
		l.MustReach(t, l.Count()+200)
		l.End(t)
		snapctl(t, s, "volume", "umount", names[i])
		t.Log(strings.TrimSpace(snapctl(t, s, "volume", "fsck", names[i])))
		snapctl(t, s, "volume", "rm", names[i])
	}
	log, err := os.ReadFile(s.RemoradLog())
	testbed.Must(t, err)
	for _, never := range []string{"lost its lease", "the volume has failed"} {
		if strings.Contains(string(log), never) {
			t.Errorf("the log says %q", never)
		}
	}
}

// TestVolumeStoreRenamed: a store's directory is renamed for longer than a lease, with nothing or an empty directory in its place:
// its volumes wait, and go on. Nothing is made where it was.
func TestVolumeStoreRenamed(t *testing.T) {
	t.Parallel()
	for name, empty := range map[string]bool{"nothing in its place": false, "an empty directory in its place": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := testbed.New(t, testbed.Options{Bare: true, LogLevel: "info", Config: volumeConfig})
			dir := filepath.Join(t.TempDir(), "store")
			outlive(t, s, "file:"+dir, "the store is not there", func() {
				testbed.Must(t, os.Rename(dir, dir+".aside"))
				if empty {
					testbed.Must(t, os.Mkdir(dir, 0o700))
				}
			}, func() {
				if empty {
					testbed.Must(t, os.Remove(dir))
				}
				testbed.Must(t, os.Rename(dir+".aside", dir))
			})
		})
	}
}

// TestVolumeStoreNotFound: a proxy before a server answers 404 for longer than a lease, as a proxy does or as a server that is empty:
// volumes wait, and go on.
func TestVolumeStoreNotFound(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ server, body string }{
		{"minio", "<html><body>no route</body></html>"},
		{"versitygw", `<?xml version="1.0" encoding="UTF-8"?><Error><Code>NoSuchKey</Code><Message>none</Message></Error>`},
	} {
		t.Run(c.server, func(t *testing.T) {
			t.Parallel()
			srv := startS3(t, c.server)
			var missing atomic.Bool
			front := missingFront(t, srv.endpoint, c.body, &missing)
			config := volumeConfig + fmt.Sprintf("credentials = %q\n", srv.credentials)
			s := testbed.New(t, testbed.Options{Bare: true, LogLevel: "info", Config: config})
			outlive(t, s, strings.Replace(srv.url("away"), srv.endpoint, front, 1), "the store is not there",
				func() { missing.Store(true) }, func() { missing.Store(false) })
		})
	}
}

// TestVolumeRestartedWithoutStore: a remorad that is killed under load and started while its store's directory is renamed serves its
// socket, makes nothing in the directory's place, and waits: the mounted volume goes on once the directory is back. What is asked of a
// store that never was says so.
func TestVolumeRestartedWithoutStore(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{Bare: true, LogLevel: "info", Config: volumeConfig})
	mistyped := filepath.Join(t.TempDir(), "stroe")
	mustRefuse(t, s, "the store is not there", "volume", "ls", "--store", "file:"+mistyped)
	mustRefuse(t, s, "the store is not there", "volume", "mount", "--store", "file:"+mistyped, "data", filepath.Join(t.TempDir(), "mnt"))
	mustRefuse(t, s, "the store is not there", "volume", "probe", "file:"+mistyped)
	if _, err := os.Lstat(mistyped); !os.IsNotExist(err) {
		t.Errorf("%s is there (%v)", mistyped, err)
	}
	mnt := filepath.Join(t.TempDir(), "mnt")
	store := newVolume(t, s, "data")
	dir := strings.TrimPrefix(store, "file:")
	snapctl(t, s, "volume", "mount", "data", mnt)
	unmountIfFailed(t, mnt)
	l := testbed.StartLoad(t, mnt)
	l.MustReach(t, 200)
	testbed.Must(t, s.StopRemorad(unix.SIGKILL))
	testbed.Must(t, os.Rename(dir, dir+".aside"))
	testbed.Must(t, s.StartRemorad())
	testbed.WaitFor(t, "the log to say that the store is not there", func() bool {
		log, err := os.ReadFile(s.RemoradLog())
		testbed.Must(t, err)
		l.MustRun(t)
		return strings.Contains(string(log), "the store of a volume is not there")
	})
	if _, err := os.Lstat(dir); !os.IsNotExist(err) {
		t.Errorf("%s was made (%v)", dir, err)
	}
	testbed.Must(t, os.Rename(dir+".aside", dir))
	l.MustReach(t, l.Count()+200)
	mustComeBack(t, s, mnt, l.End(t))
	mustBeRight(t, s, "data", store)
}
