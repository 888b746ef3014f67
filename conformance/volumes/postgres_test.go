package volumes_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/conformance/testbed"
)

// A postgres is a server whose data are in a directory of a volume.
type postgres struct {
	bin, dir string
}

func newPostgres(t *testing.T, mnt string) *postgres {
	t.Helper()
	all, err := filepath.Glob("/usr/lib/postgresql/*/bin")
	if err != nil || len(all) == 0 {
		t.Fatalf("no PostgreSQL is installed (%v): make deps", err)
	}
	return &postgres{bin: all[len(all)-1], dir: filepath.Join(mnt, "pg")}
}

// RunImage runs one of its programs as its user.
func (p *postgres) run(name string, args ...string) (string, error) {
	out, err := exec.Command("runuser", append([]string{"-u", "postgres", "--", filepath.Join(p.bin, name)}, args...)...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", name, err, out)
	}
	return string(out), err
}

func (p *postgres) init(t *testing.T) {
	t.Helper()
	testbed.Must(t, os.Mkdir(p.dir, 0o700))
	testbed.Tool(t, "chown", "postgres", p.dir)
	_, err := p.run("initdb", "-A", "trust", "-D", p.dir)
	testbed.Must(t, err)
}

// start starts the server, which recovers what a crash has left. Its socket is beside its data.
func (p *postgres) start(t *testing.T) {
	t.Helper()
	testbed.Must(t, os.RemoveAll(filepath.Join(p.dir, "postmaster.pid"))) // of a server that died
	_, err := p.run("pg_ctl", "-D", p.dir, "-w", "-t", "120", "-l", filepath.Join(p.dir, "log"), "-o",
		"-c listen_addresses= -c unix_socket_directories="+p.dir, "start")
	if err != nil {
		log, _ := os.ReadFile(filepath.Join(p.dir, "log"))
		t.Fatalf("%v\n%s", err, log)
	}
}

// kill ends the server as a power cut would.
func (p *postgres) kill(t *testing.T) {
	t.Helper()
	pid, err := os.ReadFile(filepath.Join(p.dir, "postmaster.pid"))
	testbed.Must(t, err)
	var n int
	_, err = fmt.Sscan(string(pid), &n)
	testbed.Must(t, err)
	// It is stopped first, so that none of its children escapes: one that it starts behind the back of
	// the list would wait for the locks of the dead for ever, and its client with it.
	testbed.Must(t, unix.Kill(n, unix.SIGSTOP))
	out, _ := exec.Command("pgrep", "-P", fmt.Sprint(n)).Output()
	_ = unix.Kill(n, unix.SIGKILL)
	for _, c := range strings.Fields(string(out)) {
		var k int
		if _, err := fmt.Sscan(c, &k); err == nil {
			_ = unix.Kill(k, unix.SIGKILL)
		}
	}
	testbed.WaitFor(t, "the server to end", func() bool { return unix.Kill(n, 0) != nil })
}

func (p *postgres) sql(query string) (string, error) {
	out, err := p.run("psql", "-h", p.dir, "-d", "postgres", "-qAt", "-v", "ON_ERROR_STOP=1", "-c", query)
	return strings.TrimSpace(out), err
}

// commits are transactions on a server under load, of which this process keeps which ones a client was told were committed.
type commits struct {
	acked [2][]int // of each client
	count atomic.Int64
	load  sync.WaitGroup
	stop  chan struct{}
	fails chan error // of each client, and only if it was not told to stop
}

// startCommits makes a database and puts load on it. It ends with the server.
func (p *postgres) startCommits(t *testing.T) *commits {
	t.Helper()
	p.init(t)
	p.start(t)
	_, err := p.sql("create table committed (id bigint primary key, filler text)")
	testbed.Must(t, err)
	_, err = p.run("pgbench", "-h", p.dir, "-i", "-q", "postgres")
	testbed.Must(t, err)
	c := &commits{stop: make(chan struct{})}
	c.fails = make(chan error, len(c.acked))
	c.load.Go(func() { _, _ = p.run("pgbench", "-h", p.dir, "-c", "4", "-T", "3600", "postgres") }) // it ends with the server
	for client := range c.acked {
		c.load.Go(func() { c.fails <- c.commit(p, client) })
	}
	return c
}

// commit commits until it is told to stop, or cannot.
func (c *commits) commit(p *postgres, client int) error {
	for i := 0; ; i++ {
		select {
		case <-c.stop:
			return nil
		default:
		}
		id := i*len(c.acked) + client
		if _, err := p.sql(fmt.Sprintf("insert into committed values (%d, repeat('x', 500))", id)); err != nil {
			return err
		}
		c.acked[client] = append(c.acked[client], id)
		c.count.Add(1)
	}
}

// mustRun insists that no client has seen an error.
func (c *commits) mustRun(t *testing.T) {
	t.Helper()
	select {
	case err := <-c.fails:
		t.Fatalf("a client ended: %v", err)
	default:
	}
}

// mustGoOn waits until a few more transactions are committed than were when it was called.
func (c *commits) mustGoOn(t *testing.T) {
	t.Helper()
	enough := c.count.Load() + 4
	testbed.WaitFor(t, "transactions to be committed", func() bool {
		c.mustRun(t)
		return c.count.Load() >= enough
	})
}

// cutPower ends server and load as a power cut would.
func (c *commits) cutPower(t *testing.T, p *postgres) {
	t.Helper()
	p.kill(t)
	close(c.stop)
	c.load.Wait()
}

// mustBeThere insists that a server that was started again has all that was committed, and no index is damaged.
func (c *commits) mustBeThere(t *testing.T, p *postgres) {
	t.Helper()
	out, err := p.sql("select id from committed")
	testbed.Must(t, err)
	there := map[string]bool{}
	for id := range strings.FieldsSeq(out) {
		there[id] = true
	}
	all := slices.Concat(c.acked[:]...)
	for _, id := range all {
		if !there[fmt.Sprint(id)] {
			t.Errorf("transaction %d was committed, and is missing", id)
		}
	}
	t.Logf("%d transactions were committed, %d are there", len(all), len(there))
	_, err = p.run("pg_amcheck", "-h", p.dir, "--install-missing", "-d", "postgres")
	testbed.Must(t, err)
}

// losePower has a node lose its power, and mounts the volume again: from its journal and the store if the class is local, else on
// another node from the store alone, which it returns.
func losePower(t *testing.T, a *testbed.Stack, store, class, mnt, config string) (next *testbed.Stack) {
	t.Helper()
	testbed.Must(t, a.StopRemorad(unix.SIGKILL))
	testbed.Must(t, a.KillHolder()) // the device goes too
	testbed.Must(t, unix.Unmount(mnt, unix.MNT_DETACH))
	next = a
	if class == "local" {
		testbed.Must(t, a.StartRemorad())
		snapctl(t, a, "volume", "detach", "data") // what its journal has goes to the store
	} else {
		next = testbed.New(t, testbed.Options{Bare: true, LogLevel: "info", Config: config})
	}
	snapctl(t, next, "volume", "mount", "--store", store, "data", mnt)
	return next
}

// publicDir returns a new directory that a server's own user can reach.
func publicDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	testbed.Must(t, os.Chmod(filepath.Dir(dir), 0o755))
	return dir
}

// TestVolumePostgres: a database on a volume under load, whose remorad is killed again and again, and whose node then loses its
// power: no transaction that a client was told was committed is missing, whether the volume is attached anew from journal
// and store (class local) or on another node from the store alone (class remote).
func TestVolumePostgres(t *testing.T) {
	t.Parallel()
	for _, class := range []string{"local", "remote"} {
		t.Run(class, func(t *testing.T) {
			t.Parallel()
			a := testbed.New(t, testbed.Options{Bare: true, LogLevel: "info", Config: volumeConfig})
			mnt := filepath.Join(publicDir(t), "mnt")
			store := newVolume(t, a, "data", "--class", class)
			snapctl(t, a, "volume", "mount", "data", mnt)
			unmountIfFailed(t, mnt)
			pg := newPostgres(t, mnt)
			load := pg.startCommits(t)
			for range testbed.Rounds(5, 100) {
				load.mustGoOn(t)
				testbed.Must(t, a.RestartRemorad(unix.SIGKILL))
			}
			load.mustGoOn(t)
			load.cutPower(t, pg)
			next := losePower(t, a, store, class, mnt, volumeConfig)
			pg.start(t)
			load.mustBeThere(t, pg)
			if n := load.count.Load(); n < 20 {
				t.Errorf("only %d transactions were committed", n)
			}
			pg.kill(t)
			snapctl(t, next, "volume", "umount", "data")
			t.Log(strings.TrimSpace(snapctl(t, next, "volume", "fsck", "data")))
			snapctl(t, next, "volume", "rm", "data")
		})
	}
}
