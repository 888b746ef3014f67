package conformance_test

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/remora-storage/remora/conformance/testbed"
)

// TestVulnerabilitiesAreSkippedAloud: where the database of vulnerabilities cannot be reached, make check goes on and says that
// nothing was looked for.
func TestVulnerabilitiesAreSkippedAloud(t *testing.T) {
	t.Parallel()
	for _, db := range []string{"https://127.0.0.1:1", "file:///no/such/database"} {
		c := exec.Command(filepath.Join(testbed.Repo(), "conformance", "tools", "vulns"), "/no/such/tool")
		c.Env = append(c.Environ(), "GOVULNDB="+db)
		out, err := c.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "govulncheck is skipped: ") || !strings.Contains(string(out), db) &&
			!strings.Contains(string(out), "curl is not installed") {
			t.Errorf("%s: %v, said %q", db, err, out)
		}
	}
}
