package conformance_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/remora-storage/remora/conformance/testbed"
)

// TestCommandsAreDocumented: docs/cli.md is what make generate makes.
func TestCommandsAreDocumented(t *testing.T) {
	testbed.NeedRoot(t) // only because bin/ is there then
	c := exec.Command("go", "run", "./conformance/tools/clidoc")
	c.Dir = testbed.Repo()
	want, err := c.Output()
	testbed.Must(t, err)
	got, err := os.ReadFile(filepath.Join(testbed.Repo(), "docs", "cli.md"))
	testbed.Must(t, err)
	if string(got) != string(want) {
		t.Error("docs/cli.md is stale: run make generate")
	}
}
