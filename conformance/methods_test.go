package conformance_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
	"testing"

	"github.com/remora-storage/remora/conformance/testbed"
)

// mostMethods are as many as a type has, exported and not. With more it has several duties, and its
// lock guards what nobody can list.
const mostMethods = 40

// manyMethods are the types that have more, by package, and how many they have at most.
var manyMethods = map[string]int{
	"cmd/snapctl.app": 95, // one for each command, and what several share
	"volume.Volume":   59,
}

// TestMethodsAreFew: no type has more methods than mostMethods, but for the types above, and these do have more.
func TestMethodsAreFew(t *testing.T) {
	t.Parallel()
	methods := map[string]int{}
	for _, file := range tracked(t, "*.go") {
		if strings.HasSuffix(file, "_test.go") || strings.HasSuffix(file, ".pb.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(testbed.Repo(), file), nil, parser.SkipObjectResolution)
		testbed.Must(t, err)
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv != nil {
				methods[filepath.Dir(file)+"."+receiver(fn.Recv.List[0].Type)]++
			}
		}
	}
	for name, n := range methods {
		if n > max(mostMethods, manyMethods[name]) {
			t.Errorf("%s has %d methods, the most are %d", name, n, max(mostMethods, manyMethods[name]))
		}
	}
	for name, most := range manyMethods {
		if n := methods[name]; n <= mostMethods || n < most {
			t.Errorf("%s has %d methods: say so in this test", name, n)
		}
	}
	for _, name := range []string{"cache.File", "cache/image.Image", "cache/fetch.Fetcher", "snapshotter.Snapshotter", "volume.Volume"} {
		if methods[name] == 0 {
			t.Errorf("no method of %s was found", name)
		}
	}
}

// receiver returns the name of the type that a receiver has.
func receiver(e ast.Expr) string {
	switch x := e.(type) {
	case *ast.StarExpr:
		return receiver(x.X)
	case *ast.IndexExpr:
		return receiver(x.X)
	case *ast.IndexListExpr:
		return receiver(x.X)
	case *ast.Ident:
		return x.Name
	}
	return "?"
}
