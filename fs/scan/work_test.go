package scan_test

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/cache/blob"
	"github.com/remora-storage/remora/conformance/heap"
	"github.com/remora-storage/remora/fs/index"
	"github.com/remora-storage/remora/fs/layout"
	"github.com/remora-storage/remora/fs/scan"
	"github.com/remora-storage/remora/internal/wire"
)

// workTakes is the processor time that entries which mean little take at most: tens of times what was measured, and a fraction of what
// they take if the work for one of them grows with what others said.
const workTakes = 4 * time.Second

// little wants do to take little processor time.
func little(t *testing.T, do func()) {
	t.Helper()
	took := heap.CPU(do)
	t.Logf("%s of processor time", took)
	if took > workTakes {
		t.Errorf("it took %s of processor time, more than %s", took, workTakes)
	}
}

// crowded is a directory that has about as many attributes as an inode can have.
func crowded(n int) layout.Inode {
	in := layout.Inode{Mode: unix.S_IFDIR | 0o755}
	for i := range n {
		in.Xattrs = append(in.Xattrs, layout.Xattr{Name: fmt.Sprintf("%04x", i)})
	}
	return in
}

const crowd = 10_900

// opaque is an archive of a directory with attributes, of marks that it hides what is below it, and of the directory once more.
func opaque(t testing.TB, attributes, marks int) []byte {
	t.Helper()
	return archive(t, func(w *tar.Writer) {
		h := tar.Header{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o755, PAXRecords: map[string]string{}}
		for _, x := range crowded(attributes).Xattrs {
			h.PAXRecords["SCHILY.xattr."+x.Name] = "-"
		}
		add(t, w, h, nil)
		for range marks {
			add(t, w, tar.Header{Name: "d/.wh..wh..opq"}, nil)
		}
		add(t, w, h, nil)
	})
}

// TestMarksThatRepeat: saying again and again that a directory with many attributes is opaque costs no more than saying so of another
// one, and comes to the same.
func TestMarksThatRepeat(t *testing.T) {
	const marks = 50_000
	check := func(t *testing.T, l *layout.Layout, err error, names int) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		d := l.Inodes[l.Inodes[layout.Root].Entries[0].Inode]
		if last := d.Xattrs[len(d.Xattrs)-1]; len(d.Xattrs) != names+1 || last.Name != "trusted.overlay.opaque" || string(last.Value) != "y" {
			t.Errorf("%d attributes, the last %q = %q", len(d.Xattrs), last.Name, last.Value)
		}
	}
	t.Run("archive", func(t *testing.T) {
		const names = 10_000 // their values have a byte each
		plain := opaque(t, names, marks)
		little(t, func() {
			l, err := scan.Scan(t.Context(), bytes.NewReader(plain), blob.Plain, scan.Options{})
			if err != nil {
				t.Fatal(err)
			}
			check(t, l.Layout, err, names)
		})
	})
	t.Run("index", func(t *testing.T) {
		entries := []index.Entry{{Name: "d/", Inode: crowded(crowd)}}
		for range marks {
			entries = append(entries, index.Entry{Name: "d/.wh..wh..opq", Inode: layout.Inode{Mode: unix.S_IFREG | 0o644}})
		}
		entries = append(entries, entries[0], index.Entry{Name: "e/", Inode: entries[0].Inode})
		p := indexOf(entries...)
		little(t, func() {
			l, err := index.Decode(t.Context(), p, layout.Limits{})
			check(t, l, err, crowd)
			if e := l.Inodes[l.Inodes[layout.Root].Entries[1].Inode]; len(e.Xattrs) != crowd {
				t.Errorf("a directory that shares its attributes has %d", len(e.Xattrs))
			}
		})
	})
}

// repeated encodes entries of which the last comes n times more, without making each of them: what the third of three adds to an index
// is what any other adds.
func repeated(t testing.TB, n int, entries ...index.Entry) []byte {
	t.Helper()
	last := entries[len(entries)-1]
	p := indexOf(append(entries, last)...)
	before, after := columnsOf(t, p), columnsOf(t, indexOf(append(entries, last, last)...))
	var tree []byte
	for i, c := range before {
		c = append(slices.Clone(c), bytes.Repeat(after[i][len(c):], n)...)
		tree = append(binary.AppendUvarint(tree, uint64(len(c))), c...)
	}
	points := p[headerSize+binary.LittleEndian.Uint32(p[112:]):]
	out := append(slices.Clone(p[:headerSize]), zs(t, tree)...)
	binary.LittleEndian.PutUint64(out[96:], uint64(len(entries)+1+n))
	binary.LittleEndian.PutUint32(out[112:], uint32(len(out)-headerSize))
	binary.LittleEndian.PutUint32(out[124:], uint32(len(tree)))
	return append(out, points...)
}

// headerSize is of an index, as fs/index/writer.go has it.
const headerSize = 136

// columnsOf unpacks the columns of an index.
func columnsOf(t testing.TB, p []byte) (columns [][]byte) {
	t.Helper()
	dec, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer dec.Close()
	tree, err := dec.DecodeAll(p[headerSize:headerSize+binary.LittleEndian.Uint32(p[112:])], nil)
	if err != nil {
		t.Fatal(err)
	}
	for in := wire.Read(tree); in.Len() > 0; {
		columns = append(columns, in.Bytes(in.Next()))
	}
	return columns
}

// shared are indexes of n entries with the attributes of one record, which no inode of an image takes.
func shared(t testing.TB, attributes, n int) map[string][]byte {
	t.Helper()
	many, overlays := crowded(attributes), layout.Inode{Mode: unix.S_IFDIR | 0o755}
	for _, x := range many.Xattrs {
		overlays.Xattrs = append(overlays.Xattrs, layout.Xattr{Name: "trusted.overlay." + x.Name})
	}
	first := index.Entry{Name: "a", Inode: fifo}
	return map[string][]byte{
		"hard links":           repeated(t, n, first, index.Entry{Name: "b", Link: "a", Inode: many}),
		"the root":             repeated(t, n, first, index.Entry{Name: "./", Inode: many}),
		"whiteouts":            repeated(t, n, first, index.Entry{Name: ".wh.b", Inode: many}),
		"marks of AUFS":        repeated(t, n, first, index.Entry{Name: ".wh..wh.b", Inode: many}),
		"opaque marks":         repeated(t, n, first, index.Entry{Name: ".wh..wh..opq", Inode: many}),
		"attributes not taken": repeated(t, n, first, index.Entry{Name: "d/", Inode: overlays}),
	}
}

// TestAttributesThatAreShared: entries that name the same record of an index cost no more for the attributes that it lists.
func TestAttributesThatAreShared(t *testing.T) {
	for name, p := range shared(t, 16<<10, 100_000) {
		t.Run(name, func(t *testing.T) {
			t.Logf("%d bytes", len(p))
			little(t, func() {
				if _, err := index.Decode(t.Context(), p, layout.Limits{}); err != nil {
					t.Error(err)
				}
			})
		})
	}
}
