package images_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/remora-storage/remora/conformance/testbed"
)

// backends are those that this kernel has.
var backends = []string{"precontent", "fuse-file", "fuse-loop", "fuse-tree"}

func mountBy(backend string) string { return "[mount]\nbackend = \"" + backend + "\"\n" }

// checksums is the program of a container that reads every file of its image again and again,
// each time in another order, and prints every sum that differs from the first list, which the test
// has put there, and every error. It ends when /stop is made, and not before the test says so: whoever
// makes that file in the container would be killed with it.
const checksums = `
import hashlib, os, random, sys, time
want = {}
for line in open("/test/sums"):
    sum, path = line.rstrip("\n").split(" ", 1)
    want[path] = sum
paths = list(want)
random.seed(int(sys.argv[1]))
n = 0
print("READING", flush=True)
stopped = lambda: os.path.exists("/stop") or os.path.exists("/test/end")
while not stopped():
    random.shuffle(paths)
    for p in paths:
        if stopped():
            break
        try:
            got = hashlib.sha256(open(p, "rb").read()).hexdigest()
        except OSError as e:
            got = "error " + str(e)
        n += 1
        if got != want[p]:
            print("WRONG", p, got, flush=True)
    print("ROUND", n, flush=True)
print("READ", n, flush=True)
while not os.path.exists("/test/end"):
    time.sleep(0.01)
`

// reader is a container that reads its image's files and checks every sum.
type reader struct {
	id  string
	dir string // seen as /test in the container
	cmd *exec.Cmd
}

// out is what the container has printed.
func (r *reader) out(t *testing.T) string {
	t.Helper()
	p, err := os.ReadFile(filepath.Join(r.dir, "out"))
	testbed.Must(t, err)
	return string(p)
}

// awaitReading returns when the container reads. Before, containerd needs remorad to start it.
func (r *reader) awaitReading(t *testing.T) {
	t.Helper()
	testbed.WaitFor(t, r.id+" to read", func() bool { return strings.Contains(r.out(t), "READING") })
}

// startReader starts a reader whose image is lazy. want is the tree of the same image, unpacked.
func startReader(t *testing.T, s *testbed.Stack, ref, id, want string, seed int) *reader {
	t.Helper()
	dir := t.TempDir()
	testbed.Must(t, os.WriteFile(filepath.Join(dir, "sums"), []byte(sumsOf(t, want)), 0o644))
	testbed.Must(t, os.WriteFile(filepath.Join(dir, "checksums.py"), []byte(checksums), 0o644))
	c, err := s.CtrCommand(context.Background(), "run", "--rm", "--snapshotter", "remora", "--mount",
		"type=bind,src="+dir+",dst=/test,options=rbind:ro",
		ref, id, "python3", "/test/checksums.py", fmt.Sprint(seed))
	testbed.Must(t, err)
	out, err := os.Create(filepath.Join(dir, "out"))
	testbed.Must(t, err)
	defer out.Close()
	c.Stdout, c.Stderr = out, out
	testbed.Must(t, c.Start())
	return &reader{id: id, dir: dir, cmd: c}
}

// stop ends a reader and insists that all that it read was right.
func (r *reader) stop(t *testing.T, s *testbed.Stack) {
	t.Helper()
	if _, err := s.Ctr(t.Context(), "tasks", "exec", "--exec-id", "stop", r.id, "touch", "/stop"); err != nil {
		t.Errorf("container %s does not answer any more: %v\n%s", r.id, err, r.out(t))
	}
	testbed.Must(t, os.WriteFile(filepath.Join(r.dir, "end"), nil, 0o644))
	if err := r.cmd.Wait(); err != nil {
		t.Errorf("container %s: %v", r.id, err)
	}
	out := r.out(t)
	if strings.Contains(out, "WRONG") || !strings.Contains(out, "READ") {
		t.Errorf("container %s: %.2000s", r.id, out)
	}
	t.Log(r.id, strings.TrimSpace(out[strings.LastIndex(strings.TrimSpace(out), "\n")+1:]))
}

var sumCache sync.Map // of lists by directory

// sumsOf lists the sums of a tree's regular files, one in a few of those that are small.
func sumsOf(t *testing.T, root string) string {
	t.Helper()
	if v, ok := sumCache.Load(root); ok {
		return v.(string)
	}
	tree, err := testbed.Tree(root)
	testbed.Must(t, err)
	var b strings.Builder
	for name, e := range tree {
		if e.Mode&syscall.S_IFMT == syscall.S_IFREG && !strings.Contains(name, "\n") {
			fmt.Fprintf(&b, "%x /%s\n", e.Hash, name)
		}
	}
	sumCache.Store(root, b.String())
	return b.String()
}

// survive runs readers on an image while something is done to the daemon again and again.
func survive(t *testing.T, s *testbed.Stack, lazy, want string, rounds int, harm func(*testing.T, *rand.Rand)) {
	t.Helper()
	const seed = 20260901
	r := rand.New(rand.NewPCG(seed, 0))
	var readers []*reader
	for round := range rounds {
		if round%10 == 0 { // an image that is all here has nothing left to survive
			for _, one := range readers {
				one.stop(t, s)
			}
			removeAll(t, s, lazy)
			waitNoLayers(t, s)
			_, err := s.Snapctl(t.Context(), "pull", lazy)
			testbed.Must(t, err)
			readers = nil
			for i := range 2 {
				readers = append(readers, startReader(t, s, lazy, fmt.Sprintf("reader-%d-%d", round, i), want, round+i))
			}
			for _, one := range readers {
				one.awaitReading(t)
			}
		}
		time.Sleep(time.Duration(r.IntN(400)) * time.Millisecond)
		harm(t, r)
		if t.Failed() {
			return
		}
	}
	for _, one := range readers {
		one.stop(t, s)
	}
	st, err := s.Status(t.Context())
	testbed.Must(t, err)
	if len(st.Broken) > 0 {
		t.Errorf("broken: %+v", st.Broken)
	}
}

// slowly is a registry that takes its time, so that reads are under way whenever something dies.
func slowly(t *testing.T, s *testbed.Stack) *faultyProxy {
	t.Helper()
	p := newFaultyProxy(t, s)
	p.delay.Store(int64(slow))
	return p
}

const slow = 20 * time.Millisecond

// TestSurvive: a container in the middle of reading a lazy image cannot tell that remorad, or its
// holder, was killed, on any back end.
func TestSurvive(t *testing.T) {
	t.Parallel()
	for _, c := range testbed.Covering(t, testbed.Combinations(backends, []string{"remorad", "holder"})) {
		backend, victim := c[0], c[1]
		t.Run(backend+"/"+victim+" killed", func(t *testing.T) {
			t.Parallel()
			s := testbed.New(t, testbed.Options{Config: mountBy(backend), LogLevel: "info"})
			_, _ = testbed.Pushed(t, s, testbed.Python)
			want := mountOrdinary(t, s)
			lazy := slowly(t, s).Listener.Addr().String() + "/python:lazy"
			kill := func(t *testing.T, r *rand.Rand) {
				testbed.Must(t, s.StopRemorad(syscall.SIGKILL))
				time.Sleep(time.Duration(r.IntN(50)) * time.Millisecond)
				testbed.Must(t, s.StartRemorad())
			}
			if victim == "holder" {
				kill = func(t *testing.T, _ *rand.Rand) {
					was := s.HolderPID()
					testbed.Must(t, s.KillHolder())
					testbed.WaitFor(t, "a new holder", func() bool { now := s.HolderPID(); return now != 0 && now != was })
				}
			}
			survive(t, s, lazy, want, testbed.Rounds(6, 100), kill)
			lazyLayers(t, s, 3, backend)
		})
	}
}

// TestBothKilled: when remorad and its holder die together nothing can be saved, but it is never
// silent: the containers are named, and new ones are right.
func TestBothKilled(t *testing.T) {
	t.Parallel()
	for _, backend := range []string{"precontent", "fuse-file"} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			s := testbed.New(t, testbed.Options{Config: mountBy(backend), LogLevel: "info"})
			src, _ := testbed.Pushed(t, s, testbed.Python)
			p := slowly(t, s)
			lazy := p.Listener.Addr().String() + "/python:lazy"
			for round := range testbed.Rounds(3, 20) {
				_, err := s.Snapctl(t.Context(), "pull", lazy)
				testbed.Must(t, err)
				id := fmt.Sprintf("victim-%d", round)
				_, err = s.Ctr(t.Context(), "run", "-d", "--snapshotter", "remora", lazy, id, "sh", "-c",
					"find / -xdev -type f | xargs cat >/dev/null 2>&1; sleep 1000")
				testbed.Must(t, err)
				time.Sleep(time.Duration(100*round) * time.Millisecond)
				testbed.Must(t, s.KillHolder()) // remorad may have started another
				testbed.Must(t, s.StopRemorad(syscall.SIGKILL))
				testbed.Must(t, s.KillHolder())
				testbed.Must(t, s.StartRemorad())
				st, err := s.Status(t.Context())
				testbed.Must(t, err)
				if len(st.Broken) != 1 || st.Broken[0].Container != s.Namespace+"/"+id {
					t.Fatalf("broken: %+v, want %s", st.Broken, id)
				}
				t.Log(st.Broken[0].Reason)
				testbed.Must(t, s.RestartRemorad(syscall.SIGKILL)) // and is not forgotten
				if st, err = s.Status(t.Context()); err != nil || len(st.Broken) != 1 || st.Broken[0].Container != s.Namespace+"/"+id {
					t.Fatalf("after one more restart broken: %+v, %v", st, err)
				}
				p.delay.Store(0)
				t.Run("after", func(t *testing.T) { sameTree(t, s, lazy, src, func(string) bool { return false }) })
				p.delay.Store(int64(slow))
				_, err = s.Ctr(t.Context(), "tasks", "rm", "-f", id)
				testbed.Must(t, err)
				_, err = s.Ctr(t.Context(), "containers", "rm", id)
				testbed.Must(t, err)
				removeAll(t, s, lazy)
				waitNoLayers(t, s)
			}
		})
	}
}
