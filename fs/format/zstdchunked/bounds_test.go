package zstdchunked_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/conformance/falsify"
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

// TestTablesTakeMemory: what decoding a table takes is asked for, whatever its frames say, and nothing is taken if there is none.
func TestTablesTakeMemory(t *testing.T) {
	const table = `{"version":1,"entries":[]}`
	windowed := func(size int) []byte {
		var b bytes.Buffer
		w, err := zstd.NewWriter(&b, zstd.WithWindowSize(size), zstd.WithSingleSegment(false), zstd.WithEncoderConcurrency(1))
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range []string{table[:10], table[10:]} {
			if _, err = w.Write([]byte(p)); err == nil {
				err = w.Flush()
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	// One segment that says it has 32 MiB of content.
	segment := append(le.AppendUint32([]byte{0x28, 0xb5, 0x2f, 0xfd, 0xa0}, 32<<20), 1, 0, 0)
	full := errors.New("full")
	for name, c := range map[string]struct {
		packed []byte
		least  int64 // that is asked for
		want   error
	}{
		"usual":          {pack(t, []byte(table)), 0, nil},
		"32 MiB":         {windowed(32 << 20), 30 << 20, nil},
		"64 MiB":         {windowed(64 << 20), 30 << 20, layout.ErrInvalid},
		"one segment":    {segment, 30 << 20, layout.ErrInvalid},
		"a later window": {append(pack(t, nil), windowed(32<<20)...), 0, layout.ErrInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			at := zstdchunked.Table{Off: 8, Packed: int64(len(c.packed)), Plain: int64(len(table)), Digest: digest.FromBytes(c.packed)}
			blob := memory(frame(nil, c.packed))
			open := func(grow func(int64) error) error {
				_, err := zstdchunked.Open(t.Context(), blob, zstdchunked.Options{Table: at, Limits: layout.Limits{Grow: grow}})
				return err
			}
			asked := int64(0)
			var err error
			peak := heap.Peak(func() {
				err = open(func(n int64) error {
					asked += n
					return nil
				})
			})
			t.Logf("%d bytes packed, %d MiB asked for, %d MiB of heap: %v", len(c.packed), asked>>20, peak>>20, err)
			if !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if asked < c.least || peak > asked+8<<20 {
				t.Errorf("%d bytes of heap, and %d were asked for", peak, asked)
			}
			if c.least == 0 {
				return
			}
			peak = heap.Peak(func() { err = open(func(int64) error { return full }) })
			if !errors.Is(err, full) || peak > 8<<20 {
				t.Errorf("%d bytes of heap where there are none: %v", peak, err)
			}
		})
	}
}

// TestMarksThatRepeat: saying again and again that a directory with many attributes is opaque costs no more than saying so of another
// one.
func TestMarksThatRepeat(t *testing.T) {
	table := falsify.Marked(10_900, 50_000)
	l := made(t, 2, nil, table)
	at, _, err := zstdchunked.Named(l.annotations)
	if err != nil {
		t.Fatal(err)
	}
	most := heap.LayerMost(len(table))
	most.CPU = 3 * time.Second // 40 ms were measured, and 42 s where each mark costs what the directory has
	took := most.Peaks(t, func() int64 {
		if _, err := zstdchunked.Open(t.Context(), memory(l.blob), zstdchunked.Options{Table: at}); err != nil {
			t.Error(err)
		}
		return 0
	})
	t.Logf("%d bytes of table, %+v", len(table), took)
}
