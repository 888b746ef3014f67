package testbed

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/remora-storage/remora/remote/store"
	"github.com/remora-storage/remora/remote/store/filestore"
	"github.com/remora-storage/remora/volume"
)

// TestWalkStore: the walk with which tests end finds whatever is damaged, missing or left behind in a store.
func TestWalkStore(t *testing.T) {
	for name, c := range map[string]struct {
		harm func(t *testing.T, dir string)
		want string // "" for nothing
	}{
		"nothing": {func(*testing.T, string) {}, ""},
		"a flipped byte of data": {func(t *testing.T, dir string) {
			flip(t, dir, "v/*/seg/*/*", func(size int) int { return size / 4 })
		}, "volume data: "},
		"a flipped byte of the head": {func(t *testing.T, dir string) {
			flip(t, dir, "v/*/head", func(size int) int { return size / 2 })
		}, "volume data: "},
		"a segment is gone": {func(t *testing.T, dir string) { Must(t, os.RemoveAll(one(t, dir, "v/*/seg/*/*"))) }, "volume data: "},
		"the head is gone":  {func(t *testing.T, dir string) { Must(t, os.Remove(one(t, dir, "v/*/head"))) }, "removal was begun"},
		"a name is gone":    {func(t *testing.T, dir string) { Must(t, os.Remove(one(t, dir, "name/*"))) }, "is of no volume"},
		"a stranger's object": {func(t *testing.T, dir string) {
			Must(t, os.WriteFile(filepath.Join(dir, "probe"), []byte("x"), 0o600))
		}, "probe is of no volume"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "store")
			st := filled(t, dir)
			c.harm(t, dir)
			err := WalkStore(t.Context(), st)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			var used usedStores
			used.note([]string{"volume", "create", "--store", "file:" + dir, "data", "1G"})
			if got := used.walk(""); (got == nil) != (err == nil) {
				t.Errorf("the stack's walk: %v", got)
			}
		})
	}
	var gone usedStores
	gone.note([]string{"volume", "create", "--store", "file:" + filepath.Join(t.TempDir(), "gone"), "data", "1G"})
	if err := gone.walk(""); err == nil {
		t.Error("a store that is gone is walked")
	}
}

// TestWalkRecords: a record of volumes or disks that is not whole is found.
func TestWalkRecords(t *testing.T) {
	const attached = `{"version":1,"node":{"node":"0c"},"attached":[{"id":"0a","store":"file:/x","size":4096}]}`
	for name, c := range map[string]struct {
		file, record string
		right        bool
	}{
		"attached": {"volumes/volumes.json", attached, true},
		"nothing":  {"disks.json", `{"version":1}`, true},
		"torn":     {"volumes/volumes.json", attached[:20], false},
		"zeros":    {"disks.json", "\x00\x00", false},
		"emptied":  {"volumes/node.json", "", false},
		"a node":   {"volumes/node.json", `{"node":"0a","machine":"b"}`, true},
		"nobody":   {"volumes/node.json", `{"machine":"b"}`, false},
		"no store": {"volumes/volumes.json", strings.ReplaceAll(attached, "file:/x", ""), false},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			Must(t, os.MkdirAll(filepath.Join(root, "volumes"), 0o700))
			Must(t, os.WriteFile(filepath.Join(root, c.file), []byte(c.record), 0o600))
			if err := walkRoot(root); (err == nil) != c.right {
				t.Errorf("got %v", err)
			}
		})
	}
}

// filled makes a store with a volume that has data.
func filled(t *testing.T, dir string) store.Store {
	t.Helper()
	st, err := filestore.Make(dir, filestore.Options{Bulk: volume.IsSegment})
	Must(t, err)
	_, err = volume.Init(t.Context(), st, func(context.Context) error { return nil })
	Must(t, err)
	h, _, err := volume.Create(t.Context(), st, "data", volume.Spec{Size: 64 << 20})
	Must(t, err)
	journals, err := volume.NewJournalDir(t.TempDir(), 16<<20)
	Must(t, err)
	node := volume.NewMember(st, volume.MemberOptions{ID: volume.NewID(), Incarnation: volume.NewID()})
	v, err := volume.Attach(t.Context(), h.ID, node, journals, volume.AttachOptions{Options: volume.Options{Store: st}})
	Must(t, err)
	Must(t, v.WriteAt(t.Context(), bytes.Repeat([]byte("data"), 1<<18), 1<<20))
	Must(t, v.Detach(t.Context()))
	return st
}

// one returns the only file of a pattern below a directory.
func one(t *testing.T, dir, pattern string) string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil || len(all) != 1 {
		t.Fatalf("%s: %q, %v", pattern, all, err)
	}
	return all[0]
}

// flip changes one byte of a file.
func flip(t *testing.T, dir, pattern string, at func(size int) int) {
	t.Helper()
	path := one(t, dir, pattern)
	p, err := os.ReadFile(path)
	Must(t, err)
	p[at(len(p))] ^= 1
	Must(t, os.WriteFile(path, p, 0o600))
}
