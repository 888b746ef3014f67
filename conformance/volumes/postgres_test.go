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

// TestVolumePostgres: a database on a volume under load, whose remorad is killed again and again, and whose node then loses its
// power: no transaction that a client was told was committed is missing, whether the volume is attached anew from journal
// and store (class local) or on another node from the store alone (class remote).
func TestVolumePostgres(t *testing.T) {
	t.Parallel()
	for _, class := range []string{"local", "remote"} {
		t.Run(class, func(t *testing.T) {
			t.Parallel()
			a := testbed.New(t, testbed.Options{Bare: true, LogLevel: "info", Config: volumeConfig})
			dir := t.TempDir()
			testbed.Must(t, os.Chmod(filepath.Dir(dir), 0o755)) // the server has a user of its own
			mnt := filepath.Join(dir, "mnt")
			store := newVolume(t, a, "data", "--class", class)
			snapctl(t, a, "volume", "mount", "data", mnt)
			t.Cleanup(func() {
				if t.Failed() {
					_ = unix.Unmount(mnt, unix.MNT_DETACH)
				}
			})
			pg := newPostgres(t, mnt)
			pg.init(t)
			pg.start(t)
			_, err := pg.sql("create table committed (id bigint primary key, filler text)")
			testbed.Must(t, err)
			_, err = pg.run("pgbench", "-h", pg.dir, "-i", "-q", "postgres")
			testbed.Must(t, err)

			var load sync.WaitGroup
			stop := make(chan struct{})
			load.Go(func() { _, _ = pg.run("pgbench", "-h", pg.dir, "-c", "4", "-T", "600", "postgres") }) // it ends with the server
			acked := make([][]int, 2)
			var committed atomic.Int64
			for client := range acked {
				load.Go(func() {
					for i := 0; ; i++ {
						select {
						case <-stop:
							return
						default:
						}
						id := i*len(acked) + client
						if _, err := pg.sql(fmt.Sprintf("insert into committed values (%d, repeat('x', 500))", id)); err != nil {
							return // the power is gone
						}
						acked[client] = append(acked[client], id)
						committed.Add(1)
					}
				})
			}
			more := func() { // commits, while the kills go on
				enough := committed.Load() + 4
				testbed.WaitFor(t, "transactions to be committed", func() bool { return committed.Load() >= enough })
			}
			for range testbed.Rounds(5, 100) {
				more()
				testbed.Must(t, a.RestartRemorad(unix.SIGKILL))
			}
			more()
			pg.kill(t)
			close(stop)
			load.Wait()
			testbed.Must(t, a.StopRemorad(unix.SIGKILL))
			testbed.Must(t, a.KillHolder()) // the device goes too
			testbed.Must(t, unix.Unmount(mnt, unix.MNT_DETACH))
			next := a
			if class == "local" {
				testbed.Must(t, a.StartRemorad())
				snapctl(t, a, "volume", "detach", "data") // what its journal has goes to the store
			} else {
				next = testbed.New(t, testbed.Options{Bare: true, LogLevel: "info", Config: volumeConfig})
			}
			snapctl(t, next, "volume", "mount", "--store", store, "data", mnt)
			pg.start(t)
			out, err := pg.sql("select id from committed")
			testbed.Must(t, err)
			there := map[string]bool{}
			for id := range strings.FieldsSeq(out) {
				there[id] = true
			}
			all := slices.Concat(acked...)
			for _, id := range all {
				if !there[fmt.Sprint(id)] {
					t.Errorf("transaction %d was committed, and is missing", id)
				}
			}
			t.Logf("%d transactions were committed, %d are there", len(all), len(there))
			if len(all) < 20 {
				t.Errorf("only %d transactions were committed", len(all))
			}
			_, err = pg.run("pg_amcheck", "-h", pg.dir, "--install-missing", "-d", "postgres")
			testbed.Must(t, err)
			pg.kill(t)
			snapctl(t, next, "volume", "umount", "data")
			t.Log(strings.TrimSpace(snapctl(t, next, "volume", "fsck", "data")))
			snapctl(t, next, "volume", "rm", "data")
		})
	}
}
