package disk_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/remora-storage/remora/blockdev/disk"
	"github.com/remora-storage/remora/conformance/suite"
	"github.com/remora-storage/remora/internal/durable"
)

const harmSeed = 20261129

func harms() []suite.Harm {
	all := suite.Harms(harmSeed)
	one := `{"source": "a", "sector": 512, "size": 1048576, "node": `
	for name, content := range map[string]string{
		"no version": `{}`, "a version below zero": `{"version": -1}`, "a number below zero": `{"version": 1, "next_node": -1}`,
		"a size below zero":   `{"version": 1, "next_node": 3, "disks": [{"source": "a", "sector": 512, "size": -1, "node": 2}]}`,
		"the same disk twice": `{"version": 1, "next_node": 4, "disks": [` + one + `2},` + one + `3}]}`,
		"a number twice":      `{"version": 1, "next_node": 4, "disks": [` + one + `2},` + strings.Replace(one, `"a"`, `"b"`, 1) + `2}]}`,
		"numbers that come":   `{"version": 1, "next_node": 2, "disks": [` + one + `2}]}`,
	} {
		all = append(all, suite.Harm{Name: name, Do: func(t testing.TB, path string) {
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}})
	}
	return append(all, suite.Harm{Name: "removed", Do: suite.Lose})
}

// TestDamagedDisks: after the record was lost, the disks that the kernel has fail every request and are listed, until they are
// detached; their bytes can be attached again, under numbers that were never used.
func TestDamagedDisks(t *testing.T) {
	for _, h := range harms() {
		for _, taken := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, taken over %v", h.Name, taken), func(t *testing.T) {
				root, k, s := t.TempDir(), newKernel(), newStore()
				d := open(t, root, k, s, true)
				attach(t, d, "a")
				b := attach(t, d, "b")
				if err := d.Close(); err != nil {
					t.Fatal(err)
				}
				k.kill()
				path := filepath.Join(root, disk.RecordFile.Name)
				h.Do(t, path)
				var said bytes.Buffer
				d, err := disk.Open(t.Context(), disk.Options{
					Root: root, Way: k, Taken: taken, Outlive: true, Open: s.open, Log: slog.New(slog.NewTextHandler(&said, nil)),
				})
				if err != nil {
					t.Fatalf("seed %d: %v", harmSeed, err)
				}
				if all, err := durable.ListDamaged(root, disk.RecordFile); err != nil || len(all) != 1 || !strings.Contains(said.String(), path) {
					t.Errorf("set aside: %+v, %v; the log says %s", all, err, said.String())
				}
				if left := d.List(); !taken {
					if len(left) != 0 || len(k.devices) != 0 {
						t.Errorf("disks of nobody: %+v, devices %v", left, k.devices)
					}
				} else {
					mustFailAlone(t, d, k, left)
				}
				again := attach(t, d, "a")
				if again.Node <= b.Node+1 {
					t.Errorf("the number %d may have been used", again.Node)
				}
				if _, err := k.served[again.Node].ReadAt(t.Context(), make([]byte, 512), 0); err != nil {
					t.Error(err)
				}
				if err := d.Close(); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// mustFailAlone insists that disks are listed and fail, over a detach of one of them.
func mustFailAlone(t *testing.T, d *disk.Disks, k *kernel, left []disk.Disk) {
	t.Helper()
	if len(left) != 2 {
		t.Fatalf("disks: %+v", left)
	}
	for _, one := range left {
		if !strings.Contains(one.Reason, disk.RecordFile.Name) || one.Path == "" || !strings.HasPrefix(one.Source, "unknown:") {
			t.Errorf("disk: %+v", one)
		}
		if _, err := k.served[one.Node].ReadAt(context.Background(), make([]byte, 512), 0); err == nil {
			t.Error("it can be read")
		}
	}
	if was, err := d.Detach(t.Context(), left[0].Path); err != nil || was.Path != left[0].Path {
		t.Errorf("detached %+v, %v", was, err)
	}
	if now := d.List(); len(now) != 1 || now[0].Path != left[1].Path {
		t.Errorf("disks: %+v", now)
	}
}
