package zstdchunked_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/conformance/falsify"
	"github.com/remora-storage/remora/conformance/heap"
	"github.com/remora-storage/remora/fs/erofs"
	"github.com/remora-storage/remora/fs/format"
	"github.com/remora-storage/remora/fs/format/zstdchunked"
	"github.com/remora-storage/remora/fs/layout"
)

var le = binary.LittleEndian

type memory []byte

func (m memory) Size() int64 { return int64(len(m)) }

func (m memory) Open(_ context.Context, off, n int64) (io.ReadCloser, error) {
	if off < 0 || n < 0 || off > int64(len(m))-n {
		return nil, errors.New("outside")
	}
	return io.NopCloser(bytes.NewReader(m[off : off+n])), nil
}

// source is memory as the cache wants it.
type source struct{ memory }

func (s source) Open(ctx context.Context, off, n int64, _ int) (io.ReadCloser, error) {
	return s.memory.Open(ctx, off, n)
}

func pack(t testing.TB, p []byte) []byte {
	t.Helper()
	e, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	return e.EncodeAll(p, nil)
}

func frame(b []byte, payload []byte) []byte {
	b = le.AppendUint32(b, 0x184D2A50)
	b = le.AppendUint32(b, uint32(len(payload)))
	return append(b, payload...)
}

// A layerOf is a layer made by hand, from what the two projects' documents and sources say.
type layerOf struct {
	blob        []byte
	annotations map[string]string
}

// made returns a layer of some data and a table, in a generation.
func made(t testing.TB, generation int, data []byte, table string) layerOf {
	t.Helper()
	packed := pack(t, []byte(table))
	blob := append([]byte(nil), data...)
	off := len(blob) + 8
	blob = frame(blob, packed)
	l := layerOf{annotations: map[string]string{}}
	position := fmt.Sprintf("%d:%d:%d:1", off, len(packed), len(table))
	footer := le.AppendUint64(nil, uint64(off))
	footer = le.AppendUint64(footer, uint64(len(packed)))
	footer = le.AppendUint64(footer, uint64(len(table)))
	footer = le.AppendUint64(footer, 1)
	prefix := zstdchunked.FirstPrefix
	if generation == 2 {
		prefix = zstdchunked.SecondPrefix
		split := pack(t, []byte("the record of headers"))
		splitOff := len(blob) + 8
		blob = frame(blob, split)
		for _, v := range []int{splitOff, len(split), 21} {
			footer = le.AppendUint64(footer, uint64(v))
		}
		footer = append(footer, "GNUlInUx"...)
		l.annotations[prefix+zstdchunked.TarSplit] = fmt.Sprintf("%d:%d:21", splitOff, len(split))
	} else {
		footer = append(footer, "GnUlInUx"...)
	}
	l.annotations[prefix+zstdchunked.Checksum] = digest.FromBytes(packed).String()
	l.annotations[prefix+zstdchunked.Position] = position
	l.blob = frame(blob, footer)
	return l
}

const rfc = "2023-01-02T03:04:05.123456789Z"

// twoFiles is data of a layer with a small file and one of three chunks, the middle one a hole, and
// the layer's table in a version.
func twoFiles(t testing.TB, version int) (data []byte, table string, small, large []byte) {
	small, first, last := []byte("a small file"), bytes.Repeat([]byte("one"), 5000), bytes.Repeat([]byte("two"), 3000)
	const hole = 100000
	large = append(append(append([]byte(nil), first...), make([]byte, hole)...), last...)
	header := pack(t, make([]byte, 512)) // the tar's headers are of no interest here
	var offs [4]int
	for i, p := range [][]byte{small, first, last} {
		data = append(data, header...)
		offs[i] = len(data)
		data = append(data, pack(t, p)...)
	}
	offs[3] = len(data)
	sum := func(p []byte) string { return digest.FromBytes(p).String() }
	table = fmt.Sprintf(`{"version":%d,"entries":[
{"type":"dir","name":"d/","mode":493,"modtime":%q},
{"type":"reg","name":"d/small","mode":420,"size":%d,"digest":%q,"offset":%d,"endOffset":%d,"modtime":%q,"accesstime":%q},
{"type":"reg","name":"d/large","mode":420,"size":%d,"digest":%q,"offset":%d,"endOffset":%d,"chunkSize":%d,"chunkDigest":%q,"modtime":%q},
{"type":"chunk","name":"d/large","chunkType":"zeros","chunkOffset":%d,"chunkSize":%d},
{"type":"chunk","name":"d/large","offset":%d,"endOffset":%d,"chunkOffset":%d,"chunkSize":%d,"chunkDigest":%q},
{"type":"hardlink","name":"hard","linkName":"d/small","mode":420,"modtime":%q},
{"type":"symlink","name":"soft","linkName":"d/large","mode":511,"modtime":%q}]}`,
		version, rfc,
		len(small), sum(small), offs[0], offs[1]-len(header), rfc, rfc,
		len(large), sum(large), offs[1], offs[2]-len(header), len(first), sum(first), rfc,
		len(first), hole,
		offs[2], offs[3], len(first)+hole, len(last), sum(last),
		rfc, rfc)
	return data, table, small, large
}

// TestGenerations opens layers of both generations and reads their files through the cache.
func TestGenerations(t *testing.T) {
	for name, c := range map[string]struct{ generation, version int }{"first": {1, 1}, "second": {2, 1}, "second without tar-split": {2, 2}} {
		t.Run(name, func(t *testing.T) {
			data, table, small, large := twoFiles(t, c.version)
			l := made(t, c.generation, data, table)
			at, named, err := zstdchunked.Named(l.annotations)
			if err != nil || !named {
				t.Fatal(named, err)
			}
			for how, o := range map[string]zstdchunked.Options{"by annotations": {Table: at}, "by the footer": {Unverified: true}} {
				x, err := zstdchunked.Open(t.Context(), memory(l.blob), o)
				if err != nil {
					t.Fatalf("%s: %v", how, err)
				}
				f := cached(t, l.blob, x)
				for path, want := range map[string][]byte{"/d/small": small, "/d/large": large, "/hard": small} {
					if got := read(t, f, path); !bytes.Equal(got, want) {
						t.Errorf("%s: %s is another", how, path)
					}
				}
				if err := f.PrefetchAll(t.Context()); err != nil {
					t.Errorf("%s: %v", how, err)
				}
			}
		})
	}
}

func cached(t *testing.T, blob []byte, x *format.Index) *cache.File {
	t.Helper()
	c, err := cache.Open(t.TempDir(), cache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	plan, err := erofs.NewPlan(x.Layout, [16]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	spec, err := plan.Spec(x.Tail)
	if err != nil {
		t.Fatal(err)
	}
	f, err := c.Create("one", spec, source{blob})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func read(t *testing.T, f *cache.File, path string) []byte {
	t.Helper()
	tree, err := erofs.NewReader(f.Image(), f.MetaSize())
	if err != nil {
		t.Fatal(err)
	}
	n, found, _, _, err := tree.Find(path)
	if err != nil || !found {
		t.Fatalf("%s: %v, %v", path, found, err)
	}
	if n.MtimeNsec != 123456789 {
		t.Errorf("%s has %d nanoseconds", path, n.MtimeNsec)
	}
	p := make([]byte, n.Size)
	if _, err := f.ReadAt(t.Context(), p, n.Data); err != nil {
		t.Fatal(err)
	}
	return p
}

// TestTrust: a table that the manifest does not vouch for, or another one, is refused.
func TestTrust(t *testing.T) {
	data, table, _, _ := twoFiles(t, 1)
	l := made(t, 2, data, table)
	good, _, err := zstdchunked.Named(l.annotations)
	if err != nil {
		t.Fatal(err)
	}
	other := good
	other.Digest = digest.FromString("another table")
	beyond := good
	beyond.Off = int64(len(l.blob)) - 10
	huge := good
	huge.Packed = math.MaxInt64 / 2
	for name, o := range map[string]zstdchunked.Options{
		"not named":           {},
		"another digest":      {Table: other},
		"beyond the blob":     {Table: beyond},
		"huge":                {Table: huge},
		"another plain table": {Table: good, JSONDigest: digest.FromString("x")},
	} {
		t.Run(name, func(t *testing.T) {
			heap.Refuses(t, 32<<20, layout.ErrInvalid, "", func() error {
				_, err := zstdchunked.Open(t.Context(), memory(l.blob), o)
				return err
			})
		})
	}
	both := map[string]string{}
	for k, v := range l.annotations {
		both[k] = v
		both[strings.Replace(k, zstdchunked.SecondPrefix, zstdchunked.FirstPrefix, 1)] = v
	}
	if _, named, err := zstdchunked.Named(both); err != nil || !named {
		t.Errorf("the same table named twice: %v, %v", named, err)
	}
	both[zstdchunked.FirstPrefix+zstdchunked.Checksum] = other.Digest.String()
	if _, _, err := zstdchunked.Named(both); !errors.Is(err, layout.ErrInvalid) {
		t.Errorf("two tables: %v", err)
	}
	for _, position := range []string{"", "1:2:3", "1:2:3:4:5", "-1:2:3:1", "100:0:3:1", "100:2:3:2", "100:2:3:1 and more",
		"99999999999999999999:1:1:1"} {
		if _, _, err := zstdchunked.Named(map[string]string{zstdchunked.FirstPrefix + zstdchunked.Checksum: good.Digest.String(),
			zstdchunked.FirstPrefix + zstdchunked.Position: position}); !errors.Is(err, layout.ErrInvalid) {
			t.Errorf("position %q: %v", position, err)
		}
	}
}

// TestHostileTables: each is refused as the layer's own fault.
func TestHostileTables(t *testing.T) {
	sum := digest.FromString("x").String()
	for name, table := range map[string]string{
		"another version":  `{"version":3,"entries":[]}`,
		"hole too long":    `{"version":1,"entries":[{"name":"f","type":"reg","size":10,"chunkType":"zeros","chunkSize":11}]}`,
		"hole of nothing":  `{"version":1,"entries":[{"name":"f","type":"reg","size":10,"chunkType":"zeros","chunkSize":-1}]}`,
		"hole out of line": `{"version":1,"entries":[{"name":"f","type":"reg","size":10,"chunkType":"zeros","chunkOffset":5,"chunkSize":5}]}`,
		"half a file":      `{"version":1,"entries":[{"name":"f","type":"reg","size":10,"chunkType":"zeros","chunkSize":5}]}`,
		"offset beyond":    fmt.Sprintf(`{"version":1,"entries":[{"name":"f","type":"reg","size":10,"offset":1000000,"digest":%q}]}`, sum),
		"no digest":        `{"version":1,"entries":[{"name":"f","type":"reg","size":10,"offset":0}]}`,
		"not JSON":         `hello`,
	} {
		t.Run(name, func(t *testing.T) { refused(t, make([]byte, 100), table, "", 32<<20) })
	}
}

// FuzzTable: whatever a table says, it becomes an image that our own reader takes, or is refused.
func FuzzTable(f *testing.F) {
	data, table, _, _ := twoFiles(f, 2)
	f.Add([]byte(table))
	f.Add([]byte(`{"version":1,"entries":[{"name":"f","type":"reg","size":10,"chunkType":"zeros"}]}`))
	f.Add([]byte(falsify.Marked(200, 100)))
	f.Fuzz(func(t *testing.T, table []byte) {
		if len(table) == 0 {
			return
		}
		l := made(t, 2, data, string(table))
		at, _, err := zstdchunked.Named(l.annotations)
		if err != nil {
			t.Fatal(err)
		}
		var x *format.Index
		most := heap.LayerMost(len(table))
		most.Allocates(t, func() int64 {
			x, err = zstdchunked.Open(t.Context(), memory(l.blob),
				zstdchunked.Options{Table: at, Limits: layout.Limits{Image: 1 << 30, Extent: 1 << 24}})
			return 0
		})
		if err != nil {
			return
		}
		var plan *erofs.Plan
		most.Allocates(t, func() int64 {
			if plan, err = erofs.NewPlan(x.Layout, [16]byte{}); err != nil {
				return 0
			}
			return plan.MetaSize
		})
		if err != nil {
			return
		}
		if _, err := plan.Spec(x.Tail); err != nil && !errors.Is(err, erofs.ErrTooLarge) {
			t.Error(err)
		}
	})
}

// FuzzBlob: whatever a blob ends with, it is opened or refused.
func FuzzBlob(f *testing.F) {
	data, table, _, _ := twoFiles(f, 1)
	f.Add(made(f, 1, data, table).blob)
	f.Add(made(f, 2, data, table).blob)
	f.Fuzz(func(t *testing.T, blob []byte) {
		var err error
		heap.LayerMost(len(blob)).Allocates(t, func() int64 {
			_, err = zstdchunked.Open(t.Context(), memory(blob), zstdchunked.Options{Unverified: true})
			return 0
		})
		if err != nil && !errors.Is(err, layout.ErrInvalid) {
			t.Error(err)
		}
	})
}
