package mount_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/volume/mount"
)

const serving = "REMORA_TEST_SERVES_TASKS"

func TestMain(m *testing.M) {
	if os.Getenv(serving) == "" {
		os.Exit(m.Run())
	}
	if err := mount.Serve(os.Stdin, os.Stdout); err != nil {
		os.Exit(1)
	}
}

// apart does a task in another process, which is this program.
func apart(t *testing.T, task mount.Task) (said []string, err error) {
	t.Helper()
	c := exec.Command("/proc/self/exe")
	c.Env = append(os.Environ(), serving+"=1")
	err = mount.Apart(t.Context(), c, task, func(what string) { said = append(said, what) })
	return said, err
}

// TestApart: another process works on the device; what it writes into the head, waits for and says goes through this one.
func TestApart(t *testing.T) {
	calls := programs(t, nil)
	dev := filepath.Join(t.TempDir(), "dev")
	if err := os.WriteFile(dev, make([]byte, 128<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	var did []string
	v := mount.Volume{Name: "data", Device: dev, FS: "making xfs"}
	v.Note = func(_ context.Context, fs string) error {
		did = append(did, fs)
		return nil
	}
	v.Store = func(context.Context) error {
		did = append(did, "store")
		return nil
	}
	said, err := apart(t, mount.Task{Volume: v, Finish: true})
	if err != nil || !slices.Equal(did, []string{"store", "xfs"}) || !slices.Equal(said, []string{"making a file system: xfs"}) {
		t.Errorf("did %q, said %q, %v", did, said, err)
	}
	if got := calls(); got != "mkfs.xfs -q -K -f "+dev {
		t.Errorf("called %q", got)
	}
	if err := os.WriteFile(dev, with(0, "XFSB"), 0o600); err != nil {
		t.Fatal(err)
	}
	did = nil
	said, err = apart(t, mount.Task{Volume: v, Finish: true})
	if err != nil || len(did) > 0 || len(said) != 1 || !strings.Contains(said[0], "holds xfs") || calls() != "" {
		t.Errorf("what somebody may have made: did %q, said %q, %v", did, said, err)
	}
	if err := os.WriteFile(dev, make([]byte, 128<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	v.Store = func(context.Context) error { return errors.New("the store is away") }
	if _, err := apart(t, mount.Task{Volume: v, Finish: true}); err == nil || err.Error() != "the store is away" {
		t.Errorf("not stored: %v", err)
	}
	none := mount.Volume{Device: dev + "none"}
	if _, err := apart(t, mount.Task{Volume: none, Free: true}); err == nil || !strings.Contains(err.Error(), "none") {
		t.Errorf("no device: %v", err)
	}
	if said, err := apart(t, mount.Task{Volume: v, Free: true}); err != nil || len(said) > 0 {
		t.Errorf("not mounted: %q, %v", said, err)
	}
	programs(t, map[string]string{"mkfs.xfs": "kill -9 $PPID"})
	if _, err := apart(t, mount.Task{Volume: v, Finish: true}); err == nil || !strings.Contains(err.Error(), "has ended") {
		t.Errorf("killed: %v", err)
	}
}

// TestApartResigns: what works on a device has none of what the kernel grants to whoever serves it, nor has a mkfs that it starts.
func TestApartResigns(t *testing.T) {
	const score, flusher = "/proc/self/oom_score_adj", 0x00080000 // PF_MEMALLOC_NOIO
	had, err := os.ReadFile(score)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(score, []byte("500"), 0); err != nil { // to be spared needs a right
		t.Fatal(err)
	}
	defer func() {
		if err := os.WriteFile(score, had, 0); err != nil {
			t.Error(err)
		}
	}()
	runtime.LockOSThread() // which ends with this test: children have what the thread has that starts them
	if err := unix.Prctl(unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0); err != nil {
		t.Log("not a flusher, which needs a right: ", err)
	}
	_, _, cgo := syscall.AllThreadsSyscall(unix.SYS_GETPID, 0, 0, 0) // then nobody can change all threads
	out := filepath.Join(t.TempDir(), "out")
	programs(t, map[string]string{"mkfs.xfs": "cat " + score + " > " + out + "; cut -d' ' -f9 /proc/$$/stat >> " + out})
	dev := filepath.Join(t.TempDir(), "dev")
	if err := os.WriteFile(dev, make([]byte, 128<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	v := mount.Volume{Name: "data", Device: dev, FS: "making xfs"}
	v.Note = func(context.Context, string) error { return nil }
	v.Store = func(context.Context) error { return nil }
	if _, err := apart(t, mount.Task{Volume: v, Finish: true}); err != nil {
		t.Fatal(err)
	}
	p, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	var got, flags int
	if _, err := fmt.Sscan(string(p), &got, &flags); err != nil || got != 0 || cgo == 0 && flags&flusher != 0 {
		t.Errorf("mkfs has the score %d and the flags %#x (%v)", got, flags, err)
	}
}
