package cache_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/conformance/suite"
)

// TestDamagedFiles: whatever becomes of what is known of an image, the cache opens, and the image is right: as it was, or made
// again and fetched.
func TestDamagedFiles(t *testing.T) {
	const seed = 20261129
	harms := append(suite.Harms(seed), suite.Harm{Name: "removed", Do: suite.Lose})
	im := newImage(t, 1, 20, 5000)
	for _, name := range []string{"extents", "present", "residue", "image"} {
		for _, h := range harms {
			if name == "image" && (h.Name == "random bytes" || h.Name == "zeros") {
				continue // what is stored is believed (docs/security.md)
			}
			t.Run(name+" "+h.Name, func(t *testing.T) {
				dir, src := t.TempDir(), &source{blob: im.blob}
				c := openUnchecked(t, dir, cache.Options{})
				wantAll(t, create(t, c, "a", im, src), im)
				closeAndCheck(t, c)
				path := filepath.Join(dir, "a", name)
				if _, err := os.Stat(path); err != nil {
					testWrite(t, path, "x")
				}
				h.Do(t, path)
				c = openUnchecked(t, dir, cache.Options{})
				f, err := c.File("a", src)
				if err != nil {
					if err := c.Remove("a"); err != nil {
						t.Fatalf("seed %d: %v", seed, err)
					}
					f = create(t, c, "a", im, src)
				}
				wantAll(t, f, im)
				if err := c.Close(); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// TestDamagedDirectories: what is no object, no import, or no directory of these, is removed.
func TestDamagedDirectories(t *testing.T) {
	for name, harm := range map[string]func(t *testing.T, dir string){
		"files for directories": func(t *testing.T, dir string) {
			testWrite(t, filepath.Join(dir, "objects"), "x")
			testWrite(t, filepath.Join(dir, ".imports"), "x")
		},
		"directories for files": func(t *testing.T, dir string) {
			for _, one := range []string{"objects/key/in it", ".imports/a/packed/in it", ".imports/b/image/in it"} {
				if err := os.MkdirAll(filepath.Join(dir, one), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			testWrite(t, filepath.Join(dir, ".imports/b/packed"), "held")
		},
		"links to nothing": func(t *testing.T, dir string) {
			for _, one := range []string{"objects/key", ".imports/a/packed"} {
				path := filepath.Join(dir, one)
				if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.Symlink("nowhere", path); err != nil {
					t.Fatal(err)
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			harm(t, dir)
			c := open(t, dir, cache.Options{})
			block := make([]byte, 8192)
			c.Objects().WriteAt("key", block, 0)
			if !c.Objects().ReadAt("key", block, 0) {
				t.Error("an object is not kept")
			}
			for _, id := range []string{"a", "b"} {
				i, err := c.Import(t.Context(), id)
				if err != nil {
					t.Fatal(err)
				}
				i.Stop(false)
			}
		})
	}
}

func testWrite(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}
