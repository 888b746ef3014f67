package conformance_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/remora-storage/remora/conformance/testbed"
)

// TestRenames: only durable replaces files, since it syncs what it renames. Renames elsewhere do something else, and this test
// has the reason for each.
func TestRenames(t *testing.T) {
	t.Parallel()
	reasons := map[string]string{ // by what a path ends with
		"internal/durable/file.go":    "Commit, after it synced the file",
		"internal/durable/durable.go": "Rename, after it synced the file",
		"filestore/put.go":            "a put is a rename under a condition, with a lock, or before the sync where nothing is replaced",
		"image/import.go":             "a directory that counts from the first record on, which syncs the directory above",
		"volume/journals.go":          "a journal keeps its content and gets another suffix; then the directory is synced",
		"volume/spare.go":             "a file of which nothing counts becomes the spare, or a journal; it was synced, and the directory is then",
	}
	rename := regexp.MustCompile(`\b(os\.Rename|(?:unix|syscall)\.Rename\w*|AtomicWriteFile|renameio\.\w+)\(`)
	found := map[string]bool{}
	repo := os.DirFS(testbed.Repo())
	looked := 0
	testbed.Must(t, fs.WalkDir(repo, ".", func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() && (path == "conformance" || path != "." && strings.HasPrefix(e.Name(), ".")) {
			return fs.SkipDir
		}
		if e.IsDir() || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		looked++
		code, err := fs.ReadFile(repo, path)
		if err != nil {
			return err
		}
		call := rename.Find(code)
		if call == nil {
			return nil
		}
		for end := range reasons {
			if strings.HasSuffix(path, end) {
				found[end] = true
				return nil
			}
		}
		t.Errorf("%s calls %s): use the package durable, or say here why not", path, call)
		return nil
	}))
	for end := range reasons {
		if !found[end] {
			t.Errorf("nothing is renamed in %s: the reason is stale", end)
		}
	}
	if looked < 100 {
		t.Errorf("only %d files were looked at", looked)
	}
}
