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
	list := func(name string) []string { return strings.Split(variable(t, string(makefile), name), "|") }
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

// variable returns what a variable of the Makefile is set to.
func variable(t *testing.T, makefile, name string) string {
	t.Helper()
	joined := regexp.MustCompile(`\$?\\\n\s*`).ReplaceAllString(makefile, "")
	found := regexp.MustCompile(`(?m)^` + name + ` *:= *(.*)$`).FindStringSubmatch(joined)
	if found == nil {
		t.Fatalf("the Makefile has no variable %s", name)
	}
	return found[1]
}

// TestSoakRunsEverything: a test that does more in make soak is in one of its parts, and each part's patterns name tests.
func TestSoakRunsEverything(t *testing.T) {
	t.Parallel()
	makefile, err := os.ReadFile(filepath.Join(testbed.Repo(), "Makefile"))
	testbed.Must(t, err)
	var patterns []string
	for _, part := range strings.Fields(variable(t, string(makefile), "SOAK")) {
		if part == "oldest" || part == "fuzz" { // all tests of images, all fuzz targets
			continue
		}
		words := strings.Fields(variable(t, string(makefile), "SOAK_"+part))
		patterns = append(patterns, strings.Split(words[len(words)-1], "|")...)
	}
	inSoak := regexp.MustCompile("^(" + strings.Join(patterns, "|") + ")$")
	matched := map[string]bool{}
	for name, more := range testsWith(t, func(n ast.Node) bool {
		if call, ok := n.(*ast.SelectorExpr); ok {
			return call.Sel.Name == "Rounds" || call.Sel.Name == "Covering"
		}
		literal, ok := n.(*ast.BasicLit)
		return ok && literal.Value == `"REMORA_SOAK"`
	}) {
		if more && !inSoak.MatchString(name) {
			t.Errorf("%s does more with REMORA_SOAK, and no part of make soak runs it", name)
		}
		for _, p := range patterns {
			matched[p] = matched[p] || regexp.MustCompile("^("+p+")$").MatchString(name)
		}
	}
	for p, ok := range matched {
		if !ok {
			t.Errorf("make soak runs %s, and there is no such test", p)
		}
	}
}

// TestDemoInstallsLittle: make demo waits for no tool that it does not run.
func TestDemoInstallsLittle(t *testing.T) {
	t.Parallel()
	makefile, err := os.ReadFile(filepath.Join(testbed.Repo(), "Makefile"))
	testbed.Must(t, err)
	for name, want := range map[string]string{
		"TOOLS_demo":    "$(TOOLS)/containerd-$(CONTAINERD)",
		"PACKAGES_demo": "runc docker-registry mmdebstrap erofs-utils e2fsprogs ca-certificates git",
	} {
		if got := variable(t, string(makefile), name); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
}

// unitTests returns the tests that make unit and make race choose from, and whether each looks at -short.
func unitTests(t *testing.T) map[string]bool {
	t.Helper()
	return testsWith(t, func(n ast.Node) bool {
		call, ok := n.(*ast.SelectorExpr)
		return ok && (call.Sel.Name == "Short" || call.Sel.Name == "NeedRoot")
	}, "conformance/images", "conformance/disks", "conformance/volumes")
}

// testsWith returns the tests, but for those of some directories, and whether there is something in each.
func testsWith(t *testing.T, is func(ast.Node) bool, apart ...string) map[string]bool {
	t.Helper()
	tests := map[string]bool{}
	eachTest(t, func(_ string, f *ast.FuncDecl) {
		ast.Inspect(f.Body, func(n ast.Node) bool {
			tests[f.Name.Name] = tests[f.Name.Name] || n != nil && is(n)
			return true
		})
	}, apart...)
	return tests
}

// TestFuzzTargetsBoundCosts: each fuzz target asserts what an input may take, by a heap.Cost.
func TestFuzzTargetsBoundCosts(t *testing.T) {
	t.Parallel()
	targets := 0
	eachTest(t, func(path string, f *ast.FuncDecl) {
		if !strings.HasPrefix(f.Name.Name, "Fuzz") {
			return
		}
		targets++
		bounded := false
		ast.Inspect(f.Body, func(n ast.Node) bool {
			call, ok := n.(*ast.SelectorExpr)
			bounded = bounded || ok && (call.Sel.Name == "Allocates" || call.Sel.Name == "Peaks")
			return true
		})
		if !bounded {
			t.Errorf("%s in %s says of no input what it may take: call Allocates or Peaks of a heap.Cost", f.Name.Name, path)
		}
	})
	if targets < 30 {
		t.Errorf("only %d fuzz targets were found", targets)
	}
}

// eachTest calls use with the file and the declaration of each test, but for those of some directories.
func eachTest(t *testing.T, use func(path string, f *ast.FuncDecl), apart ...string) {
	t.Helper()
	skipped := regexp.MustCompile(`/(\.[^/]+|` + strings.Join(append(apart, "testdata"), "|") + `)$`)
	testbed.Must(t, filepath.WalkDir(testbed.Repo(), func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() && skipped.MatchString(path) {
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
			use(path, f)
		}
		return nil
	}))
}
