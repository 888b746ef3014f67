package volumes_test

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev/mounts"
	"github.com/remora-storage/remora/conformance/testbed"
)

// fstab mounts a volume as mount(8) has mount.remora do it for a line of /etc/fstab.
func fstab(t *testing.T, s *testbed.Stack, volume, dir string) {
	t.Helper()
	script := filepath.Join(testbed.Repo(), "cmd/remorad/mount.remora")
	cmd := exec.Command("sh", script, volume, dir, "-o", "rw,_netdev,nofail,noatime,x-systemd.after=x")
	cmd.Env = append(os.Environ(), s.SnapctlEnv()...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("mount.remora: %v\n%s", err, out)
	}
}

// TestVolumeShutdown: what systemd runs when a machine shuts down leaves no mount and no device, with the store there or away. After
// the next start a volume is mounted by its line in fstab, with all that was written, and what nobody mounts is stored and given up.
func TestVolumeShutdown(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{Bare: true, LogLevel: "info", Config: volumeConfig})
	dir := filepath.Join(t.TempDir(), "store")
	names := []string{"one", "two", "remote"}
	mnt := map[string]string{}
	for _, name := range names {
		class := []string{"--class", "local", "--max-age", "1h"}
		if name == "remote" {
			class = []string{"--class", "remote"}
		}
		mnt[name] = filepath.Join(t.TempDir(), "mnt")
		snapctl(t, s, append(append([]string{"volume", "create", "--store", "file:" + dir}, class...), name, "1G")...)
		fstab(t, s, name, mnt[name])
		t.Cleanup(func() {
			if t.Failed() {
				_ = unix.Unmount(mnt[name], unix.MNT_DETACH)
			}
		})
	}
	shutdown := func(args ...string) string {
		out := snapctl(t, s, append([]string{"volume", "drain"}, args...)...)
		own, err := mounts.Own()
		testbed.Must(t, err)
		for _, m := range own {
			if slices.Contains(slices.Collect(maps.Values(mnt)), m.Dir) {
				t.Errorf("%s is mounted after drain", m.Dir)
			}
		}
		testbed.Must(t, s.StopRemorad(unix.SIGTERM))
		return out
	}
	write := func(name, text string) {
		testbed.Must(t, os.WriteFile(filepath.Join(mnt[name], "file"), []byte(text), 0o600))
		testbed.SyncFS(t, mnt[name])
	}
	mustRead := func(name, want string) {
		t.Helper()
		if got, err := os.ReadFile(filepath.Join(mnt[name], "file")); err != nil || string(got) != want {
			t.Errorf("%s has %q, want %q (%v)", name, got, want, err)
		}
	}
	for _, name := range names {
		write(name, "first")
	}
	f, err := os.Open(filepath.Join(mnt["one"], "file"))
	testbed.Must(t, err)
	mustRefuse(t, s, "1 volumes are in use", "volume", "drain", "--timeout", "20s")
	testbed.Must(t, f.Close())
	if out := shutdown(); !strings.Contains(out, "one detached") || strings.Contains(out, "journal") {
		t.Errorf("drain says:\n%s", out)
	}
	testbed.Must(t, s.StartRemorad())
	for _, name := range names {
		fstab(t, s, name, mnt[name])
		mustRead(name, "first")
		write(name, "second")
	}
	testbed.Must(t, os.Rename(dir, dir+".away"))
	if out := shutdown("--timeout", "10s"); strings.Count(out, "left to its journal") != len(names) {
		t.Errorf("drain without the store says:\n%s", out)
	}
	testbed.Must(t, os.Rename(dir+".away", dir))
	testbed.Must(t, s.StartRemorad())
	testbed.WaitFor(t, "volumes that nobody uses to be stored and given up", func() bool {
		return strings.Count(snapctl(t, s, "volume", "ls"), " no ") == len(names)
	})
	if all := journalsOf(t, s); len(all) > 0 {
		t.Errorf("%+v are left", all)
	}
	fstab(t, s, "one", mnt["one"])
	mustRead("one", "second")
	snapctl(t, s, "volume", "umount", "one")
	for _, name := range names {
		snapctl(t, s, "volume", "rm", name)
	}
}
