package conformance_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/remora-storage/remora/conformance/testbed"
)

// TestContainerdsAreNamed: what README.md and docs say of the versions of containerd that tests run is what the Makefile pins, and the
// oldest is of the line that the tests mean.
func TestContainerdsAreNamed(t *testing.T) {
	t.Parallel()
	read := func(name string) string {
		text, err := os.ReadFile(filepath.Join(testbed.Repo(), name))
		testbed.Must(t, err)
		return string(text)
	}
	makefile := read("Makefile")
	for _, variable := range []string{"CONTAINERD", "CONTAINERD_OLDEST"} {
		pinned := regexp.MustCompile(`(?m)^` + variable + ` *:= v(.*)$`).FindStringSubmatch(makefile)
		if pinned == nil {
			t.Fatalf("the Makefile does not pin %s", variable)
		}
		for _, doc := range []string{"README.md", "docs/operations.md", "docs/dependencies.md"} {
			if !strings.Contains(read(doc), pinned[1]) {
				t.Errorf("%s does not name containerd %s", doc, pinned[1])
			}
		}
		if variable == "CONTAINERD_OLDEST" && !strings.HasPrefix(pinned[1], testbed.OldestContainerd+".") {
			t.Errorf("%s is %s, and the tests take it for %s", variable, pinned[1], testbed.OldestContainerd)
		}
	}
}
