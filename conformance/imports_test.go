package conformance_test

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/remora-storage/remora/"

// TestImports keeps the arrows between the rooms:
//
//	cmd → snapshotter, volume → fs → cache → blockdev, remote → durable, wire
func TestImports(t *testing.T) {
	t.Parallel()
	may := map[string][]string{
		"cmd":         {"cmd", "snapshotter", "volume", "fs", "cache", "blockdev", "remote", "durable", "wire"},
		"snapshotter": {"snapshotter", "fs", "cache", "blockdev", "remote", "durable", "wire"},
		"volume":      {"volume", "fs", "cache", "blockdev", "remote", "durable", "wire"},
		"fs":          {"fs", "cache", "blockdev", "remote", "durable", "wire"},
		"cache":       {"cache", "blockdev", "remote", "durable", "wire"},
		"blockdev":    {"blockdev", "durable"},
		"remote":      {"remote", "durable"},
		"durable":     {},
		"wire":        {},
		// The suites of contracts, and benchmarks: tests alone import it.
		"conformance": {"conformance", "volume", "cache", "blockdev", "remote"},
	}
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}} {{join .Imports " "}}`, module+"...").Output()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		from, ok := room(f[0])
		if !ok {
			continue
		}
		n++
		for _, imported := range f[1:] {
			if to, ok := room(imported); ok && !slices.Contains(may[from], to) {
				t.Errorf("%s imports %s: %s must not import %s", f[0], imported, from, to)
			}
		}
	}
	if n < 8 {
		t.Errorf("only %d packages were looked at", n)
	}
}

func room(path string) (string, bool) {
	rest, ok := strings.CutPrefix(path, module)
	name, _, _ := strings.Cut(rest, "/")
	return name, ok
}
