package conformance_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"

	"github.com/remora-storage/remora/conformance/testbed"
)

// TestCitedTestsExist: every test that documents name as the one that shows a promise is there.
func TestCitedTestsExist(t *testing.T) {
	t.Parallel()
	defined := definedTests(t)
	cited := regexp.MustCompile(`\bTest[A-Z]\w*`)
	for doc, least := range map[string]int{"docs/security.md": 40, "docs/volumes.md": 10, "docs/operations.md": 1} {
		p, err := os.ReadFile(filepath.Join(testbed.Repo(), doc))
		testbed.Must(t, err)
		names := cited.FindAllString(string(p), -1)
		slices.Sort(names)
		names = slices.Compact(names)
		if len(names) < least {
			t.Errorf("%s names %d tests, want at least %d: does this test still find them?", doc, len(names), least)
		}
		for _, name := range names {
			if !defined[name] {
				t.Errorf("%s names %s, and there is no such test", doc, name)
			}
		}
	}
}

// definedTests returns the names of all tests.
func definedTests(t *testing.T) map[string]bool {
	t.Helper()
	defined := map[string]bool{}
	definition := regexp.MustCompile(`(?m)^func (Test\w+)\(t \*testing\.T\)`)
	for _, file := range tracked(t, "*_test.go") {
		p, err := os.ReadFile(filepath.Join(testbed.Repo(), file))
		testbed.Must(t, err)
		for _, m := range definition.FindAllStringSubmatch(string(p), -1) {
			defined[m[1]] = true
		}
	}
	return defined
}
