package volumes_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/conformance/suite"
	"github.com/remora-storage/remora/conformance/testbed"
)

// TestVolumeDamagedFiles: whatever becomes of the files that say which disks and volumes are attached, and who the node is,
// remorad starts and names the file. A disk that it no longer knows fails instead of hanging; nothing that was flushed is
// missing once the volume is attached again, as the advice says.
func TestVolumeDamagedFiles(t *testing.T) {
	t.Parallel()
	const seed = 20261129
	harms := append(suite.Harms(seed), suite.Harm{Name: "removed", Do: suite.Lose})
	harms = slices.DeleteFunc(harms, func(h suite.Harm) bool {
		return !slices.Contains([]string{"emptied", "random bytes", "removed", "a directory"}, h.Name)
	})
	s := testbed.New(t, testbed.Options{Bare: true, LogLevel: "info", Config: volumeConfig})
	mnt := filepath.Join(t.TempDir(), "mnt")
	store := newVolume(t, s, "data", "--class", "local")
	snapctl(t, s, "volume", "mount", "data", mnt)
	unmountIfFailed(t, mnt)
	for name, again := range map[string][]string{
		"volumes/node.json": nil, "volumes/volumes.json": {"--store", store}, "disks.json": {},
	} {
		for _, h := range harms {
			t.Run(name+" "+h.Name, func(t *testing.T) {
				want := name + h.Name
				testbed.Must(t, os.WriteFile(filepath.Join(mnt, "file"), []byte(want), 0o600))
				testbed.SyncFS(t, mnt)
				testbed.Must(t, s.StopRemorad(unix.SIGTERM))
				path := filepath.Join(s.Root, name)
				h.Do(t, path)
				testbed.Must(t, s.StartRemorad())
				testbed.MustNameDamaged(t, s, path)
				if again != nil {
					dev := mustFail(t, s)
					testbed.Unmount(t, mnt)
					snapctl(t, s, "dev", "detach", dev)
					snapctl(t, s, append(append([]string{"volume", "mount"}, again...), "data", mnt)...)
				}
				got, err := os.ReadFile(filepath.Join(mnt, "file"))
				if err != nil || string(got) != want {
					t.Errorf("seed %d: the file says %q, want %q: %v", seed, got, want, err)
				}
				testbed.Must(t, os.WriteFile(filepath.Join(mnt, "more"), got, 0o600))
				testbed.SyncFS(t, mnt)
			})
			if t.Failed() {
				return
			}
		}
	}
	snapctl(t, s, "volume", "umount", "data")
	mustBeRight(t, s, "data", store)
}

// mustFail insists that there is one disk, that it fails, and that the reason is the loss of a file.
func mustFail(t *testing.T, s *testbed.Stack) (dev string) {
	t.Helper()
	var all struct {
		Disks []struct{ Device, File, Failed string }
	}
	testbed.Must(t, json.Unmarshal([]byte(snapctl(t, s, "--json", "dev", "ls")), &all))
	if len(all.Disks) != 1 || !strings.Contains(all.Disks[0].Failed, ".json") {
		t.Fatalf("disks: %+v", all.Disks)
	}
	f, err := os.OpenFile(all.Disks[0].Device, os.O_RDONLY|unix.O_DIRECT, 0)
	testbed.Must(t, err)
	defer f.Close()
	if _, err := unix.Pread(int(f.Fd()), blockdev.AlignedBuffer(4096), 512<<20); err == nil {
		t.Error("it can be read")
	}
	return all.Disks[0].Device
}
