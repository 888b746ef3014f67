package volumes_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/remora-storage/remora/conformance/testbed"
)

// TestVolumeRebuild: a volume that has lost its head and its map is found damaged, and what its segments hold is made a
// read-only volume whose file system is as it was.
func TestVolumeRebuild(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{Bare: true, LogLevel: "info", Config: volumeConfig})
	mnt := filepath.Join(t.TempDir(), "mnt")
	store := newVolume(t, s, "data")
	snapctl(t, s, "volume", "mount", "data", mnt)
	testbed.Tool(t, "cp", "-a", "/usr/share/doc", filepath.Join(mnt, "doc"))
	snapctl(t, s, "volume", "umount", "data")
	dir := strings.TrimPrefix(store, "file:")
	for _, pattern := range []string{"v/*/head", "v/*/map/*"} {
		files, err := filepath.Glob(filepath.Join(dir, pattern))
		testbed.Must(t, err)
		for _, f := range files {
			p, err := os.ReadFile(f)
			testbed.Must(t, err)
			p[len(p)/2] ^= 0xff
			testbed.Must(t, os.WriteFile(f, p, 0o600))
		}
	}
	mustRefuse(t, s, "corrupt", "volume", "mount", "data", mnt)
	mustRefuse(t, s, "problem", "volume", "fsck", "data")
	mustRefuse(t, s, "beyond repair", "volume", "fsck", "--repair", "data")
	var made struct {
		ID      string `json:"id"`
		Missing int    `json:"missing"`
		Guessed bool   `json:"size_guessed"`
		Lost    []any  `json:"lost"`
	}
	testbed.Must(t, json.Unmarshal([]byte(snapctl(t, s, "volume", "fsck", "data", "--rebuild-into", "copy", "--json")), &made))
	if !made.Guessed || len(made.Lost) > 0 {
		t.Errorf("rebuilt: %+v", made)
	}
	mustRefuse(t, s, "a volume of this name exists", "volume", "fsck", "data", "--rebuild-into", "copy")
	snapctl(t, s, "volume", "mount", "copy", mnt)
	testbed.Tool(t, "diff", "-r", "--no-dereference", "/usr/share/doc", filepath.Join(mnt, "doc"))
	if err := os.WriteFile(filepath.Join(mnt, "new"), nil, 0o600); err == nil {
		t.Error("a rebuilt volume can be written to")
	}
	if out := snapctl(t, s, "volume", "inspect", "copy"); !strings.Contains(out, "rebuild") || !strings.Contains(out, "read-only") {
		t.Errorf("inspect says nothing of where it comes from:\n%s", out)
	}
	testbed.Must(t, s.StopRemorad(9))
	testbed.Must(t, s.StartRemorad())
	testbed.Tool(t, "diff", "-r", "--no-dereference", "/usr/share/doc", filepath.Join(mnt, "doc"))
	snapctl(t, s, "volume", "umount", "copy")
	t.Log(strings.TrimSpace(snapctl(t, s, "volume", "fsck", "copy")))
	snapctl(t, s, "volume", "rm", "copy")
	snapctl(t, s, "volume", "rm", "data")
}
