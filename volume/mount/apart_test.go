package mount_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

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
