package conformance_test

import (
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
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

// TestLinesAreNarrow: what people read has no line wider than 140 columns, and none that a merge has left.
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
			if strings.HasPrefix(line, "<<<<<<< ") || strings.HasPrefix(line, ">>>>>>> ") {
				t.Errorf("%s:%d is of a merge that was not finished", file, n)
			}
		}
	}
}

// TestWords: what users read has none of the words that CONTRIBUTING.md replaces: the documents, the sample configuration, the API, and
// what the programs print.
func TestWords(t *testing.T) {
	t.Parallel()
	replaced := regexp.MustCompile(`\b(at once|any more)\b`)
	literals := regexp.MustCompile("\"(?:[^\"\\\\\n]|\\\\.)*\"|`[^`]*`")
	for _, file := range tracked(t, "*.go", "*.md", "*.toml", "*.proto", "*.yml") {
		if strings.HasSuffix(file, "_test.go") || strings.HasSuffix(file, ".pb.go") || file == "CONTRIBUTING.md" {
			continue
		}
		p, err := os.ReadFile(filepath.Join(testbed.Repo(), file))
		testbed.Must(t, err)
		read := []string{string(p)}
		if strings.HasSuffix(file, ".go") {
			read = literals.FindAllString(string(p), -1)
		}
		for _, text := range read {
			if found := replaced.FindString(text); found != "" {
				t.Errorf("%s says %q: %.80q", file, found, text[max(0, strings.Index(text, found)-40):])
			}
		}
	}
}
