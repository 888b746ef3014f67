package zstdchunked_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

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
	refused(t, nil, b.String()+`]}`, "unlisted ones included", 100<<20)
}

// refused opens a layer of some data and a table, and wants it refused with some words for no more than most bytes of heap.
func refused(t *testing.T, data []byte, table, says string, most int64) {
	t.Helper()
	l := made(t, 2, data, table)
	at, _, err := zstdchunked.Named(l.annotations)
	if err != nil {
		t.Fatal(err)
	}
	peak := heap.Peak(func() { _, err = zstdchunked.Open(t.Context(), memory(l.blob), zstdchunked.Options{Table: at}) })
	t.Logf("%d bytes of blob, %d MiB of heap: %v", len(l.blob), peak>>20, err)
	if !errors.Is(err, layout.ErrInvalid) || !strings.Contains(err.Error(), says) {
		t.Errorf("got %v, want that %s", err, says)
	}
	if peak > most {
		t.Errorf("refusing took %d MiB", peak>>20)
	}
}
