package volumes_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/conformance/testbed"
)

// A maker is a mkfs.ext4 that stops where a test says, with the device open as mkfs has it, and goes on when it is told to.
type maker struct{ dir string }

const makerScript = `#!/usr/bin/python3
import os, subprocess, sys, time
dir, dev = os.path.dirname(__file__), sys.argv[-1]
stage = open(dir + "/stage").read()
real = ["/usr/sbin/mkfs.ext4"] + sys.argv[1:]
if os.path.exists(dir + "/go"):
    os.execv(real[0], real)
if stage in ("half", "end"):
    subprocess.check_call(real)
if stage == "half":
    with open(dev, "r+b") as f:
        f.seek(1024)
        f.write(b"half" * 256)
        f.flush()
        os.fsync(f.fileno())
fd = os.open(dev, os.O_RDWR | os.O_EXCL)
with open(dir + "/begun.new", "w") as f:
    f.write(str(os.getpid()))
os.rename(dir + "/begun.new", dir + "/begun." + str(len(os.listdir(dir))))
while not os.path.exists(dir + "/go"):
    time.sleep(0.02)
os.close(fd)
if stage == "begin":
    os.execv(real[0], real)
`

// newMaker returns one, and the environment of a remorad that uses it.
func newMaker(t *testing.T) (m maker, env []string) {
	t.Helper()
	m = maker{t.TempDir()}
	testbed.Must(t, os.WriteFile(m.dir+"/mkfs.ext4", []byte(makerScript), 0o755))
	return m, []string{"PATH=" + m.dir + ":" + os.Getenv("PATH") + ":/usr/sbin:/sbin"}
}

// stops has the next ones stop at a stage: begin, half or end.
func (m maker) stops(t *testing.T, stage string) {
	t.Helper()
	testbed.Must(t, os.RemoveAll(m.dir+"/go"))
	testbed.Must(t, os.WriteFile(m.dir+"/stage", []byte(stage), 0o600))
	for _, f := range m.begun(t) {
		testbed.Must(t, os.Remove(f))
	}
}

func (m maker) goes(t *testing.T) {
	t.Helper()
	testbed.Must(t, os.WriteFile(m.dir+"/go", nil, 0o600))
}

// begun has a file for each that has come to its stage.
func (m maker) begun(t *testing.T) []string {
	t.Helper()
	all, err := filepath.Glob(m.dir + "/begun.[0-9]*")
	testbed.Must(t, err)
	return all
}

// stopped waits until one has stopped, and returns its process.
func (m maker) stopped(t *testing.T) (pid int) {
	t.Helper()
	testbed.WaitFor(t, "mkfs to come to its stage", func() bool { return len(m.begun(t)) > 0 })
	p, err := os.ReadFile(m.begun(t)[0])
	testbed.Must(t, err)
	pid, err = strconv.Atoi(string(p))
	testbed.Must(t, err)
	return pid
}

// A verb is a command under way.
type verb struct {
	cmd  *exec.Cmd
	says *bufio.Scanner
}

func beginVerb(t *testing.T, s *testbed.Stack, args ...string) verb {
	t.Helper()
	c, err := testbed.Command(t.Context(), "snapctl", append([]string{"volume"}, args...)...)
	testbed.Must(t, err)
	c.Env = append(c.Env, s.SnapctlEnv()...)
	says, err := c.StderrPipe()
	testbed.Must(t, err)
	testbed.Must(t, c.Start())
	return verb{c, bufio.NewScanner(says)}
}

// hears waits for a line that contains what.
func (v verb) hears(t *testing.T, what string) {
	t.Helper()
	for v.says.Scan() {
		if strings.Contains(v.says.Text(), what) {
			return
		}
	}
	t.Errorf("%s ended without a word of %q", v.cmd, what)
}

// ends waits for the end and returns all that was said since.
func (v verb) ends() (said string, err error) {
	for v.says.Scan() {
		said += v.says.Text() + "\n"
	}
	return said, v.cmd.Wait()
}

func fileSystemOf(t *testing.T, s *testbed.Stack, name string) string {
	t.Helper()
	var d struct{ FS string }
	testbed.Must(t, json.Unmarshal([]byte(snapctl(t, s, "volume", "inspect", name, "--json")), &d))
	return d.FS
}

// TestVolumeHalfMade: a file system whose making was killed with remorad, wherever it was, is made again by the next mount, by the next
// attach, too. So is one whose mkfs has outlived remorad: the next mount waits for that first.
func TestVolumeHalfMade(t *testing.T) {
	t.Parallel()
	m, env := newMaker(t)
	s := testbed.New(t, testbed.Options{Bare: true, LogLevel: "info", Config: volumeConfig, RemoradEnv: env})
	for _, c := range []struct {
		stage  string
		lives  bool // mkfs does
		attach bool // before the volume is mounted
	}{{"begin", false, false}, {"half", false, true}, {"end", false, false}, {"begin", true, false}} {
		name := fmt.Sprintf("%s-%v", c.stage, c.lives)
		mnt := filepath.Join(t.TempDir(), "mnt")
		store := newVolume(t, s, name, "--class", "local")
		m.stops(t, c.stage)
		begun := beginVerb(t, s, "mount", name, mnt)
		begun.hears(t, "making a file system: ext4")
		pid := m.stopped(t)
		testbed.Must(t, s.StopRemorad(unix.SIGKILL))
		if !c.lives {
			testbed.Must(t, unix.Kill(pid, unix.SIGKILL))
		}
		if said, err := begun.ends(); err == nil {
			t.Errorf("%s: mounted by a remorad that was killed: %s", name, said)
		}
		testbed.Must(t, s.StartRemorad())
		if fs := fileSystemOf(t, s, name); fs != "making ext4" {
			t.Errorf("%s: the head says %q", name, fs)
		}
		if !c.lives {
			m.goes(t)
		}
		if c.attach {
			snapctl(t, s, "volume", "attach", name)
			if fs := fileSystemOf(t, s, name); fs != "ext4" {
				t.Errorf("%s: attached with %q", name, fs)
			}
		}
		again := beginVerb(t, s, "mount", name, mnt)
		if c.lives {
			again.hears(t, fmt.Sprintf("process %d (mkfs.ext4)", pid))
			m.goes(t)
		}
		if said, err := again.ends(); err != nil {
			t.Errorf("%s: %v: %s", name, err, said)
		}
		if fs := fileSystemOf(t, s, name); fs != "ext4" {
			t.Errorf("%s: mounted with %q", name, fs)
		}
		testbed.Must(t, os.WriteFile(filepath.Join(mnt, "file"), []byte("content"), 0o600))
		snapctl(t, s, "volume", "umount", name)
		mustBeRight(t, s, name, store)
	}
}

// TestVolumeMountJoined: a mount that is interrupted goes on, the next one for the same joins it, and what else is done with the volume
// comes after it.
func TestVolumeMountJoined(t *testing.T) {
	t.Parallel()
	m, env := newMaker(t)
	s := testbed.New(t, testbed.Options{Bare: true, LogLevel: "info", Config: volumeConfig, RemoradEnv: env})
	mnt := filepath.Join(t.TempDir(), "a", "mnt")
	store := newVolume(t, s, "data")
	m.stops(t, "begin")
	first := beginVerb(t, s, "mount", "data", mnt)
	first.hears(t, "making a file system: ext4")
	m.stopped(t)
	testbed.Must(t, first.cmd.Process.Signal(os.Interrupt))
	if said, err := first.ends(); err == nil {
		t.Errorf("an interrupted mount succeeds: %s", said)
	}
	second, elsewhere := beginVerb(t, s, "mount", "data", mnt), beginVerb(t, s, "mount", "data", mnt+"2")
	second.hears(t, "making a file system: ext4") // the same one
	away := beginVerb(t, s, "detach", "data")
	m.goes(t)
	if said, err := second.ends(); err != nil {
		t.Errorf("%v: %s", err, said)
	}
	if said, err := elsewhere.ends(); err == nil || !strings.Contains(said, "data is mounted on "+mnt) {
		t.Errorf("mounted elsewhere: %v: %s", err, said)
	}
	if said, err := away.ends(); err == nil || !strings.Contains(said, "unmount it first, from "+mnt) {
		t.Errorf("detached: %v: %s", err, said)
	}
	if n := len(m.begun(t)); n != 1 {
		t.Errorf("%d file systems were made", n)
	}
	if st, err := os.Stat(filepath.Dir(mnt)); err != nil || st.Mode().Perm() != 0o755 {
		t.Errorf("the directory was made as %v, %v", st, err)
	}
	snapctl(t, s, "volume", "umount", "data")
	mustBeRight(t, s, "data", store)
}
