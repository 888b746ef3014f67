package zstdchunked_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/conformance/heap"
	"github.com/remora-storage/remora/fs/format/zstdchunked"
	"github.com/remora-storage/remora/fs/layout"
)

// TestTreesThatGrow: a table whose tree has more directories than its entries justify is refused for little memory.
func TestTreesThatGrow(t *testing.T) {
	var b strings.Builder
	fmt.Fprintf(&b, `{"version":1,"entries":[{"name":"s","type":"symlink","linkName":%q}`, strings.Repeat("a/", 2047)+"a")
	for i := range 100 {
		fmt.Fprintf(&b, `,{"name":"%d/s","type":"hardlink","linkName":"s"},{"name":"%d/s/f","type":"reg"}`, i, i)
	}
	refused(t, nil, b.String()+`]}`, "unlisted ones included", 16<<20)
}

// TestUnitsThatGrow: tables that have a reader of one byte pay for much more than the blob's bytes are refused.
func TestUnitsThatGrow(t *testing.T) {
	sum := digest.FromString("x").String()
	files := func(n int, fields func(i int) string) string {
		var b strings.Builder
		b.WriteString(`{"version":1,"entries":[{"name":"d","type":"dir"}`)
		for i := range n {
			fmt.Fprintf(&b, `,{"name":"%d","type":"reg","digest":%q,%s}`, i, sum, fields(i))
		}
		return b.String() + `]}`
	}
	data := make([]byte, 5000)
	for name, c := range map[string]struct{ table, says string }{
		"many files at one place": {files(100, func(int) string { return `"size":67108864,"offset":0` }), "in extents (limit 67108864)"},
		"files that overlap": {files(2, func(i int) string { return fmt.Sprintf(`"size":100,"offset":0,"innerOffset":%d`, 50*i) }),
			"overlap"},
		"a file behind 300 MB": {files(1, func(int) string { return `"size":10,"offset":0,"innerOffset":300000000` }), "(limit 67108864)"},
		"more than zstd can hold": {files(1, func(int) string { return `"size":60000000,"offset":4999` }),
			"cannot have"},
	} {
		t.Run(name, func(t *testing.T) { refused(t, data, c.table, c.says, 8<<20) })
	}
}

// refused opens a layer of some data and a table, and wants it refused with some words for no more than most bytes of heap.
func refused(t *testing.T, data []byte, table, says string, most int64) {
	t.Helper()
	l := made(t, 2, data, table)
	at, _, err := zstdchunked.Named(l.annotations)
	if err != nil {
		t.Fatal(err)
	}
	heap.Refuses(t, most, layout.ErrInvalid, says, func() error {
		_, err := zstdchunked.Open(t.Context(), memory(l.blob), zstdchunked.Options{Table: at})
		return err
	})
}
