package images_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev/mounts"
	"github.com/remora-storage/remora/conformance/testbed"
)

const license = "/usr/share/common-licenses/GPL-3" // a file that no program here reads by itself

// TestRegistryGone: with unreachable = "wait" a reader waits for as long as the registry is away,
// status says who waits and why, and then the read is right.
func TestRegistryGone(t *testing.T) {
	t.Parallel()
	for _, backend := range []string{"precontent", "fuse-file"} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			s := testbed.New(t, testbed.Options{LogLevel: "info",
				Config: "attempts = 2\n[fetch]\nunreachable = \"wait\"\nbackground = \"off\"\n" + mountBy(backend)})
			_, _ = testbed.Pushed(t, s, testbed.Python)
			want, err := os.ReadFile(mountOrdinary(t, s) + license)
			testbed.Must(t, err)
			p := newFaultyProxy(t, s)
			lazy := p.Listener.Addr().String() + "/python:lazy"
			_, err = s.Snapctl(t.Context(), "pull", lazy)
			testbed.Must(t, err)
			_, err = s.Ctr(t.Context(), "run", "-d", "--snapshotter", "remora", lazy, "waiter", "sleep", "1000")
			testbed.Must(t, err)
			down := fault(status(http.StatusServiceUnavailable))
			p.fault.Store(&down)
			got := make(chan string, 1)
			go func() {
				out, err := s.Ctr(context.Background(), "tasks", "exec", "--exec-id", "read", "waiter", "cat", license)
				if err != nil {
					out = err.Error()
				}
				got <- out
			}()
			testbed.WaitFor(t, "status to name the reader", func() bool {
				st, err := s.Status(t.Context())
				testbed.Must(t, err)
				for _, w := range st.Waiting {
					if w.Container == "waiter" && w.Command != "" && strings.Contains(w.Reason, "503") && strings.Contains(w.Image, "python:lazy") {
						return true
					}
				}
				return false
			})
			away := time.Duration(testbed.Rounds(4, 60)) * time.Second
			select {
			case out := <-got:
				t.Fatalf("the reader did not wait: %.200q", out)
			case <-time.After(away):
			}
			// A reader that is killed while it waits is gone at once; remorad's restart changes nothing.
			testbed.Must(t, s.RestartRemorad(syscall.SIGKILL))
			p.fault.Store(nil)
			if out := <-got; out != string(want) {
				t.Errorf("after %s: got %d bytes (%.100q), want %d", away, len(out), out, len(want))
			}
			log, err := os.ReadFile(s.RemoradLog())
			testbed.Must(t, err)
			if n := bytes.Count(log, []byte("source does not answer")); n == 0 || n > 6 { // once a layer and life
				t.Errorf("%d warnings", n)
			}
		})
	}
}

// TestDaemonDown: with remorad stopped, what waits can be killed, and containers ended.
func TestDaemonDown(t *testing.T) {
	t.Parallel()
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			s := testbed.New(t, testbed.Options{LogLevel: "info", Config: mountBy(backend) + "[fetch]\nbackground = \"off\"\n"})
			_, lazy := testbed.Pushed(t, s, testbed.Python)
			_, err := s.Snapctl(t.Context(), "pull", lazy)
			testbed.Must(t, err)
			dir := t.TempDir()
			testbed.Must(t, unix.Mkfifo(filepath.Join(dir, "go"), 0o600))
			_, err = s.Ctr(t.Context(), "run", "-d", "--snapshotter", "remora", "--mount", "type=bind,src="+dir+",dst=/mnt,options=rbind",
				lazy, "waiter", "sh", "-c", "read go </mnt/go; read line <"+license+"; sleep 1000")
			testbed.Must(t, err)
			shell := runningTask(t, s)
			var word *os.File
			testbed.WaitFor(t, "the container to wait for its word", func() bool { // nobody reads it before the shell has begun
				word, err = os.OpenFile(filepath.Join(dir, "go"), os.O_WRONLY|unix.O_NONBLOCK, 0)
				return err == nil
			})
			testbed.Must(t, s.StopRemorad(syscall.SIGTERM))
			log, err := os.ReadFile(s.RemoradLog())
			testbed.Must(t, err)
			if !strings.Contains(string(log), "mounts stay") {
				t.Error("the log does not say that mounts stay")
			}
			_, err = word.WriteString("go\n")
			testbed.Must(t, errors.Join(err, word.Close()))
			was := ""
			testbed.WaitFor(t, "the container to wait for its file", func() bool {
				before := was
				was = fileCall(shell)
				in, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/0", shell))
				testbed.Must(t, err)
				return was != "" && was == before && in != "/mnt/go"
			})
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if _, err := s.Ctr(ctx, "tasks", "kill", "--all", "-s", "SIGKILL", "waiter"); err != nil {
				t.Errorf("kill: %v", err)
			}
			testbed.WaitFor(t, "the container to end", func() bool {
				out, err := s.Ctr(ctx, "tasks", "ls")
				testbed.Must(t, err)
				return !strings.Contains(out, "waiter") || strings.Contains(out, "STOPPED")
			})
			if _, err := s.Ctr(ctx, "tasks", "rm", "-f", "waiter"); err != nil { // unmounts its root file system
				t.Errorf("delete: %v", err)
			}
			testbed.Must(t, s.StartRemorad())
			testbed.RunImage(t, s, lazy, "after", "remora", testbed.Python)
		})
	}
}

// fileCall returns the system call in which a process opens or reads a file, or "": its number, arguments and place.
func fileCall(pid int) string {
	p, err := os.ReadFile(fmt.Sprintf("/proc/%d/syscall", pid))
	if f := strings.Fields(string(p)); err == nil && len(f) > 0 && (f[0] == fmt.Sprint(unix.SYS_READ) || f[0] == fmt.Sprint(unix.SYS_OPENAT)) {
		return string(p)
	}
	return ""
}

// runningTask returns the process of the stack's only container, or 0 if none runs.
func runningTask(t *testing.T, s *testbed.Stack) int {
	t.Helper()
	tasks, err := s.Ctr(t.Context(), "tasks", "ls")
	testbed.Must(t, err)
	for line := range strings.Lines(tasks) {
		if f := strings.Fields(line); len(f) == 3 && f[2] == "RUNNING" {
			pid, err := strconv.Atoi(f[1])
			testbed.Must(t, err)
			return pid
		}
	}
	return 0
}

// TestPullRightAfterStart: containerd has tried to reach remorad while it was down or ended, and does
// not try again for a while; a pull waits for that, be the image new or there already.
func TestPullRightAfterStart(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{LogLevel: "info"})
	_, lazy := testbed.Pushed(t, s, testbed.Python)
	for round, ends := range []bool{true, true, false, false} {
		testbed.Must(t, s.StopRemorad(syscall.SIGKILL))
		testbed.Must(t, os.RemoveAll(s.Remora))
		closeListener := func() error { return nil }
		if ends {
			l, err := net.Listen("unix", s.Remora)
			testbed.Must(t, err)
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					c.Close() // as the kernel does for a process that is killed
				}
			}()
			closeListener = l.Close
		}
		for try := range 3 { // each that fails makes containerd wait longer
			if _, err := s.Ctr(t.Context(), "snapshots", "--snapshotter", "remora", "prepare", "any"); err == nil {
				t.Fatal("prepared without remorad")
			}
			time.Sleep(time.Duration(try) * time.Second)
		}
		testbed.Must(t, closeListener())
		testbed.Must(t, s.StartRemoradOnly())
		if _, err := s.Snapctl(t.Context(), "pull", lazy); err != nil {
			t.Errorf("round %d: %v", round, err)
		}
	}
	testbed.RunImage(t, s, lazy, "after", "remora", testbed.Python)
}

// TestDetach: refused while a container runs, and then nothing is left, the holder included.
func TestDetach(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{LogLevel: "info"})
	_, lazy := testbed.Pushed(t, s, testbed.Python)
	_, err := s.Snapctl(t.Context(), "pull", lazy)
	testbed.Must(t, err)
	_, err = s.Ctr(t.Context(), "run", "-d", "--snapshotter", "remora", lazy, "user", "sleep", "1000")
	testbed.Must(t, err)
	if _, err := s.Snapctl(t.Context(), "detach", "--all"); err == nil || !strings.Contains(err.Error(), s.Namespace+"/user") {
		t.Errorf("detach under a container: %v", err)
	}
	_, err = s.Ctr(t.Context(), "tasks", "rm", "-f", "user")
	testbed.Must(t, err)
	out, err := s.Snapctl(t.Context(), "detach", "--all")
	testbed.Must(t, err)
	if !strings.Contains(out, "3 layers") {
		t.Errorf("said %q", out)
	}
	left, err := testbed.MountsUnder(s.Root)
	testbed.Must(t, err)
	if len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	testbed.RunImage(t, s, lazy, "again", "remora", testbed.Python) // mounts anew, without a pull
	lazyLayers(t, s, 3, testbed.BestBackend)
	_, err = s.Snapctl(t.Context(), "detach", "--all")
	testbed.Must(t, err)
	group := s.HolderGroup()
	testbed.Must(t, s.StopRemorad(syscall.SIGTERM))
	testbed.WaitFor(t, "the holder to end", func() bool { return s.HolderPID() == 0 })
	if _, err := os.Stat(group); group != "" && err == nil {
		t.Errorf("the holder's control group is left: %s", group)
	}
	testbed.Must(t, s.StartRemorad())
}

// TestCacheCommands: what is pinned stays, the rest can be pruned, and comes back. What the kernel
// reads without asking stays in any case: a hole punched into it would read as zeros.
func TestCacheCommands(t *testing.T) {
	t.Parallel()
	for _, backend := range []string{"precontent", "fuse-file"} {
		t.Run(backend, func(t *testing.T) { cacheCommands(t, backend) })
	}
}

func cacheCommands(t *testing.T, backend string) {
	t.Helper()
	s := testbed.New(t, testbed.Options{LogLevel: "info", Config: mountBy(backend)})
	_, one := testbed.Pushed(t, s, testbed.Python)
	_, two := testbed.Pushed(t, s, testbed.Programs[2])
	for _, ref := range []string{one, two} {
		_, err := s.Snapctl(t.Context(), "pull", ref)
		testbed.Must(t, err)
		testbed.Must(t, readInView(t, s, ref))
	}
	_, err := s.Snapctl(t.Context(), "cache", "pin", one)
	testbed.Must(t, err)
	if _, err := s.Snapctl(t.Context(), "cache", "pin", s.Ref("no/such:image")); err == nil {
		t.Error("an image that is not here was pinned")
	}
	before := cacheOf(t, s)
	testbed.Must(t, s.RestartRemorad(syscall.SIGTERM)) // pins are kept
	_, err = s.Snapctl(t.Context(), "cache", "prune")
	testbed.Must(t, err)
	after := cacheOf(t, s)
	for digest, b := range before {
		a := after[digest]
		switch shared := len(b.Images) > 1; {
		case backend == "precontent" && (a.Present < b.Present || a.Evictable):
			t.Errorf("layer %s, which is mounted: %d of %d bytes are left", digest, a.Present, b.Present)
		case (b.Pinned || shared) && a.Present < b.Present:
			t.Errorf("pinned layer %s: %d of %d bytes are left", digest, a.Present, b.Present)
		case !b.Pinned && !shared && a.Present > 0 && a.Evictable:
			t.Errorf("layer %s: %d bytes are left", digest, a.Present)
		}
	}
	for _, ref := range []string{one, two} {
		testbed.Must(t, readInView(t, s, ref))
	}
	_, err = s.Snapctl(t.Context(), "cache", "unpin", one)
	testbed.Must(t, err)
}

type cachedLayer struct {
	Images            []string
	Present           int64 `json:"present_bytes"`
	Pinned, Evictable bool
}

func cacheOf(t *testing.T, s *testbed.Stack) map[string]cachedLayer {
	t.Helper()
	out, err := s.Snapctl(t.Context(), "--json", "cache", "ls")
	testbed.Must(t, err)
	var reply struct {
		Entries []struct {
			Digest string
			cachedLayer
		}
	}
	testbed.Must(t, json.Unmarshal([]byte(out), &reply))
	all := map[string]cachedLayer{}
	for _, e := range reply.Entries {
		all[e.Digest] = e.cachedLayer
	}
	return all
}

// readInView reads a file of an image.
func readInView(t *testing.T, s *testbed.Stack, ref string) error {
	t.Helper()
	_, err := s.Ctr(t.Context(), "run", "--rm", "--snapshotter", "remora", ref, "view", "cat", license)
	return err
}

// inUserNamespace are arguments of ctr run.
var inUserNamespace = []string{"--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536", "--remap-labels"}

// refusesUserNamespace insists that remorad refuses a container that this containerd would show empty layers.
func refusesUserNamespace(t *testing.T, s *testbed.Stack, ref string) {
	t.Helper()
	args := append([]string{"run", "--rm", "--snapshotter", "remora"}, inUserNamespace...)
	if out, err := s.Ctr(t.Context(), append(args, ref, "mapped", "true")...); err == nil || !strings.Contains(err.Error(), "2.3 or later") {
		t.Errorf("a container in a user namespace: %v\n%s", err, out)
	}
}

// TestUserNamespace: a container in a user namespace shares the layers by idmapped mounts, sees its
// files as root's, and fetches no more than one outside. It is refused where containerd cannot do that.
func TestUserNamespace(t *testing.T) {
	t.Parallel()
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			s := testbed.New(t, testbed.Options{LogLevel: "info", Config: mountBy(backend)})
			_, lazy := testbed.Pushed(t, s, testbed.Python)
			fetched := func(args ...string) int64 {
				t.Helper()
				_, err := s.Snapctl(t.Context(), "pull", lazy)
				testbed.Must(t, err)
				out, err := s.Ctr(t.Context(), append(append([]string{"run", "--rm", "--snapshotter", "remora"}, args...), lazy, "c",
					"sh", "-c", "stat -c %u:%g /etc/passwd /usr/bin/python3; echo x >/etc/new; rm /etc/debian_version; python3 -c 'print(\"ok\")'")...)
				testbed.Must(t, err)
				if out != "0:0\n0:0\nok\n" {
					t.Errorf("printed %q", out)
				}
				st, err := s.Status(t.Context())
				testbed.Must(t, err)
				n := int64(0)
				for _, l := range st.Layers {
					n += l.FetchedBytes
				}
				removeAll(t, s, lazy)
				waitNoLayers(t, s)
				return n
			}
			outside := fetched()
			if s.MapsNoMounts() {
				_, err := s.Snapctl(t.Context(), "pull", lazy)
				testbed.Must(t, err)
				refusesUserNamespace(t, s, lazy)
				return
			}
			inside := fetched(inUserNamespace...)
			t.Logf("fetched %d outside, %d inside", outside, inside)
			if inside > outside*11/10 {
				t.Errorf("a container in a user namespace fetched %d bytes, one outside %d", inside, outside)
			}
		})
	}
}

// TestMeasuredMemory: a container with little memory reads an image that is much larger. What remorad
// writes into the cache is not the container's.
func TestMeasuredMemory(t *testing.T) {
	for _, backend := range []string{"precontent", "fuse-file"} {
		t.Run(backend, func(t *testing.T) {
			s := testbed.New(t, testbed.Options{LogLevel: "info", Config: mountBy(backend)})
			_, lazy := testbed.Pushed(t, s, testbed.Python)
			_, err := s.Snapctl(t.Context(), "pull", lazy)
			testbed.Must(t, err)
			const limit = 32 << 20
			out, err := s.Ctr(t.Context(), "run", "--rm", "--memory-limit", strconv.Itoa(limit), "--snapshotter", "remora", lazy, "small",
				"sh", "-c", "find / -xdev -type f -print0 | xargs -0 cat | wc -c")
			testbed.Must(t, err)
			if n, err := strconv.ParseInt(strings.TrimSpace(out), 10, 64); err != nil || n < 3*limit {
				t.Errorf("read %q, %v", out, err)
			}
		})
	}
}

// TestReboot: after a reboot nothing is mounted and nobody holds anything. Everything comes back
// from the cache, without the registry, and what is missing then waits or fails, and is never zeros.
func TestReboot(t *testing.T) {
	t.Parallel()
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			s := testbed.New(t, testbed.Options{LogLevel: "info", Config: mountBy(backend)})
			_, lazy := testbed.Pushed(t, s, testbed.Python)
			_, err := s.Snapctl(t.Context(), "pull", lazy)
			testbed.Must(t, err)
			testbed.RunImage(t, s, lazy, "before", "remora", testbed.Python)
			testbed.WaitFor(t, "what was filled to be recorded", func() bool { return recordedFills(t, s) })
			testbed.Must(t, s.KillHolder())
			testbed.Must(t, s.StopRemorad(syscall.SIGKILL))
			testbed.Must(t, s.KillHolder())
			left, err := testbed.MountsUnder(s.Root)
			testbed.Must(t, err)
			for i := len(left) - 1; i >= 0; i-- {
				testbed.Must(t, unix.Unmount(left[i], unix.MNT_DETACH))
			}
			testbed.Must(t, s.StopRegistry())
			s.Configure("[fetch]\nunreachable = \"eio\"\ndeadline = \"1s\"\nbackground = \"off\"\n")
			testbed.Must(t, s.StartRemorad())
			lazyLayers(t, s, 3, backend)
			testbed.RunImage(t, s, lazy, "after", "remora", testbed.Python)
			out, err := s.Ctr(t.Context(), "run", "--rm", "--snapshotter", "remora", lazy, "missing", "cat", license)
			if err == nil || strings.Contains(out, "\x00") {
				t.Errorf("data that is not here: %d bytes, %v", len(out), err)
			}
		})
	}
}

// recordedFills reports whether each layer's record of what is present was written after its data.
func recordedFills(t *testing.T, s *testbed.Stack) bool {
	t.Helper()
	images, err := filepath.Glob(filepath.Join(s.Root, "cache", "*", "image"))
	testbed.Must(t, err)
	for _, image := range images {
		data, err := os.Stat(image)
		testbed.Must(t, err)
		record, err := os.Stat(filepath.Join(filepath.Dir(image), "present"))
		if err != nil || record.ModTime().Before(data.ModTime()) {
			return false
		}
	}
	return len(images) > 0
}

// TestUpgrade: a newer remorad takes over from an older one, with the older one's holder.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	next := filepath.Join(t.TempDir(), "remorad")
	testbed.NeedRoot(t)
	_, err := testbed.Output(t.Context(), nil, "go", "build", "-C", testbed.Repo(), "-ldflags",
		"-X github.com/remora-storage/remora/cmd/internal/version.Version=next", "-o", next, "./cmd/remorad")
	testbed.Must(t, err)
	s := testbed.New(t, testbed.Options{LogLevel: "info"})
	_, lazy := testbed.Pushed(t, s, testbed.Python)
	_, err = s.Snapctl(t.Context(), "pull", lazy)
	testbed.Must(t, err)
	_, err = s.Ctr(t.Context(), "run", "-d", "--snapshotter", "remora", lazy, "runs", "sleep", "1000")
	testbed.Must(t, err)
	holder := s.HolderPID()
	testbed.Must(t, s.StopRemorad(syscall.SIGTERM))
	s.UsePrograms(next, "")
	testbed.Must(t, s.StartRemorad())
	out, err := s.Snapctl(t.Context(), "--json", "status")
	testbed.Must(t, err)
	if !strings.Contains(out, `"version": "next`) {
		t.Errorf("status: %.200s", out)
	}
	if now := s.HolderPID(); now != holder {
		t.Errorf("another holder: %d, was %d", now, holder)
	}
	st, err := s.Status(t.Context())
	testbed.Must(t, err)
	if len(st.Broken) > 0 {
		t.Errorf("broken: %+v", st.Broken)
	}
	_, err = s.Ctr(t.Context(), "tasks", "exec", "--exec-id", "x", "runs", "cat", license)
	testbed.Must(t, err)
}

// TestNothingLazyIsNeeded: remorad refuses to start from an image that it serves itself.
func TestNothingLazyIsNeeded(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{LogLevel: "info"})
	_, lazy := testbed.Pushed(t, s, testbed.Python)
	_, err := s.Snapctl(t.Context(), "pull", lazy)
	testbed.Must(t, err)
	root := testbed.MountImage(t, s, lazy, "remora")
	config := filepath.Join(t.TempDir(), "config.toml")
	testbed.Must(t, os.WriteFile(config, fmt.Appendf(nil, "[registry]\nconfig_path = [%q]\n", filepath.Join(root, "etc")), 0o644))
	_, err = testbed.Output(t.Context(), nil, "remorad", "--config", config, "--root", t.TempDir(), "--address",
		filepath.Join(t.TempDir(), "s"))
	if err == nil || !strings.Contains(err.Error(), "lazily mounted image") {
		t.Errorf("got %v", err)
	}
}

// TestBackendOfRepository: one repository's layers can be mounted in another way than the rest.
func TestBackendOfRepository(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{LogLevel: "info"})
	_, lazy := testbed.Pushed(t, s, testbed.Python)
	testbed.Must(t, s.StopRemorad(syscall.SIGTERM))
	s.Configure(fmt.Sprintf("[mount.for]\n%q = \"fuse-tree\"\n", s.Addr+"/python"))
	testbed.Must(t, s.StartRemorad())
	_, err := s.Snapctl(t.Context(), "pull", lazy)
	testbed.Must(t, err)
	lazyLayers(t, s, 3, "fuse-tree")
	testbed.RunImage(t, s, lazy, "c", "remora", testbed.Python)
}

// looksAround prints what a container sees of its node: sockets, files that are open, what is mounted from elsewhere, and those of some
// paths that there are.
const looksAround = `import os, stat, sys
for top, dirs, files in os.walk("/"):
    if top == "/": dirs[:] = [d for d in dirs if d not in ("proc", "sys", "dev")]
    for f in files + dirs:
        try:
            if stat.S_ISSOCK(os.lstat(os.path.join(top, f)).st_mode): print("socket", os.path.join(top, f))
        except FileNotFoundError: pass
for fd in range(3, 1024):
    try: print("open", os.readlink("/proc/1/fd/%d" % fd))
    except OSError: pass
for line in open("/proc/self/mountinfo"):
    before, after = line.split(" - ")
    if after.split()[0] not in ("overlay", "proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2"):
        print("mount", before.split()[4], after.split()[0])
for path in sys.argv[1:]:
    if os.path.lexists(path): print("path", path)
`

// TestContainersSeeNothingOfOurs: a container sees no socket and no file of Remora's, unless somebody mounts one into it.
func TestContainersSeeNothingOfOurs(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{LogLevel: "info"})
	_, lazy := testbed.Pushed(t, s, testbed.Python)
	_, err := s.Snapctl(t.Context(), "pull", lazy)
	testbed.Must(t, err)
	look := func(name string, args ...string) string {
		t.Helper()
		args = append([]string{"run", "--rm", "--snapshotter", "remora"}, args...)
		out, err := s.Ctr(t.Context(), append(args, lazy, name, "python3", "-c", looksAround, s.Root, s.Remora, s.Dir)...)
		testbed.Must(t, err)
		return strings.TrimSpace(out)
	}
	if out := look("looks"); out != "" {
		t.Errorf("it sees %s", out)
	}
	out := look("is-shown", "--mount", "type=bind,src="+s.Remora+",dst=/shown,options=bind")
	if !strings.Contains(out, "socket /shown") {
		t.Errorf("of a socket that is mounted it sees %q", out)
	}
}

// TestLayersAreReadOnly: nobody writes to a mounted layer or uses a device of it, root included, in whichever way it is mounted.
func TestLayersAreReadOnly(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{LogLevel: "info"})
	layout, err := testbed.Python.LazyLayout(t.Context())
	testbed.Must(t, err)
	config := "[fetch]\nbackground = \"off\"\n[mount.for]\n"
	for _, backend := range backends {
		config += fmt.Sprintf("%q = %q\n", s.Addr+"/"+backend, backend)
		testbed.Must(t, s.Push(t.Context(), layout, "lazy", backend+":lazy"))
	}
	testbed.Must(t, s.StopRemorad(syscall.SIGTERM))
	s.Configure(config)
	testbed.Must(t, s.StartRemorad())
	for _, backend := range backends {
		ref := s.Ref(backend + ":lazy")
		_, err := s.Snapctl(t.Context(), "pull", ref)
		testbed.Must(t, err)
		lazyLayers(t, s, 3, backend)
		all, err := mounts.Under(s.Root)
		testbed.Must(t, err)
		seen := 0
		for _, m := range all {
			if m.Type != "erofs" && m.Type != "fuse.remora" {
				continue
			}
			var st unix.Statfs_t
			testbed.Must(t, unix.Statfs(m.Dir, &st))
			err := os.Mkdir(filepath.Join(m.Dir, "new"), 0o700)
			if st.Flags&unix.ST_NODEV == 0 || m.Type == "erofs" && st.Flags&unix.ST_RDONLY == 0 || err == nil {
				t.Errorf("%s: %+v has flags %#x, and a directory could be made: %v", backend, m, st.Flags, err == nil)
			}
			if m.Type == "erofs" || backend == "fuse-tree" {
				seen++
			}
		}
		if seen < 3 {
			t.Errorf("%s: layers were seen on %d mounts", backend, seen)
		}
		removeAll(t, s, ref)
		waitNoLayers(t, s)
	}
}

// TestBackground: layers are completed when nobody waits, and then need nobody.
func TestBackground(t *testing.T) {
	t.Parallel()
	for _, when := range []string{"idle", "on"} { // one after the other: by themselves they would begin last, and idle takes its time
		t.Run(when, func(t *testing.T) {
			s := testbed.New(t, testbed.Options{LogLevel: "info", Config: "[fetch]\nbackground = \"" + when + "\"\nbackground_rate = \"0\"\n"})
			_, lazy := testbed.Pushed(t, s, testbed.Python)
			_, err := s.Snapctl(t.Context(), "pull", lazy)
			testbed.Must(t, err)
			_, err = s.Ctr(t.Context(), "run", "-d", "--snapshotter", "remora", lazy, "runs", "sleep", "1000")
			testbed.Must(t, err)
			testbed.WaitFor(t, "all layers to be direct", func() bool {
				st, err := s.Status(t.Context())
				testbed.Must(t, err)
				for _, l := range st.Layers {
					if l.Backend != "direct" || !l.Verified {
						return false
					}
				}
				return len(st.Layers) == 3
			})
			// The container that ran before reads by itself now: with everybody dead, everything.
			testbed.Must(t, s.KillHolder())
			testbed.Must(t, s.StopRemorad(syscall.SIGKILL))
			testbed.Must(t, s.KillHolder())
			out, err := s.Ctr(t.Context(), "tasks", "exec", "--exec-id", "x", "runs", "sh", "-c",
				"find / -xdev -type f -print0 | xargs -0 cat | tr -d '\\000' | wc -c")
			testbed.Must(t, err)
			if n, err := strconv.Atoi(strings.TrimSpace(out)); err != nil || n < 100_000_000 {
				t.Errorf("read %q, %v", out, err)
			}
			testbed.Must(t, s.StartRemorad())
			st, err := s.Status(t.Context())
			testbed.Must(t, err)
			if len(st.Broken) > 0 {
				t.Errorf("broken: %+v", st.Broken)
			}
		})
	}
}
