package erofs_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/cache/blob"
	"github.com/remora-storage/remora/conformance/heap"
	"github.com/remora-storage/remora/fs/erofs"
	"github.com/remora-storage/remora/fs/layout"
)

// image writes a layout's metadata.
func metaOf(t testing.TB, l *layout.Layout) ([]byte, *erofs.Plan) {
	t.Helper()
	plan, err := erofs.NewPlan(l, [16]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if _, err := plan.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), plan
}

func oddLayout(t testing.TB, names int) *layout.Layout {
	t.Helper()
	b := layout.NewBuilder(layout.Limits{})
	add := func(name string, in layout.Inode) {
		if _, _, err := b.Add(name, in); err != nil {
			t.Fatal(err)
		}
	}
	for i := range names {
		add(fmt.Sprintf("many/%07d-%s", i, strings.Repeat("n", i%100)), layout.Inode{Mode: unix.S_IFREG | 0o640, UID: uint32(i), Size: int64(i)})
	}
	add("dir/fifo", layout.Inode{Mode: unix.S_IFIFO | 0o600, MtimeSec: -5, MtimeNsec: 7})
	add("dir/null", layout.Inode{Mode: unix.S_IFCHR | 0o666, Major: 1, Minor: 300})
	add("dir/link", layout.Inode{Mode: unix.S_IFLNK | 0o777, Target: strings.Repeat("t", 4000)})
	add("dir/attrs", layout.Inode{Mode: unix.S_IFREG | 0o4755, Xattrs: []layout.Xattr{
		{Name: "user.a", Value: bytes.Repeat([]byte("v"), 3000)},
		{Name: "security.capability", Value: []byte{1, 2, 3}},
		{Name: "system.posix_acl_access", Value: []byte("acl")},
	}})
	if err := b.Link("dir/hard", "dir/attrs", layout.Inode{Mode: unix.S_IFREG | 0o4755}); err != nil {
		t.Fatal(err)
	}
	add("dir/.wh.gone", layout.Inode{})
	add("opaque/.wh..wh..opq", layout.Inode{})
	l, err := b.Finish(blob.Plain, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// TestReaderReadsWhatThePlanWrote compares every inode, name and attribute.
func TestReaderReadsWhatThePlanWrote(t *testing.T) {
	for _, names := range []int{0, 1, 40, 3000} {
		l := oddLayout(t, names)
		p, _ := metaOf(t, l)
		r, err := erofs.NewReader(bytes.NewReader(p), int64(len(p)))
		if err != nil {
			t.Fatal(err)
		}
		seen := map[uint32]uint64{}
		compare(t, r, l, layout.Root, r.Root(), "/", seen)
		if len(seen) != len(l.Inodes) {
			t.Errorf("%d inodes of %d", len(seen), len(l.Inodes))
		}
	}
}

func compare(t *testing.T, r *erofs.Reader, l *layout.Layout, i uint32, nid uint64, name string, seen map[uint32]uint64) {
	t.Helper()
	if old, ok := seen[i]; ok && old != nid {
		t.Errorf("%s: a hard link at %d and %d", name, old, nid)
	}
	seen[i] = nid
	want := &l.Inodes[i]
	n, err := r.Node(nid)
	if err != nil {
		t.Fatal(name, err)
	}
	if n.Mode != want.Mode || n.UID != want.UID || n.GID != want.GID || n.Nlink != want.Nlink || n.MtimeSec != want.MtimeSec ||
		n.MtimeNsec != want.MtimeNsec ||
		!want.IsDir() && n.Size != want.Size {
		t.Errorf("%s: got %+v, want %+v", name, n, want)
	}
	xattrs, err := r.Xattrs(n)
	if err != nil || !slices.EqualFunc(xattrs, want.Xattrs,
		func(a, b layout.Xattr) bool { return a.Name == b.Name && bytes.Equal(a.Value, b.Value) }) {
		t.Errorf("%s: attributes %v, want %v, %v", name, xattrs, want.Xattrs, err)
	}
	if want.IsSymlink() {
		if target, err := r.Link(n); err != nil || target != want.Target {
			t.Errorf("%s: target of %d bytes, %v", name, len(target), err)
		}
	}
	if !want.IsDir() {
		return
	}
	var names []string
	from := uint64(0)
	for { // a few at a time, as the kernel asks
		n0 := len(names)
		if err := r.ReadDir(n, from, func(e erofs.DirEntry) bool {
			if len(names) == n0+7 {
				return false
			}
			names = append(names, e.Name)
			from = e.Next
			return true
		}); err != nil {
			t.Fatal(name, err)
		}
		if len(names) == n0 {
			break
		}
	}
	if len(names) != len(want.Entries)+2 {
		t.Errorf("%s: %d names, want %d", name, len(names), len(want.Entries)+2)
	}
	for _, e := range want.Entries {
		got, found, err := r.Lookup(n, e.Name)
		if err != nil || !found || erofs.Mode(got.Type) != l.Inodes[e.Inode].Mode&unix.S_IFMT {
			t.Fatalf("%s: lookup %s: %+v, %v, %v", name, e.Name, got, found, err)
		}
		compare(t, r, l, e.Inode, got.NID, path.Join(name, e.Name), seen)
	}
	for _, absent := range []string{"", "!", "no such name", "zzzz", strings.Repeat("m", 255)} {
		if _, found, err := r.Lookup(n, absent); found || err != nil {
			t.Errorf("%s: lookup %q: %v, %v", name, absent, found, err)
		}
	}
}

// FuzzReader: metadata that is damaged on disk gives errors, never a panic.
func FuzzReader(f *testing.F) {
	p, _ := metaOf(f, oddLayout(f, 30))
	f.Add(p)
	f.Fuzz(func(t *testing.T, p []byte) {
		r, err := erofs.NewReader(bytes.NewReader(p), int64(len(p)))
		if err != nil {
			return
		}
		const nodes = 2000
		most := heap.RecordMost(len(p))
		most.Memory += nodes * (int64(len(p)) + 64<<10) // each may say that its attributes are all of it, and names 100
		budget := nodes
		most.Allocates(t, func() int64 { walk(r, r.Root(), &budget); return 0 })
	})
}

func walk(r *erofs.Reader, nid uint64, budget *int) {
	if *budget--; *budget < 0 {
		return
	}
	n, err := r.Node(nid)
	if err != nil {
		return
	}
	_, _ = r.Xattrs(n)
	_, _ = r.Link(n)
	_, _, _ = r.Lookup(n, "dir")
	var nids []uint64
	_ = r.ReadDir(n, 0, func(e erofs.DirEntry) bool {
		if e.Name != "." && e.Name != ".." {
			nids = append(nids, e.NID)
		}
		return len(nids) < 100
	})
	for _, nid := range nids {
		walk(r, nid, budget)
	}
}

func TestReaderRefuses(t *testing.T) {
	p, _ := metaOf(t, oddLayout(t, 3))
	for name, bad := range map[string][]byte{"nothing": nil, "zeros": make([]byte, 8192), "cut": p[:1100]} {
		if _, err := erofs.NewReader(bytes.NewReader(bad), int64(len(bad))); !errors.Is(err, erofs.ErrNotOurs) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := erofs.NewReader(os.NewFile(^uintptr(0), "closed"), 8192); err == nil {
		t.Error("a file that cannot be read")
	}
}
