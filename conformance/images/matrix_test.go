package images_test

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/remora-storage/remora/conformance/testbed"
)

// matrixClients are all that pull, snapctl among them: it has remorad read the manifest first.
var matrixClients = func() map[string]puller {
	all := maps.Clone(clients)
	all["snapctl"] = func(ctx context.Context, s *testbed.Stack, ref, _ string) error {
		_, err := s.Snapctl(ctx, "pull", ref)
		return err
	}
	return all
}()

// matrixKinds are ways to have an image, and what status calls the format of layers that remorad supplies.
var matrixKinds = map[string]string{
	"lazy":   "estargz", // converted
	"import": "import",  // plain gzip
	"index":  "index",   // plain gzip, whose index is published beside the image
}

// A matrixRow is one place of {registry} x {client} x {kind}.
type matrixRow struct {
	registry, client, kind string
	proxy                  *faultyProxy
}

// A matrix makes an image for each try: nothing of it is on the node, since no two share a layer.
type matrix struct {
	s     *testbed.Stack
	seeds uint64 // that were used
}

// newImage puts an image of a kind into the stack's registry, and returns its name there and its layers: sizes by their seeds.
func (m *matrix) newImage(t *testing.T, kind string) (name string, layers map[uint64]int64) {
	t.Helper()
	return m.imageOf(t, kind, 5<<20)
}

// imageOf is newImage with a layer of so many bytes. The other one is small.
func (m *matrix) imageOf(t *testing.T, kind string, size int64) (name string, layers map[uint64]int64) {
	t.Helper()
	m.seeds += 2
	large, small := m.seeds-1, m.seeds
	layers = map[uint64]int64{large: size, small: 100 << 10}
	layout := filepath.Join(t.TempDir(), "layout")
	testbed.Must(t, testbed.WriteTars(layout, "src", randomLayer(large, layers[large]), randomLayer(small, layers[small])))
	name = fmt.Sprintf("by%d:1", m.seeds)
	if kind == "lazy" {
		convert(t, m.s, "oci:"+layout+":src", m.s.Ref(name))
	} else {
		testbed.Must(t, m.s.Push(t.Context(), layout, "src", name))
	}
	if kind == "index" {
		_, err := m.s.Snapctl(t.Context(), "index", "push", m.s.Ref(name))
		testbed.Must(t, err)
	}
	return name, layers
}

// try has a client pull a new image from a registry that leads to the stack's, and returns how its layers are supplied.
func (m *matrix) try(t *testing.T, registry, client, kind string) (how string) {
	t.Helper()
	name, layers := m.newImage(t, kind)
	return pulledBy(t, m.s, matrixClients[client], registry+"/"+name, "", layers)
}

// insist tries until remorad supplies the layers in the way that is meant.
func (m *matrix) insist(t *testing.T, registry, client, kind string) (how string) {
	t.Helper()
	return m.insistOn(t, registry, client, kind, matrixKinds[kind])
}

// insistOn tries until the layers are supplied in ways that are meant: on a busy machine a proof, or an index, may come late, and then
// they are supplied in one that is less. More than is meant is wrong.
func (m *matrix) insistOn(t *testing.T, registry, client, kind string, want ...string) (how string) {
	t.Helper()
	for try := 0; ; try++ {
		how = m.try(t, registry, client, kind)
		ways := strings.Split(how, ", ")
		if !slices.ContainsFunc(ways, func(way string) bool { return !slices.Contains(want, way) }) {
			return how
		}
		less := slices.ContainsFunc(ways, func(way string) bool { return rankOf(way) < rankOf(want...) })
		if try == 20 || !less {
			t.Errorf("%s of %s by %s: layers are %s, want %s", kind, registry, client, how, strings.Join(want, " or "))
			return how
		}
		time.Sleep(time.Second)
	}
}

// TestClientsAndRegistries: whatever a registry does to remorad, and whatever only the client has, an image that its client can pull is
// whole, by each client, for layers with an index of their own, for those without, and for those whose index is published beside the
// image. How the layers are supplied is what the table in docs/registries.md says. The log has that table as it was seen: REMORA_SOAK=1
// has all of it, to be copied there.
func TestClientsAndRegistries(t *testing.T) {
	t.Parallel()
	want, seen := documentedMatrix(t), documented{}
	s := testbed.New(t, testbed.Options{LogLevel: "info", Config: impatient})
	all := testbed.Combinations(sortedKeys(registries), sortedKeys(matrixClients), sortedKeys(matrixKinds))
	var rows []matrixRow
	proxies := map[string]*faultyProxy{} // remorad remembers of each host what it is like
	var trusted []string
	for _, c := range testbed.Covering(t, all) {
		p := proxies[c[0]]
		if p == nil {
			// Who names no port is placed by the host's name, so each has an address of its own.
			is := registries[c[0]]
			p = newFaultyProxyOn(t, s, fmt.Sprintf("127.0.1.%d", len(proxies)+1), is.tls)
			p.fault.Store(&is.fault)
			p.every.Store(is.every)
			proxies[c[0]] = p
			trusted = append(trusted, fmt.Sprintf("%q", p.Listener.Addr()))
		}
		rows = append(rows, matrixRow{c[0], c[1], c[2], p})
	}
	s.Configure(fmt.Sprintf("[index]\ntrust = [%s]\n", strings.Join(trusted, ", ")))
	testbed.Must(t, s.RestartRemorad(syscall.SIGTERM))
	m := &matrix{s: s}
	var table strings.Builder
	for _, row := range rows {
		key := [3]string{row.registry, row.client, row.kind}
		how := m.insistOn(t, row.proxy.Listener.Addr().String(), row.client, row.kind, want[key]...)
		seen[key] = strings.Split(how, ", ")
		fmt.Fprintf(&table, "%-24s %-10s %-7s %s\n", row.registry, row.client, row.kind, how)
	}
	t.Log("\n" + table.String() + "\n" + seen.table())
}
