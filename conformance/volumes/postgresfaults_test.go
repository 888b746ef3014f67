package volumes_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/conformance/testbed"
	"github.com/remora-storage/remora/conformance/tools/link"
)

// A databaseBed is a node with a database on its volume, and what can be done to it.
type databaseBed struct {
	node   *testbed.Stack
	store  string // URL
	config string // of any node that is to use it
	load   *commits
	// faults are by name: each does its harm, and undoes it.
	faults map[string]func(t *testing.T)
}

// lasts has a fault last for longer than the lease, meanwhile nobody sees an error.
func (b *databaseBed) lasts(t *testing.T) {
	t.Helper()
	for end := time.Now().Add(awayFor); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		b.load.mustRun(t)
	}
}

// mustWait insists that nothing is committed while the fault lasts, once what was under way has ended.
func (b *databaseBed) mustWait(t *testing.T, why string) {
	t.Helper()
	testbed.WaitFor(t, "inspect to say: "+why, func() bool {
		b.load.mustRun(t)
		return strings.Contains(snapctl(t, b.node, "volume", "inspect", "data"), why)
	})
	b.lasts(t)
	before := b.load.count.Load()
	time.Sleep(time.Second)
	if n := b.load.count.Load() - before; n > 0 {
		t.Errorf("%d transactions were committed, though %s", n, why)
	}
}

// pause is a machine that stands still: remorad does not run for a while.
func (b *databaseBed) pause(t *testing.T, d time.Duration) {
	t.Helper()
	pid := b.node.RemoradPID()
	testbed.Must(t, unix.Kill(pid, unix.SIGSTOP))
	t.Cleanup(func() { _ = unix.Kill(pid, unix.SIGCONT) }) // whatever becomes of the test
	time.Sleep(d)
	testbed.Must(t, unix.Kill(pid, unix.SIGCONT))
}

// common are the faults of every bed.
func (b *databaseBed) common() map[string]func(*testing.T) {
	return map[string]func(*testing.T){
		"remorad is killed":                     func(t *testing.T) { testbed.Must(t, b.node.RestartRemorad(unix.SIGKILL)) },
		"remorad stands still":                  func(t *testing.T) { b.pause(t, 2*time.Second) },
		"remorad stands still beyond its lease": func(t *testing.T) { b.pause(t, awayFor) },
		"remorad is ended and started much later": func(t *testing.T) {
			testbed.Must(t, b.node.StopRemorad(unix.SIGTERM))
			b.lasts(t)
			testbed.Must(t, b.node.StartRemoradOnly())
		},
	}
}

// directoryBed has its store in a directory and its journals on a btrfs of their own, which has snapshots.
func directoryBed(t *testing.T) *databaseBed {
	t.Helper()
	image, disk := filepath.Join(t.TempDir(), "image"), t.TempDir()
	testbed.Tool(t, "truncate", "-s", "768M", image)
	testbed.FileSystems[2].Mkfs(t, image)
	testbed.Tool(t, "mount", "-o", "loop", image, disk)
	t.Cleanup(func() {
		testbed.WaitFor(t, "nobody to use the disk", func() bool { return unix.Unmount(disk, 0) == nil })
	})
	b := &databaseBed{config: volumeConfig}
	b.node = testbed.New(t, testbed.Options{Bare: true, LogLevel: "info", Config: b.config, Root: filepath.Join(disk, "root")})
	dir := filepath.Join(t.TempDir(), "store")
	b.store = "file:" + dir
	b.faults = b.common()
	b.faults["the store is renamed"] = func(t *testing.T) {
		testbed.Must(t, os.Rename(dir, dir+".aside"))
		b.mustWait(t, "the store is not there")
		testbed.Must(t, os.Rename(dir+".aside", dir))
	}
	b.faults["the journal's disk is full"] = func(t *testing.T) {
		snapshot, filler := filepath.Join(disk, "snapshot"), filepath.Join(disk, "filler")
		testbed.Tool(t, "btrfs", "subvolume", "snapshot", "-r", disk, snapshot)
		if out, err := testbed.Output(t.Context(), nil, "dd", "if=/dev/zero", "of="+filler, "bs=1M", "oflag=direct"); err == nil {
			t.Fatalf("the disk does not become full: %s", out)
		}
		b.mustWait(t, "write the journal")
		testbed.Tool(t, "btrfs", "subvolume", "delete", snapshot)
		testbed.Must(t, os.Remove(filler))
	}
	return b
}

// bucketBed has its store in a bucket, behind a proxy behind a link.
func bucketBed(t *testing.T) *databaseBed {
	t.Helper()
	srv := startS3(t, "minio")
	var missing atomic.Bool
	front := missingFront(t, srv.endpoint, "<html><body>no route</body></html>", &missing)
	behind, err := link.New(strings.TrimPrefix(front, "http://"), link.Options{})
	testbed.Must(t, err)
	t.Cleanup(func() { testbed.Must(t, behind.Close()) })
	b := &databaseBed{config: volumeConfig + fmt.Sprintf("credentials = %q\n", srv.credentials)}
	b.node = testbed.New(t, testbed.Options{Bare: true, LogLevel: "info", Config: b.config})
	b.store = strings.Replace(srv.url("database"), srv.endpoint, "http://"+behind.Addr(), 1)
	b.faults = b.common()
	b.faults["a proxy answers 404"] = func(t *testing.T) {
		missing.Store(true)
		b.mustWait(t, "the store is not there")
		missing.Store(false)
	}
	b.faults["the store hangs"] = func(t *testing.T) {
		testbed.Must(t, srv.process.Cmd.Process.Signal(unix.SIGSTOP))
		b.mustWait(t, "waits")
		testbed.Must(t, srv.process.Cmd.Process.Signal(unix.SIGCONT))
	}
	b.faults["the store is killed, and is back later"] = func(t *testing.T) {
		testbed.Must(t, srv.process.Stop(unix.SIGKILL))
		b.mustWait(t, "waits")
		var err error
		srv.process, err = srv.start()
		testbed.Must(t, err)
	}
	b.faults["connections die silently"] = func(*testing.T) { behind.Silence() }
	return b
}

// outlive has a database go through faults, in this order, and lose its power after the last one.
func (b *databaseBed) outlive(t *testing.T, class string, faults []string) {
	t.Helper()
	mnt := filepath.Join(publicDir(t), "mnt")
	snapctl(t, b.node, "volume", "create", "--store", b.store, "--class", class, "data", "1G")
	snapctl(t, b.node, "volume", "mount", "data", mnt)
	unmountIfFailed(t, mnt)
	pg := newPostgres(t, mnt)
	b.load = pg.startCommits(t)
	for _, f := range faults {
		b.load.mustGoOn(t)
		begin := time.Now()
		b.faults[f](t)
		lasted := time.Since(begin)
		b.load.mustGoOn(t)
		again := time.Since(begin) - lasted
		t.Logf("%s: for %v, and commits went on %v after", f, lasted.Round(time.Millisecond), again.Round(time.Millisecond))
	}
	b.load.cutPower(t, pg)
	next := losePower(t, b.node, b.store, class, mnt, b.config)
	pg.start(t)
	b.load.mustBeThere(t, pg)
	pg.kill(t)
	snapctl(t, next, "volume", "umount", "data")
	t.Log(strings.TrimSpace(snapctl(t, next, "volume", "fsck", "data")))
	snapctl(t, next, "volume", "rm", "data")
}

// TestVolumePostgresFaults: a database on a volume goes through what happens to a store, a node and its disk. It waits, no client sees
// an error, and it goes on by itself. No transaction that a client was told was committed is missing after a power cut at the end. Two
// faults of one bed by chance; with make soak all of each, twice.
func TestVolumePostgresFaults(t *testing.T) {
	t.Parallel()
	testbed.NeedRoot(t)
	rnd := rand.New(rand.NewPCG(testbed.Seed(t), 0))
	beds := map[string]func(*testing.T) *databaseBed{"directory": directoryBed, "bucket": bucketBed}
	all := testbed.Combinations(slices.Sorted(maps.Keys(beds)), []string{"local", "remote"})
	rnd.Shuffle(len(all), func(i, k int) { all[i], all[k] = all[k], all[i] })
	for _, c := range all[:testbed.Rounds(1, len(all))] {
		t.Run(strings.Join(c, "-"), func(t *testing.T) {
			b := beds[c[0]](t)
			faults := slices.Sorted(maps.Keys(b.faults))
			rnd.Shuffle(len(faults), func(i, k int) { faults[i], faults[k] = faults[k], faults[i] })
			b.outlive(t, c[1], slices.Concat(faults, faults)[:testbed.Rounds(2, 2*len(faults))])
		})
	}
}
