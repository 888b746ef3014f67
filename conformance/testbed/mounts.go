package testbed

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev/mounts"
)

// Unmount takes a mount away and returns when its device is free. Tests run side by side: a program that another is about to
// start has a copy of every open file until then, and a container one of every mount.
func Unmount(t *testing.T, dir string) {
	t.Helper()
	at, err := mounts.Own()
	Must(t, err)
	at = slices.DeleteFunc(at, func(m mounts.Mount) bool { return m.Dir != dir })
	WaitFor(t, dir+" to be used by nobody", func() bool {
		err = unix.Unmount(dir, 0)
		return !errors.Is(err, unix.EBUSY)
	})
	Must(t, err)
	for _, m := range at {
		WaitFor(t, m.Source+" to be free", func() bool {
			f, err := os.OpenFile(m.Source, os.O_RDONLY|unix.O_EXCL, 0)
			if err == nil {
				f.Close()
			}
			return !errors.Is(err, unix.EBUSY)
		})
	}
}

// CopyOfMounts starts a process in a mount namespace of its own that keeps its copies of the mounts on and below a directory
// until it is told to end. It gives up those of tests that run beside this one.
func CopyOfMounts(t *testing.T, dir string) (sleeper *exec.Cmd, end func()) {
	t.Helper()
	const script = `cut -d" " -f5 /proc/self/mountinfo | grep "^$1/" | grep -v "^$2" | tac | while read -r m; do umount -l ` +
		`"$m" 2>/dev/null; done; exec sleep 1000`
	sleeper = exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", os.TempDir(), dir)
	Must(t, sleeper.Start())
	end = func() {
		_ = sleeper.Process.Kill()
		_ = sleeper.Wait()
	}
	t.Cleanup(end)
	WaitFor(t, "the copy of the mounts", func() bool {
		p, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", sleeper.Process.Pid))
		return err == nil && strings.TrimSpace(string(p)) == "sleep"
	})
	return sleeper, end
}
