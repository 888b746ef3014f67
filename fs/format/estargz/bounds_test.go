package estargz_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/conformance/falsify"
	"github.com/remora-storage/remora/conformance/heap"
	"github.com/remora-storage/remora/fs/format/estargz"
	"github.com/remora-storage/remora/fs/layout"
)

// throughLinks is a table of hard links to a symbolic link that leads through as many directories as a path can name, and
// files behind each of them.
func throughLinks(n int) string {
	var b strings.Builder
	fmt.Fprintf(&b, `{"version":1,"entries":[{"name":"s","type":"symlink","linkName":%q}`, strings.Repeat("a/", 2047)+"a")
	for i := range n {
		fmt.Fprintf(&b, `,{"name":"%d/s","type":"hardlink","linkName":"s"},{"name":"%d/s/f","type":"reg"}`, i, i)
	}
	return b.String() + `]}`
}

// refuses fails the test unless a table is refused with a reason, for at most some bytes of heap.
func refuses(t *testing.T, table, says string, most int64) {
	t.Helper()
	blob, d := fromString(t, table)
	opened(t, blob, d, says, most)
}

// opened wants a blob with a table refused.
func opened(t *testing.T, blob []byte, d digest.Digest, says string, most int64) {
	t.Helper()
	heap.Refuses(t, most, layout.ErrInvalid, says, func() error {
		_, err := estargz.Open(t.Context(), &memBlob{data: blob}, estargz.Options{TOCDigest: d})
		return err
	})
}

// TestUnitsThatGrow: tables that have a reader of one byte pay for much more than the blob's bytes are refused.
func TestUnitsThatGrow(t *testing.T) {
	for name, c := range unitsThatGrow() {
		t.Run(name, func(t *testing.T) { refuses(t, c.table, c.says, 8<<20) })
	}
}

type hostileUnit struct{ table, says string }

func unitsThatGrow() map[string]hostileUnit {
	files := func(n int, fields func(i int) string) string {
		var b strings.Builder
		b.WriteString(`{"version":1,"entries":[{"name":"d","type":"dir"}`)
		for i := range n {
			fmt.Fprintf(&b, `,{"name":"%d","type":"reg","digest":%q,%s}`, i, sum, fields(i))
		}
		return b.String() + `]}`
	}
	return map[string]hostileUnit{
		"many files at one place": {files(100, func(int) string { return `"size":67108864,"offset":0` }), "in extents (limit 67108864)"},
		"files that overlap": {files(2, func(i int) string { return fmt.Sprintf(`"size":100,"offset":0,"innerOffset":%d`, 50*i) }),
			"overlap"},
		"a file of another length at one place": {files(2, func(i int) string { return fmt.Sprintf(`"size":%d,"offset":0`, 100+i) }),
			"overlap"},
		"a file behind 300 MB": {files(1, func(int) string { return `"size":10,"offset":0,"innerOffset":300000000` }),
			"(limit 67108864)"},
		"more than gzip can hold": {files(2, func(i int) string { return fmt.Sprintf(`"size":60000000,"offset":%d`, 900*i) }),
			"cannot have"},
	}
}

// TestUnitsThatAreShared: files of the same bytes at the same place are no fault.
func TestUnitsThatAreShared(t *testing.T) {
	blob, d := fromString(t, fmt.Sprintf(`{"version":1,"entries":[{"name":"a","type":"reg","size":9,"digest":%q,"offset":0},`+
		`{"name":"b","type":"reg","size":9,"digest":%q,"offset":0},{"name":"c","type":"reg","size":7,"digest":%q,"innerOffset":9}]}`,
		sum, sum, sum))
	if _, err := estargz.Open(t.Context(), &memBlob{data: blob}, estargz.Options{TOCDigest: d}); err != nil {
		t.Error(err)
	}
}

// TestTreesThatGrow: tables whose trees take more than what their entries justify are refused for little memory, by the name
// of what they break.
func TestTreesThatGrow(t *testing.T) {
	deep := strings.Repeat("d/", 2047)
	for name, c := range map[string]struct{ table, says string }{
		"directories behind a link": {throughLinks(100), "unlisted ones included"},
		"walks behind a link": {`{"version":1,"entries":[{"name":"s","type":"symlink","linkName":"` +
			strings.Repeat("x/../", 800) + `x"}` +
			strings.Repeat(`,{"name":"s/f","type":"fifo"},{"name":"g","type":"fifo"},{"name":"s/g","type":"fifo"}`, 700) + `]}`,
			"symbolic links lead"},
		"deep paths": {func() string {
			var b strings.Builder
			b.WriteString(`{"version":1,"entries":[{"name":"x","type":"fifo"}`)
			for i := range 4 {
				fmt.Fprintf(&b, `,{"name":"%d/%sf","type":"fifo"}`, i, deep[4:])
			}
			return b.String() + `]}`
		}(), "paths of its unlisted directories"},
	} {
		t.Run(name, func(t *testing.T) { refuses(t, c.table, c.says, 40<<20) })
	}
}

// TestTailsTakeMemory: a tail that is read because the manifest says that the table begins there is asked for.
func TestTailsTakeMemory(t *testing.T) {
	const tail = 15 << 20
	blob := &memBlob{data: make([]byte, 20<<20)}
	full := errors.New("full")
	asked := int64(0)
	var err error
	peak := heap.Peak(func() {
		_, err = estargz.Open(t.Context(), blob, estargz.Options{Unverified: true, OffsetHint: int64(len(blob.data)) - tail,
			Limits: layout.Limits{Grow: func(n int64) error {
				asked += n
				return full
			}}})
	})
	if !errors.Is(err, full) || asked < tail || peak > 8<<20 {
		t.Errorf("asked for %d bytes, and took %d: %v", asked, peak, err)
	}
}

// TestMarksThatRepeat: saying again and again that a directory with many attributes is opaque costs no more than saying so of another
// one.
func TestMarksThatRepeat(t *testing.T) {
	table := falsify.Marked(10_900, 50_000)
	blob, d := fromString(t, table)
	most := heap.LayerMost(len(table))
	most.CPU = 3 * time.Second // 40 ms were measured, and 42 s where each mark costs what the directory has
	took := most.Peaks(t, func() int64 {
		if _, err := estargz.Open(t.Context(), &memBlob{data: blob}, estargz.Options{TOCDigest: d}); err != nil {
			t.Error(err)
		}
		return 0
	})
	t.Logf("%d bytes of table, %+v", len(table), took)
}
