package conformance_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/licensecheck"

	"github.com/remora-storage/remora/conformance/testbed"
)

// licenses are what the modules in our programs may be licensed by: an Apache-2.0 program may contain them, and nobody who ships
// it has to do more than keep the texts.
var licenses = map[string]bool{"Apache-2.0": true, "BSD-2-Clause": true, "BSD-3-Clause": true, "ISC": true, "MIT": true}

// licenseFile is how modules call the files that say what they are licensed by. LICENSE.docs is of the documentation alone,
// which no program contains.
var (
	licenseFile = regexp.MustCompile(`(?i)^(licen[cs]e|copying)([.-].*)?$`)
	ofDocs      = regexp.MustCompile(`(?i)\.docs$`)
)

// TestLicenses: every module that is built into our programs has a license, and only such as are allowed here.
func TestLicenses(t *testing.T) {
	t.Parallel()
	list := exec.Command("go", "list", "-deps", "-f", "{{with .Module}}{{if not .Main}}{{.Path}} {{.Dir}}{{end}}{{end}}",
		"./cmd/remorad", "./cmd/snapctl")
	list.Dir = testbed.Repo()
	out, err := list.Output()
	testbed.Must(t, err)
	seen := map[string]bool{}
	for line := range strings.Lines(string(out)) {
		module, dir, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok || seen[module] {
			continue
		}
		seen[module] = true
		found := 0
		entries, err := os.ReadDir(dir)
		testbed.Must(t, err)
		for _, e := range entries {
			if e.IsDir() || !licenseFile.MatchString(e.Name()) || ofDocs.MatchString(e.Name()) {
				continue
			}
			text, err := os.ReadFile(filepath.Join(dir, e.Name()))
			testbed.Must(t, err)
			cover := licensecheck.Scan(text)
			for _, m := range cover.Match {
				found++
				if !licenses[m.ID] {
					t.Errorf("%s: %s says %s, which is not among the licenses that our programs may contain", module, e.Name(), m.ID)
				}
			}
			if cover.Percent < 75 {
				t.Errorf("%s: %.0f%% of %s is a license that is known: read it", module, cover.Percent, e.Name())
			}
		}
		if found == 0 {
			t.Errorf("%s has no license that is known in %s", module, dir)
		}
	}
	if len(seen) == 0 {
		t.Error("no module was looked at")
	}
}
