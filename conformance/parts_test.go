package conformance_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/remora-storage/remora/conformance/testbed"
)

// TestPartsRunEverything: a test that does less, or nothing, with -short is run whole by make unit; and the Makefile's lists for
// that name no test that is not there.
func TestPartsRunEverything(t *testing.T) {
	t.Parallel()
	makefile, err := os.ReadFile(filepath.Join(testbed.Repo(), "Makefile"))
	testbed.Must(t, err)
	joined := regexp.MustCompile(`\$\\\n\s*`).ReplaceAllString(string(makefile), "")
	list := func(name string) (names []string) {
		found := regexp.MustCompile(`(?m)^` + name + ` *:= *(.*)$`).FindStringSubmatch(joined)
		if found == nil {
			t.Fatalf("the Makefile has no list %s", name)
		}
		return strings.Split(found[1], "|")
	}
	shorter := list("SHORTER")
	whole := append(list("ALONE"), shorter...)
	listed := regexp.MustCompile("^(" + strings.Join(whole, "|") + ")$")
	there, short := map[string]bool{}, map[string]bool{}
	for name, shortens := range unitTests(t) {
		there[name], short[name] = true, shortens
		if shortens && !listed.MatchString(name) {
			t.Errorf("%s does less with -short, and make unit does not run it: add it to SHORTER in the Makefile", name)
		}
	}
	for _, pattern := range whole {
		named := regexp.MustCompile("^(" + pattern + ")$")
		found := false
		for name := range there {
			found = found || named.MatchString(name)
		}
		if !found {
			t.Errorf("the Makefile lists %s, and there is no such test", pattern)
		}
	}
	for _, name := range shorter {
		if there[name] && !short[name] {
			t.Errorf("the Makefile lists %s in SHORTER, and it does as much with -short", name)
		}
	}
}

// unitTests returns the tests that make unit and make race choose from, and whether each looks at -short.
func unitTests(t *testing.T) map[string]bool {
	t.Helper()
	tests := map[string]bool{}
	apart := regexp.MustCompile(`/(\.[^/]+|testdata|conformance/(images|disks|volumes))$`) // other parts of make test
	testbed.Must(t, filepath.WalkDir(testbed.Repo(), func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() && apart.MatchString(path) {
			return fs.SkipDir
		}
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, d := range file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok || f.Recv != nil || !regexp.MustCompile("^(Test|Fuzz)[^a-z]").MatchString(f.Name.Name) {
				continue
			}
			shortened := false
			ast.Inspect(f.Body, func(n ast.Node) bool {
				call, ok := n.(*ast.SelectorExpr)
				shortened = shortened || ok && (call.Sel.Name == "Short" || call.Sel.Name == "NeedRoot")
				return true
			})
			tests[f.Name.Name] = tests[f.Name.Name] || shortened
		}
		return nil
	}))
	return tests
}
