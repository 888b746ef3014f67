package conformance_test

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/remora-storage/remora/"

// arrows says what each of our packages may import of ours. Both sides are patterns as the go command has them: "volume" is
// that package, "volume/..." is it and all below it. The longest pattern that fits a package is its row.
//
//	cmd → snapshotter, volume → fs → cache → blockdev, remote → internal
var arrows = []struct{ from, may string }{
	{"internal/backoff", ""},
	{"internal/durable", ""},
	{"internal/fair", ""},
	{"internal/memory", "internal/fair"},
	{"internal/memorytest", "internal/memory"},
	{"internal/peer", ""},
	{"internal/tartest", ""},
	{"internal/wire", ""},
	{"blockdev", ""}, // the contract
	{"blockdev/...", "blockdev/... internal/durable internal/fair internal/peer"},
	{"remote", ""},
	{"remote/internal/...", ""},
	// Registries and stores never meet.
	{"remote/registry/...", "remote/registry/... remote/internal/httprange internal/backoff internal/durable internal/fair"},
	{"remote/store", ""}, // the contract
	{"remote/store/...", "remote/store remote/internal/httprange internal/backoff"},
	{"cache", "cache/proof cache/fetch cache/image cache/objects cache/budget blockdev internal/memory"},
	{"cache/proof", "cache/fetch cache/image cache/blob"},
	{"cache/fetch", "cache/image cache/blob blockdev internal/backoff internal/fair internal/memory"},
	{"cache/image", "cache/blob cache/budget cache/inflate internal/durable internal/wire"},
	{"cache/objects", "cache/budget"},
	{"cache/budget", ""},
	{"cache/blob", "cache/inflate"},
	{"cache/inflate", ""},
	{"fs/...", "fs/... cache cache/blob cache/inflate blockdev remote/registry internal/durable internal/wire"},
	{"fs/fuse", "fs/erofs fs/layout blockdev/..."}, // a way into the kernel
	{"fs/layout", "cache/blob cache/inflate"},
	{"fs/annotation", ""},
	{"fs/format/...", "fs/format/... fs/annotation fs/layout cache/blob"},
	// The engine: a Store's contract is all that it knows of the network.
	{"volume", "blockdev remote/store internal/backoff internal/durable internal/wire"},
	{"volume/mount", "blockdev/mounts blockdev/openers"},
	{"volume/...", "volume/... blockdev remote/store internal/backoff internal/durable internal/wire"},
	{"snapshotter/layers", "fs/... cache cache/blob remote/registry internal/..."}, // no snapshots, no mounts
	{"snapshotter/start", "snapshotter/layers fs/... cache remote/registry internal/..."},
	{"snapshotter/...", "snapshotter/... fs/... cache cache/blob blockdev/... remote/registry internal/..."},
	{"cmd/...", "cmd/... snapshotter/... volume/... fs/... cache blockdev/... remote/... internal/..."},
	// The suites of contracts, and benchmarks: tests alone import it.
	{"conformance/falsify", "fs/annotation fs/format/zstdchunked"},
	{"conformance/heap", ""},
	{"conformance/testbed", "conformance/... volume cache blockdev/... remote/store/... snapshotter/boltfile"}, // it walks what tests leave
	{"conformance/...", "conformance/... volume/... cache blockdev/... remote/..."},
}

// TestImports keeps the arrows between packages.
func TestImports(t *testing.T) {
	t.Parallel()
	n := 0
	for path, imports := range golist(t, `{{join .Imports " "}}`, module+"...") {
		from := strings.TrimPrefix(path, module)
		may, ok := row(from)
		if !ok {
			t.Errorf("%s has no row in arrows: say what it may import", from)
		}
		n++
		for _, imported := range imports {
			to, ours := strings.CutPrefix(imported, module)
			if ours && !slices.ContainsFunc(may, func(p string) bool { return fits(p, to) }) {
				t.Errorf("%s imports %s; it may import %s", from, to, may)
			}
		}
	}
	if n < 8 {
		t.Errorf("only %d packages were looked at", n)
	}
}

// clean says which programs' libraries must not be in packages, by whatever way: who embeds a package gets all of them.
var clean = []struct{ packages, without string }{
	{"volume", registryClients},
	{"volume/...", registryClients},
	{"remote/store/...", registryClients},
	{"blockdev/...", registryClients},
	{"cache/...", registryClients},
	{"cmd/remorad", "github.com/containerd/stargz-snapshotter/"}, // which writes layers
}

// registryClients are the prefixes of what comes with a client of registries.
const registryClients = "github.com/containerd/ oras.land/ go.opentelemetry.io/ " + module + "remote/registry"

// TestDependencies keeps libraries out of packages that work without them.
func TestDependencies(t *testing.T) {
	t.Parallel()
	for _, c := range clean {
		for path, deps := range golist(t, `{{join .Deps " "}}`, module+c.packages) {
			for _, without := range strings.Fields(c.without) {
				if i := slices.IndexFunc(deps, func(d string) bool { return strings.HasPrefix(d, without) }); i >= 0 {
					t.Errorf("%s depends on %s", strings.TrimPrefix(path, module), deps[i])
				}
			}
		}
	}
}

// golist asks the go command for a list about each package that fits a pattern.
func golist(t *testing.T, format, pattern string) map[string][]string {
	t.Helper()
	out, err := exec.Command("go", "list", "-f", "{{.ImportPath}} "+format, pattern).Output()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][]string{}
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		all[f[0]] = f[1:]
	}
	if len(all) == 0 {
		t.Fatalf("no package is %s", pattern)
	}
	return all
}

// row returns what a package may import.
func row(path string) (may []string, ok bool) {
	longest := ""
	for _, a := range arrows {
		if fits(a.from, path) && (a.from == path || longest != path && len(a.from) > len(longest)) {
			longest, may, ok = a.from, strings.Fields(a.may), true
		}
	}
	return may, ok
}

// fits reports whether a path is of a pattern.
func fits(pattern, path string) bool {
	below, tree := strings.CutSuffix(pattern, "/...")
	return path == below || tree && strings.HasPrefix(path, below+"/")
}
