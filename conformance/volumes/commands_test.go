package volumes_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/conformance/testbed"
	"github.com/remora-storage/remora/conformance/tools/fsx"
)

// volumeConfig has volumes' journals small, so that making them takes no time and filling them little.
const volumeConfig = "[volume]\njournal = \"64MiB\"\nlease = \"4s\"\n"

func snapctl(t *testing.T, s *testbed.Stack, args ...string) string {
	t.Helper()
	out, err := s.Snapctl(t.Context(), args...)
	if err != nil {
		t.Fatalf("snapctl %s: %v", strings.Join(args, " "), err)
	}
	return out
}

// mustRefuse insists that a command fails and says why.
func mustRefuse(t *testing.T, s *testbed.Stack, why string, args ...string) {
	t.Helper()
	out, err := s.Snapctl(t.Context(), args...)
	if err == nil || !strings.Contains(err.Error(), why) {
		t.Errorf("snapctl %s: %s, %v; want %q", strings.Join(args, " "), out, err, why)
	}
}

// newVolume creates a volume in a directory of its own and removes it when the test ends.
func newVolume(t *testing.T, s *testbed.Stack, name string, args ...string) (store string) {
	t.Helper()
	store = "file:" + filepath.Join(t.TempDir(), "store")
	snapctl(t, s, append([]string{"volume", "create", "--store", store, name, "1G"}, args...)...)
	return store
}

// unmountIfFailed lets a test that has failed end: nothing stays mounted there.
func unmountIfFailed(t *testing.T, dir string) {
	t.Cleanup(func() {
		if t.Failed() {
			_ = unix.Unmount(dir, unix.MNT_DETACH)
		}
	})
}

// mustBeRight checks a volume that is not attached, and removes it: nothing but its node's lease may stay in the store.
func mustBeRight(t *testing.T, s *testbed.Stack, name, store string) {
	t.Helper()
	t.Log(strings.TrimSpace(snapctl(t, s, "volume", "fsck", name)))
	snapctl(t, s, "volume", "rm", name)
	dir := strings.TrimPrefix(store, "file:")
	testbed.Must(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		rel, _ := filepath.Rel(dir, path)
		if err == nil && !d.IsDir() && !strings.HasPrefix(rel, ".") && rel != "remora" && !strings.HasPrefix(rel, "node/") {
			t.Errorf("%s stays in the store", rel)
		}
		return err
	}))
	left, err := filepath.Glob(filepath.Join(s.Root, "volumes", "journals", "*-*")) // the spare is nobody's
	if err != nil || len(left) > 0 {
		t.Errorf("%d journals stay (%v)", len(left), err)
	}
}

// TestVolumeCommands: the verbs may be repeated, wrong use is refused with a reason, and nothing is left behind.
func TestVolumeCommands(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{Bare: true, LogLevel: "info", Config: volumeConfig})
	mnt := filepath.Join(t.TempDir(), "mnt")
	mustRefuse(t, s, "--store", "volume", "create", "data", "1G")
	store := newVolume(t, s, "data", "--class", "local")
	if out := snapctl(t, s, "volume", "create", "--store", store, "--class", "local", "data", "1G"); !strings.Contains(out, "exists") {
		t.Errorf("created again: %s", out)
	}
	mustRefuse(t, s, "a volume of this name exists", "volume", "create", "data", "2G")
	mustRefuse(t, s, "no such volume", "volume", "mount", "--store", store, "other", mnt)
	mustRefuse(t, s, "want ext4, xfs or btrfs", "volume", "mount", "data", mnt, "--fs", "minix")
	mustRefuse(t, s, "want remote, local or writethrough", "volume", "create", "--store", store, "--class", "quick", "x", "1G")
	mustRefuse(t, s, "size", "volume", "create", "--store", store, "x", "much")
	mustRefuse(t, s, "name", "volume", "create", "--store", store, "A/B", "1G")
	for _, verb := range [][]string{{"umount", "data"}, {"detach", "data"}, {"inspect", "data"}, {"rm", "data"}, {"create",
		"x", "1G"}, {"mount", "data", mnt}} {
		mustRefuse(t, s, "for a directory file:some/dir", append([]string{"volume", verb[0], "--store", "some/dir"}, verb[1:]...)...)
	}
	mustRefuse(t, s, "want file:/path", "volume", "init", "http://elsewhere")
	if out := snapctl(t, s, "volume", "init", store); !strings.Contains(out, "already") {
		t.Errorf("init again: %s", out)
	}
	snapctl(t, s, "volume", "probe", store)

	for range 2 {
		snapctl(t, s, "volume", "mount", "data", mnt)
	}
	testbed.Must(t, os.WriteFile(filepath.Join(mnt, "file"), []byte("content"), 0o600))
	var list struct {
		Volumes []struct{ Name, FS, Device, Class string }
	}
	testbed.Must(t, json.Unmarshal([]byte(snapctl(t, s, "volume", "ls", "--json")), &list))
	if len(list.Volumes) != 1 || list.Volumes[0].FS != "ext4" || list.Volumes[0].Device == "" || list.Volumes[0].Class != "local" {
		t.Errorf("ls: %+v", list)
	}
	dev := list.Volumes[0].Device
	if out := strings.TrimSpace(snapctl(t, s, "volume", "attach", "data")); out != dev {
		t.Errorf("attached again as %s, was %s", out, dev)
	}
	mustRefuse(t, s, "snapctl volume detach", "dev", "detach", dev)
	mustRefuse(t, s, "in use", "volume", "detach", "data")
	mustRefuse(t, s, "attached", "volume", "rm", "data")
	mustRefuse(t, s, "attached", "volume", "rm", "--dry-run", "data")
	mustRefuse(t, s, "mounted on", "volume", "mount", "data", mnt+"2")
	mustRefuse(t, s, "do not shrink", "volume", "resize", "data", "512M")
	var d struct {
		AtRisk int64   `json:"at_risk_bytes"`
		Lease  float64 `json:"lease_margin_seconds"`
	}
	testbed.Must(t, json.Unmarshal([]byte(snapctl(t, s, "volume", "inspect", "data", "--json")), &d))
	if d.Lease <= 0 {
		t.Errorf("inspect: a lease of %v s", d.Lease)
	}
	for range 2 {
		snapctl(t, s, "volume", "umount", "data")
	}
	if out := snapctl(t, s, "volume", "detach", "data"); !strings.Contains(out, "not attached") {
		t.Errorf("detached again: %s", out)
	}
	snapctl(t, s, "volume", "resize", "data", "2G")
	snapctl(t, s, "volume", "mount", "data", mnt)
	var st unix.Statfs_t
	testbed.Must(t, unix.Statfs(mnt, &st))
	if n := int64(st.Blocks) * st.Bsize; n < 1900<<20 {
		t.Errorf("the file system has %d bytes after the volume was resized", n)
	}
	if p, err := os.ReadFile(filepath.Join(mnt, "file")); err != nil || string(p) != "content" {
		t.Errorf("%q, %v", p, err)
	}
	snapctl(t, s, "volume", "umount", "data")
	if out := snapctl(t, s, "volume", "rm", "--dry-run", "data"); !strings.Contains(out, "would be deleted") {
		t.Errorf("dry run: %s", out)
	}
	mustBeRight(t, s, "data", store)
	if out := snapctl(t, s, "volume", "rm", "--store", store, "data"); !strings.Contains(out, "no volume") {
		t.Errorf("removed again: %s", out)
	}
}

// TestVolumeMountOptions: device nodes and set-user-ID programs on a volume have no effect, unless the mount asks for them.
func TestVolumeMountOptions(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{Bare: true, LogLevel: "info", Config: volumeConfig})
	mnt := filepath.Join(t.TempDir(), "mnt")
	store := newVolume(t, s, "data", "--class", "local")
	zero, id := filepath.Join(mnt, "zero"), filepath.Join(mnt, "id")
	for _, c := range []struct {
		options []string
		want    int64
	}{
		{nil, unix.ST_NODEV | unix.ST_NOSUID},
		{[]string{"-o", "noatime"}, unix.ST_NODEV | unix.ST_NOSUID},
		{[]string{"-o", "suid"}, unix.ST_NODEV},
		{[]string{"-o", "dev,suid"}, 0},
	} {
		snapctl(t, s, append([]string{"volume", "mount", "data", mnt}, c.options...)...)
		var st unix.Statfs_t
		testbed.Must(t, unix.Statfs(mnt, &st))
		if got := st.Flags & (unix.ST_NODEV | unix.ST_NOSUID); got != c.want {
			t.Errorf("%v: mounted with flags %#x, want %#x", c.options, got, c.want)
		}
		if _, err := os.Stat(zero); err != nil { // the first time
			testbed.Must(t, unix.Mknod(zero, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))))
			testbed.Tool(t, "cp", "/usr/bin/id", id)
			testbed.Must(t, os.Chmod(id, os.ModeSetuid|0o755))
		}
		f, err := os.Open(zero)
		if err == nil {
			f.Close()
		}
		if open, want := err == nil, c.want&unix.ST_NODEV == 0; open != want {
			t.Errorf("%v: a device node opens: %v, want %v (%v)", c.options, open, want, err)
		}
		user := strings.TrimSpace(testbed.Tool(t, "setpriv", "--reuid=65534", "--clear-groups", id, "-u"))
		if root, want := user == "0", c.want&unix.ST_NOSUID == 0; root != want {
			t.Errorf("%v: a set-user-ID program runs as %s", c.options, user)
		}
		snapctl(t, s, "volume", "umount", "data")
	}
	mustBeRight(t, s, "data", store)
}

// TestMeasuredVolumeBench: it measures, and leaves nothing behind, though it is interrupted.
func TestMeasuredVolumeBench(t *testing.T) {
	s := testbed.New(t, testbed.Options{Bare: true, LogLevel: "info", Config: volumeConfig})
	store := "file:" + filepath.Join(t.TempDir(), "store")
	for _, class := range []string{"local", "remote", "writethrough"} {
		var b struct {
			Results []struct {
				Name     string
				Requests int
				P99      float64 `json:"p99_microseconds"`
			}
		}
		testbed.Must(t, json.Unmarshal([]byte(snapctl(t, s, "volume", "bench", "--store", store, "--class", class, "--size",
			"16M", "--time", "200ms", "--json")), &b))
		if len(b.Results) < 5 {
			t.Fatalf("%s: %+v", class, b)
		}
		for _, r := range b.Results {
			if r.Requests == 0 || r.P99 <= 0 {
				t.Errorf("%s: %+v", class, r)
			}
		}
	}
	c, err := testbed.Command(t.Context(), "snapctl", "volume", "bench", "--store", store, "--time", "1m")
	testbed.Must(t, err)
	c.Env = append(c.Env, s.SnapctlEnv()...)
	testbed.Must(t, c.Start())
	testbed.WaitFor(t, "the benchmark to have a volume", func() bool {
		return strings.Contains(snapctl(t, s, "volume", "ls", "--store", store), "/dev/")
	})
	testbed.Must(t, c.Process.Signal(os.Interrupt))
	if err := c.Wait(); err == nil {
		t.Error("a benchmark that was interrupted succeeds")
	}
	if out := snapctl(t, s, "volume", "ls", "--store", store); strings.Contains(out, "bench") {
		t.Errorf("a volume stays:\n%s", out)
	}
}

// TestVolumeNeverFormats what was written to: a volume whose content is not known is not given a file system.
func TestVolumeNeverFormats(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{Bare: true, LogLevel: "info", Config: volumeConfig})
	mnt := filepath.Join(t.TempDir(), "mnt")
	store := newVolume(t, s, "data")
	dev := strings.TrimSpace(snapctl(t, s, "volume", "attach", "data"))
	f, err := os.OpenFile(dev, os.O_RDWR, 0)
	testbed.Must(t, err)
	_, err = f.WriteAt([]byte("no file system"), 1<<20)
	testbed.Must(t, errors.Join(err, f.Sync(), f.Close()))
	mustRefuse(t, s, "has been written to", "volume", "mount", "data", mnt)
	testbed.Tool(t, "mkfs.xfs", "-q", "-f", dev)
	mustRefuse(t, s, "holds xfs, not ext4", "volume", "mount", "data", mnt, "--fs", "ext4")
	snapctl(t, s, "volume", "mount", "data", mnt)
	snapctl(t, s, "volume", "umount", "data")
	mustBeRight(t, s, "data", store)
}

// TestVolumeFileSystems: file systems of three kinds live on a volume, and what they hold is there after it was detached
// and attached.
func TestVolumeFileSystems(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{Bare: true, LogLevel: "info", Config: volumeConfig})
	for i, fs := range testbed.FileSystems {
		store := newVolume(t, s, fs.Name, "--class", []string{"remote", "local", "local"}[i])
		t.Run(fs.Name, func(t *testing.T) {
			mnt := filepath.Join(t.TempDir(), "mnt")
			snapctl(t, s, "volume", "mount", fs.Name, mnt, "--fs", fs.Name)
			for _, direct := range []bool{false, true} {
				flag := "--direct=" + map[bool]string{false: "0", true: "1"}[direct]
				testbed.Tool(t, "fio", "--name=verify", "--directory="+mnt, "--size=32M", "--rw=randwrite", "--bsrange=4k-64k", "--blockalign=4k",
					"--ioengine=libaio", "--iodepth=16", "--fsync=16", "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", flag)
				testbed.Must(t, fsx.Run(filepath.Join(mnt, "fsx"), fsx.Options{Size: 8 << 20, Steps: testbed.Rounds(500, 50000),
					Seed: uint64(i), Direct: direct}))
			}
			testbed.Tool(t, "cp", "-a", "/usr/share/doc", filepath.Join(mnt, "doc"))
			testbed.Tool(t, "fstrim", mnt)
			for range 2 {
				snapctl(t, s, "volume", "umount", fs.Name)
				dev := strings.TrimSpace(snapctl(t, s, "volume", "attach", fs.Name))
				fs.Clean(t, dev)
				snapctl(t, s, "volume", "mount", fs.Name, mnt)
				testbed.Tool(t, "diff", "-r", "--no-dereference", "/usr/share/doc", filepath.Join(mnt, "doc"))
			}
			snapctl(t, s, "volume", "umount", fs.Name)
			mustBeRight(t, s, fs.Name, store)
		})
	}
}

// TestVolumeSeenElsewhere: a process that has a copy of a volume's mount in a mount namespace of its own is named to who
// wants to detach the volume, and what it was told to go on with works when that process has ended.
func TestVolumeSeenElsewhere(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{Bare: true, LogLevel: "info", Config: volumeConfig})
	mnt := filepath.Join(t.TempDir(), "mnt")
	store := newVolume(t, s, "data")
	snapctl(t, s, "volume", "mount", "data", mnt)
	testbed.Must(t, os.WriteFile(filepath.Join(mnt, "file"), []byte("here"), 0o600))
	mustRefuse(t, s, "unmount it first, from "+mnt, "volume", "detach", "data")
	sleeper, end := testbed.CopyOfMounts(t, mnt)
	mustRefuse(t, s, fmt.Sprintf("mounted in other mount namespaces: on %s by process %d (sleep)", mnt,
		sleeper.Process.Pid), "volume", "umount", "data")
	snapctl(t, s, "volume", "mount", "data", mnt) // the same file system once more
	snapctl(t, s, "volume", "umount", "--keep-attached", "data")
	end()
	snapctl(t, s, "volume", "umount", "data")
	snapctl(t, s, "volume", "mount", "data", mnt)
	p, err := os.ReadFile(filepath.Join(mnt, "file"))
	testbed.Must(t, err)
	if string(p) != "here" {
		t.Errorf("the file holds %q", p)
	}
	snapctl(t, s, "volume", "umount", "data")
	mustBeRight(t, s, "data", store)
}

// TestVolumeKilled: an ext4 on a volume, under concurrent writers and flushes, outlives kill -9 of remorad again and again;
// and what was written is there when the volume was detached and attached, from the store alone.
func TestVolumeKilled(t *testing.T) {
	t.Parallel()
	for _, class := range []string{"remote", "local"} {
		t.Run(class, func(t *testing.T) {
			t.Parallel()
			s := testbed.New(t, testbed.Options{Bare: true, LogLevel: "info", Config: volumeConfig})
			mnt := filepath.Join(t.TempDir(), "mnt")
			store := newVolume(t, s, "data", "--class", class)
			snapctl(t, s, "volume", "mount", "data", mnt)
			unmountIfFailed(t, mnt)
			writers := testbed.KillUnderLoad(t, s, mnt, testbed.Rounds(10, 500))
			testbed.Must(t, s.AwaitContainerd())
			mustComeBack(t, s, mnt, writers)
			mustBeRight(t, s, "data", store)
		})
	}
}

// TestVolumeKilledClean: remorad is killed when the store has everything, and the journal much of it still; what was written is
// there, and writes go on.
func TestVolumeKilledClean(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{Bare: true, LogLevel: "info"})
	mnt := filepath.Join(t.TempDir(), "mnt")
	store := newVolume(t, s, "data")
	snapctl(t, s, "volume", "mount", "data", mnt)
	unmountIfFailed(t, mnt)
	for round := range testbed.Rounds(3, 30) {
		want := make([]byte, 64<<20)
		_, _ = rand.NewChaCha8([32]byte{byte(round)}).Read(want)
		file := filepath.Join(mnt, "file")
		testbed.Must(t, os.WriteFile(file, want, 0o600))
		testbed.SyncFS(t, mnt)
		testbed.WaitFor(t, "the store to have everything", func() bool {
			var d struct {
				AtRisk int64 `json:"at_risk_bytes"`
			}
			testbed.Must(t, json.Unmarshal([]byte(snapctl(t, s, "volume", "inspect", "data", "--json")), &d))
			return d.AtRisk == 0
		})
		testbed.Must(t, s.RestartRemorad(unix.SIGKILL))
		written := make(chan error, 1)
		go func() { written <- os.WriteFile(filepath.Join(mnt, "more"), want, 0o600) }()
		testbed.WaitFor(t, "writes to go on", func() bool { return len(written) > 0 })
		testbed.Must(t, <-written)
		testbed.SyncFS(t, mnt)
		got, err := os.ReadFile(file)
		testbed.Must(t, err)
		if !bytes.Equal(got, want) {
			t.Error("wrong bytes")
		}
	}
	snapctl(t, s, "volume", "umount", "data")
	mustBeRight(t, s, "data", store)
}

// mustComeBack detaches the volume, which takes until its store has everything, and insists that it has what was written: by
// the file system's own check, and block by block.
func mustComeBack(t *testing.T, s *testbed.Stack, mnt string, writers []*testbed.Writer) {
	t.Helper()
	snapctl(t, s, "volume", "umount", "data")
	dev := strings.TrimSpace(snapctl(t, s, "volume", "attach", "data"))
	testbed.FileSystems[0].Clean(t, dev)
	snapctl(t, s, "volume", "mount", "data", mnt)
	testbed.MustHoldWrites(t, writers, mnt)
	snapctl(t, s, "volume", "umount", "data")
}

// TestVolumeTakenOver: a second node gets a volume when the first one's lease has ended, not before, and what the first one
// had flushed is there. The first one, back again, gets errors and never writes into the volume.
func TestVolumeTakenOver(t *testing.T) {
	t.Parallel()
	const config = "[volume]\njournal = \"64MiB\"\nlease = \"10s\"\n" // a node whose disk is busy for some seconds has not gone
	a := testbed.New(t, testbed.Options{Bare: true, LogLevel: "info", Config: config})
	b := testbed.New(t, testbed.Options{Bare: true, LogLevel: "info", Config: config})
	mnt, other := filepath.Join(t.TempDir(), "a"), filepath.Join(t.TempDir(), "b")
	store := newVolume(t, a, "data")
	snapctl(t, a, "volume", "mount", "data", mnt)
	testbed.Must(t, os.WriteFile(filepath.Join(mnt, "kept"), []byte("flushed"), 0o600))
	testbed.SyncFS(t, mnt)
	mustRefuse(t, b, "in use by another node", "volume", "mount", "--store", store, "data", other)

	testbed.Must(t, unix.Kill(a.RemoradPID(), unix.SIGSTOP))          // a node that does not answer
	t.Cleanup(func() { _ = unix.Kill(a.RemoradPID(), unix.SIGCONT) }) // whatever becomes of the test
	begin := time.Now()
	snapctl(t, b, "volume", "mount", "--store", store, "data", other)
	if waited := time.Since(begin); waited < 10*time.Second {
		t.Errorf("the volume was taken after %v, the lease lasts 10 s", waited)
	}
	if p, err := os.ReadFile(filepath.Join(other, "kept")); err != nil || string(p) != "flushed" {
		t.Errorf("%q, %v", p, err)
	}
	if out := snapctl(t, b, "volume", "inspect", "data"); !strings.Contains(out, "takeover") {
		t.Errorf("inspect says nothing of the takeover:\n%s", out)
	}
	testbed.Must(t, os.WriteFile(filepath.Join(other, "new"), []byte("of b"), 0o600))
	testbed.SyncFS(t, other)
	testbed.Must(t, unix.Kill(a.RemoradPID(), unix.SIGCONT))
	if out := snapctl(t, a, "volume", "ls", "--store", store); !strings.Contains(out, "another node has taken the volume") {
		t.Errorf("ls on the first node:\n%s", out)
	}
	testbed.WaitFor(t, "the first node to learn that it has lost the volume", func() bool {
		f, err := os.OpenFile(filepath.Join(mnt, "late"), os.O_CREATE|os.O_WRONLY|unix.O_SYNC, 0o600)
		if err != nil {
			return true
		}
		_, err = f.Write(make([]byte, 1<<20))
		return errors.Join(err, f.Sync(), f.Close()) != nil
	})
	testbed.Must(t, unix.Unmount(mnt, unix.MNT_DETACH))
	snapctl(t, b, "volume", "umount", "data")
	snapctl(t, b, "volume", "mount", "data", other)
	if p, err := os.ReadFile(filepath.Join(other, "new")); err != nil || string(p) != "of b" {
		t.Errorf("%q, %v", p, err)
	}
	if _, err := os.Stat(filepath.Join(other, "late")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what the first node wrote late is there (%v)", err)
	}
	snapctl(t, b, "volume", "umount", "data")
	snapctl(t, a, "volume", "detach", "data")
	out := snapctl(t, b, "volume", "fsck", "data")
	t.Log(strings.TrimSpace(out))
	snapctl(t, b, "volume", "rm", "data")
}

// TestVolumeLeftJournal: a volume of class local is not attached without the journal that a dead node has, unless the loss is
// accepted. The node that comes back with the journal says what it has lost, and puts it aside.
func TestVolumeLeftJournal(t *testing.T) {
	t.Parallel()
	a := testbed.New(t, testbed.Options{Bare: true, LogLevel: "info", Config: volumeConfig})
	b := testbed.New(t, testbed.Options{Bare: true, LogLevel: "info", Config: volumeConfig})
	mnt := filepath.Join(t.TempDir(), "mnt")
	store := newVolume(t, a, "data", "--class", "local")
	snapctl(t, a, "volume", "mount", "data", mnt)
	testbed.Must(t, os.WriteFile(filepath.Join(mnt, "file"), []byte("x"), 0o600))
	testbed.SyncFS(t, mnt)
	testbed.Unmount(t, mnt)
	testbed.Must(t, a.StopRemorad(unix.SIGKILL))
	mustRefuse(t, b, "--accept-loss", "volume", "attach", "--store", store, "data")
	snapctl(t, b, "volume", "attach", "--store", store, "--accept-loss", "data")
	snapctl(t, b, "volume", "detach", "data")
	t.Log(strings.TrimSpace(snapctl(t, b, "volume", "fsck", "data")))
	testbed.Must(t, a.StartRemorad())
	// Its device has ended with the volume, whose journal it has put aside.
	mustRefuse(t, a, "writes that were flushed may be lost: its journal", "volume", "mount", "data", mnt)
	snapctl(t, a, "volume", "detach", "data")
	snapctl(t, a, "volume", "attach", "data")
	snapctl(t, a, "volume", "detach", "data")
	orphans, err := filepath.Glob(filepath.Join(a.Root, "volumes", "journals", "*.orphan"))
	if err != nil || len(orphans) != 1 {
		t.Errorf("the journal that was left behind: %q, %v", orphans, err)
	}
	mustBeWhole(t, a)
}

// TestVolumeEmptiedRoot: a node whose root was emptied is another one: it waits for the end of the lease, and a volume of class
// local is not attached without its journal unless the loss is accepted.
func TestVolumeEmptiedRoot(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{Bare: true, LogLevel: "info", Config: volumeConfig})
	store := newVolume(t, s, "data", "--class", "local")
	dev := strings.TrimSpace(snapctl(t, s, "volume", "attach", "data"))
	testbed.Must(t, s.StopRemorad(unix.SIGKILL))
	testbed.Must(t, s.KillHolder())
	testbed.Tool(t, "losetup", "-d", dev)
	mounts, err := testbed.MountsUnder(s.Root) // they have ended with who served them
	testbed.Must(t, err)
	for _, m := range mounts {
		testbed.Must(t, unix.Unmount(m, unix.MNT_DETACH))
	}
	entries, err := os.ReadDir(s.Root)
	testbed.Must(t, err)
	for _, e := range entries {
		testbed.Must(t, os.RemoveAll(filepath.Join(s.Root, e.Name())))
	}
	testbed.Must(t, s.StartRemorad())
	if out := snapctl(t, s, "volume", "ls"); strings.Contains(out, "data") {
		t.Errorf("an empty root knows of a volume:\n%s", out)
	}
	mustRefuse(t, s, "--accept-loss", "volume", "attach", "--store", store, "data")
	snapctl(t, s, "volume", "attach", "--store", store, "--accept-loss", "data")
	log, err := os.ReadFile(s.RemoradLog())
	testbed.Must(t, err)
	if n := strings.Count(string(log), "msg=takeover"); n != 1 {
		t.Errorf("%d takeovers in the log of a node that is another one", n)
	}
	snapctl(t, s, "volume", "detach", "data")
	mustBeWhole(t, s)
}

// TestVolumeOpen: a device that somebody has open, or has made a device of, is not detached, and who that is, is said.
func TestVolumeOpen(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{Bare: true, LogLevel: "info", Config: volumeConfig})
	store := newVolume(t, s, "data")
	dev := strings.TrimSpace(snapctl(t, s, "volume", "attach", "data"))
	f, err := os.OpenFile(dev, os.O_RDWR, 0) // not exclusively: as a database or a virtual machine
	testbed.Must(t, err)
	mustRefuse(t, s, fmt.Sprintf("in use: open by process %d (", os.Getpid()), "volume", "detach", "data")
	want := bytes.Repeat([]byte("data"), 1024)
	_, err = f.WriteAt(want, 1<<20)
	testbed.Must(t, errors.Join(err, f.Sync(), f.Close())) // it went on working
	above, err := blockdev.AttachLoopOn(dev, blockdev.LoopOptions{})
	testbed.Must(t, err)
	mustRefuse(t, s, "in use: open by device "+above.Path(), "volume", "detach", "data")
	mustRefuse(t, s, "in use: open by device "+above.Path(), "volume", "detach", "--abandon-to-journal", "data")
	testbed.Must(t, above.Release())
	snapctl(t, s, "volume", "detach", "data")
	dev = strings.TrimSpace(snapctl(t, s, "volume", "attach", "data"))
	got := make([]byte, len(want))
	f, err = os.Open(dev)
	testbed.Must(t, err)
	_, err = f.ReadAt(got, 1<<20)
	testbed.Must(t, errors.Join(err, f.Close()))
	if !bytes.Equal(got, want) {
		t.Error("what was written while detaching was refused is gone")
	}
	snapctl(t, s, "volume", "detach", "data")
	mustBeRight(t, s, "data", store)
}

// TestVolumeNothingStays: when all is detached nothing is mounted under the root any longer, and a holder whose remorad was killed ends
// when it is told to.
func TestVolumeNothingStays(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{Bare: true, LogLevel: "info", Config: volumeConfig})
	store := newVolume(t, s, "data")
	for range 2 {
		snapctl(t, s, "volume", "attach", "data")
		if _, err := os.ReadDir(filepath.Join(s.Root, "fuse-disks")); err != nil {
			t.Error(err)
		}
		snapctl(t, s, "volume", "detach", "data")
		if left, err := testbed.MountsUnder(s.Root); err != nil || len(left) > 0 {
			t.Errorf("mounts left: %v, %v", left, err)
		}
	}
	pid := s.HolderPID()
	testbed.Must(t, s.StopRemorad(unix.SIGKILL))
	if err := unix.Kill(pid, unix.SIGTERM); !errors.Is(err, unix.ESRCH) { // it has ended by itself
		testbed.Must(t, err)
	}
	testbed.WaitFor(t, "the holder to end", func() bool { return s.HolderPID() != pid })
	testbed.Must(t, s.StartRemorad())
	mustBeRight(t, s, "data", store)
}
