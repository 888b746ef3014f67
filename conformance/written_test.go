package conformance_test

import (
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/remora-storage/remora/conformance/testbed"
)

// TestPackagesAreDescribed: every package has a doc.go with its comment, and no other file of the package has one.
func TestPackagesAreDescribed(t *testing.T) {
	t.Parallel()
	described := map[string]bool{}
	for _, file := range tracked(t, "*.go") {
		dir := filepath.Dir(file)
		if strings.HasPrefix(dir, "conformance/tools/podman") { // a module of its own
			continue
		}
		if _, ok := described[dir]; !ok && !strings.HasSuffix(file, "_test.go") {
			described[dir] = false
		}
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(testbed.Repo(), file), nil,
			parser.ParseComments|parser.PackageClauseOnly)
		testbed.Must(t, err)
		text := f.Doc.Text()
		begins := "Package " + f.Name.Name + " "
		if f.Name.Name == "main" {
			begins = "Command "
		}
		switch {
		case filepath.Base(file) != "doc.go":
			if strings.HasPrefix(text, "Package ") || strings.HasPrefix(text, "Command ") {
				t.Errorf("%s describes its package: doc.go is the place", file)
			}
		case !strings.HasPrefix(text, begins):
			t.Errorf("%s does not begin with %q", file, begins)
		default:
			described[dir] = true
		}
	}
	for dir, ok := range described {
		if !ok {
			t.Errorf("%s has no doc.go that says what belongs there", dir)
		}
	}
}

// TestLinesAreNarrow: what people read has no line wider than 140 columns.
func TestLinesAreNarrow(t *testing.T) {
	t.Parallel()
	const widest = 140
	for _, file := range tracked(t, "*.go", "*.md", "*.sh", "*Makefile", "*.toml", "*.yml", "*.proto", ".ci/*",
		"conformance/tools/parts", "conformance/tools/packages", "conformance/tools/vulns", "conformance/tools/reproducible") {
		if strings.HasSuffix(file, ".pb.go") { // generated
			continue
		}
		p, err := os.ReadFile(filepath.Join(testbed.Repo(), file))
		testbed.Must(t, err)
		n := 0
		for line := range strings.Lines(string(p)) {
			n++
			if w := utf8.RuneCountInString(strings.TrimRight(line, "\n")); w > widest {
				t.Errorf("%s:%d has %d columns, the most are %d", file, n, w, widest)
			}
		}
	}
}
