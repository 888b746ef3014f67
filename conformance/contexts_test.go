package conformance_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/remora-storage/remora/conformance/testbed"
)

// keepContexts are the structs that keep a context, by package and type, and what ends it.
var keepContexts = map[string]string{
	"holder.Client":        "life: Close",
	"precontent.Group":     "life: Close",
	"nbd.conn":             "life: the end of the client's connection",
	"snapshotter.base":     "life: the Snapshotter's Close",
	"snapshotter.proving":  "the reading of one claimant",
	"layers.Indexes":       "life: ends before Layers.Close",
	"layers.Layers":        "life: ends before Close",
	"layers.Proofs":        "life: ends before Layers.Close",
	"main.imageSession":    "one command of snapctl",
	"main.mergedContext":   "is a context itself",
	"fetch.wholeReader":    "one Read of a whole blob",
	"fetch.streamReader":   "one Stream",
	"fetch.wholeOr":        "one ReadBlob",
	"scan.pieces":          "one scan",
	"scan.chunks":          "one scan",
	"convert.limiter":      "one layer's conversion",
	"registry.rangeReader": "one range",
	"registry.stallReader": "one request",
	"layers.aheadReader":   "one range",
	"layers.race":          "one range",
	"layers.unpackTally":   "one layer that is unpacked",
	"start.prediction":     "one prediction",
	"start.Starts":         "life: ends before Close",
	"node.Attachments":     "life: Close",
}

// TestContextsInStructs: a context is a parameter, but for the structs above, and these do keep one.
func TestContextsInStructs(t *testing.T) {
	t.Parallel()
	unseen := maps.Clone(keepContexts)
	for _, file := range tracked(t, "*.go") {
		if strings.HasPrefix(file, "conformance/") || strings.HasSuffix(file, "_test.go") || strings.HasSuffix(file, ".pb.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), testbed.Repo()+"/"+file, nil, parser.SkipObjectResolution)
		testbed.Must(t, err)
		ast.Inspect(f, func(n ast.Node) bool {
			spec, ok := n.(*ast.TypeSpec)
			if !ok {
				return true
			}
			s, ok := spec.Type.(*ast.StructType)
			if !ok || !slices.ContainsFunc(s.Fields.List, isContext) {
				return true
			}
			name := f.Name.Name + "." + spec.Name.Name
			delete(unseen, name)
			if keepContexts[name] == "" {
				t.Errorf("%s: %s keeps a context: pass it, or say in this test what ends it", file, name)
			}
			return true
		})
	}
	for name := range unseen {
		t.Errorf("%s keeps no context: take it from the list", name)
	}
}

func isContext(f *ast.Field) bool {
	s, ok := f.Type.(*ast.SelectorExpr)
	if !ok {
		return false
	}
	pkg, ok := s.X.(*ast.Ident)
	return ok && pkg.Name == "context" && s.Sel.Name == "Context"
}

// tracked lists the files of the repository that git knows, by patterns.
func tracked(t *testing.T, patterns ...string) []string {
	t.Helper()
	c := exec.Command("git", append([]string{"ls-files", "-z", "--"}, patterns...)...)
	c.Dir = testbed.Repo()
	out, err := c.Output()
	testbed.Must(t, err)
	files := strings.Split(strings.TrimRight(string(out), "\x00"), "\x00")
	if len(files) < 3 {
		t.Fatalf("git knows only %q", files)
	}
	return files
}
