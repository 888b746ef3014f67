package images_test

import (
	"cmp"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/remora-storage/remora/conformance/testbed"
)

// A wayInDocs is a way in which layers are supplied: as status calls it, and as docs/registries.md does.
type wayInDocs struct{ way, called string }

// waysInDocs are in which ways layers are supplied, as docs/registries.md calls them, from the least on.
var waysInDocs = []wayInDocs{
	{"unpacked", "pulled"}, {"import", "imported"}, {"index", "by index"}, {"estargz", "lazily"},
}

// rankOf says how much the least of some ways is; -1 if one is none.
func rankOf(ways ...string) int {
	least := len(waysInDocs)
	for _, way := range ways {
		least = min(least, slices.IndexFunc(waysInDocs, func(w wayInDocs) bool { return w.way == way }))
	}
	return least
}

// kindsInDocs are the columns of the table in docs/registries.md.
var kindsInDocs = []string{"lazy", "import", "index"}

const matrixHead = "| registry | lazy | import | index |"

// A documented matrix is in which ways layers are supplied, by registry, client and kind.
type documented map[[3]string][]string

// documentedMatrix reads the table in docs/registries.md. A cell names a way, or several joined by "or", and after a semicolon those of
// snapctl if it is another client for them. The table has all registries, and no other ones.
func documentedMatrix(t *testing.T) documented {
	t.Helper()
	doc, err := os.ReadFile(filepath.Join(testbed.Repo(), "docs", "registries.md"))
	testbed.Must(t, err)
	_, table, ok := strings.Cut(string(doc), matrixHead+"\n|---|---|---|---|\n")
	if !ok {
		t.Fatal("docs/registries.md is without the table")
	}
	table, _, _ = strings.Cut(table, "\n\n")
	all := documented{}
	var rows []string
	for row := range strings.Lines(strings.TrimSpace(table)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(row), "|"), "|")
		if len(cells) != 1+len(kindsInDocs) {
			t.Fatalf("row %q has %d cells", row, len(cells))
		}
		registry := strings.TrimSpace(cells[0])
		rows = append(rows, registry)
		for i, kind := range kindsInDocs {
			for _, client := range sortedKeys(matrixClients) {
				all[[3]string{registry, client, kind}] = waysOfCell(t, cells[1+i], client)
			}
		}
	}
	if slices.Sort(rows); !slices.Equal(rows, sortedKeys(registries)) {
		t.Fatalf("docs/registries.md has the registries %q, want %q", rows, sortedKeys(registries))
	}
	return all
}

func waysOfCell(t *testing.T, cell, client string) (ways []string) {
	t.Helper()
	others, snapctl, ok := strings.Cut(cell, "; snapctl: ")
	if ok && client == "snapctl" {
		others = snapctl
	}
	for called := range strings.SplitSeq(others, " or ") {
		i := slices.IndexFunc(waysInDocs, func(w wayInDocs) bool { return w.called == strings.TrimSpace(called) })
		if i < 0 {
			t.Fatalf("cell %q names the way %q", cell, called)
		}
		ways = append(ways, waysInDocs[i].way)
	}
	return ways
}

// table writes what was seen as the table in docs/registries.md. What differs by client, but for snapctl, is joined.
func (seen documented) table() string {
	called := func(registry, kind string, clients ...string) string {
		var names []string
		for _, w := range slices.Backward(waysInDocs) {
			if slices.ContainsFunc(clients, func(c string) bool { return slices.Contains(seen[[3]string{registry, c, kind}], w.way) }) {
				names = append(names, w.called)
			}
		}
		return strings.Join(names, " or ")
	}
	var table strings.Builder
	table.WriteString(matrixHead + "\n|---|---|---|---|\n")
	for _, registry := range sortedKeys(registries) {
		table.WriteString("| " + registry)
		for _, kind := range kindsInDocs {
			others, snapctl := called(registry, kind, sortedKeys(clients)...), called(registry, kind, "snapctl")
			if snapctl != "" && others != "" && snapctl != others {
				others += "; snapctl: " + snapctl
			}
			table.WriteString(" | " + cmp.Or(others, snapctl))
		}
		table.WriteString(" |\n")
	}
	return table.String()
}

// TestMatrixIsDocumented: the table in docs/registries.md can be read, and is as the tests would write it.
func TestMatrixIsDocumented(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile(filepath.Join(testbed.Repo(), "docs", "registries.md"))
	testbed.Must(t, err)
	if table := documentedMatrix(t).table(); !strings.Contains(string(doc), table) {
		t.Errorf("docs/registries.md differs from\n%s", table)
	}
}
