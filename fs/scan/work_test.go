package scan_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/cache/blob"
	"github.com/remora-storage/remora/conformance/heap"
	"github.com/remora-storage/remora/fs/index"
	"github.com/remora-storage/remora/fs/layout"
	"github.com/remora-storage/remora/fs/scan"
)

// workTakes is the processor time that entries which mean little take at most: tens of times what was measured, and a fraction of what
// they take if the work for one of them grows with what others said.
const workTakes = 2 * time.Second

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
		entries = append(entries, entries[0])
		p := indexOf(entries...)
		little(t, func() {
			l, err := index.Decode(t.Context(), p, layout.Limits{})
			check(t, l, err, crowd)
		})
	})
}
