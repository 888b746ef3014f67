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

// TestMethodsAreFew: no type of the cache has more than 40 methods, exported and not. With more it has several duties, and its
// lock guards what nobody can list.
func TestMethodsAreFew(t *testing.T) {
	t.Parallel()
	const most = 40
	methods := map[string]int{}
	for _, file := range tracked(t, "cache/*.go") {
		if strings.HasSuffix(file, "_test.go") {
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
		if n > most {
			t.Errorf("%s has %d methods, the most are %d", name, n, most)
		}
	}
	for _, name := range []string{"cache.File", "cache/image.Image", "cache/fetch.Fetcher"} {
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
