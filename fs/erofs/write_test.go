package erofs_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/cache/blob"
	"github.com/remora-storage/remora/conformance/heap"
	"github.com/remora-storage/remora/fs/erofs"
	"github.com/remora-storage/remora/fs/layout"
)

// writeImage writes l's image to a file, with the bytes of content in its files.
func writeImage(t testing.TB, l *layout.Layout, content func(inode uint32) []byte) string {
	t.Helper()
	plan, err := erofs.NewPlan(l, [16]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n, err := plan.WriteTo(f)
	if err != nil || n != plan.MetaSize {
		t.Fatalf("wrote %d of %d bytes of metadata: %v", n, plan.MetaSize, err)
	}
	if err := f.Truncate(plan.Size); err != nil {
		t.Fatal(err)
	}
	for i := range l.Inodes {
		if in := &l.Inodes[i]; in.IsRegular() && in.Size > 0 {
			if _, err := f.WriteAt(content(uint32(i)), plan.DataOffset(uint32(i))); err != nil {
				t.Fatal(err)
			}
		}
	}
	return f.Name()
}

func fsck(t testing.TB, image string) {
	t.Helper()
	out, err := exec.Command("fsck.erofs", image).CombinedOutput()
	if err != nil {
		t.Fatalf("fsck.erofs %s: %v\n%s", image, err, out)
	}
}

// mountImage mounts an image file and returns the directory.
func mountImage(t testing.TB, image string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount(image, dir, "erofs", unix.MS_RDONLY, ""); err != nil {
		t.Fatalf("mount %s: %v", image, err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

type odd struct {
	name string
	in   layout.Inode
	data string
}

// odds is one of every inode that a layer may hold.
func odds() []odd {
	reg := func(size int) layout.Inode {
		return layout.Inode{Mode: unix.S_IFREG | 0o644, Size: int64(size), MtimeSec: 1234567890, MtimeNsec: 987654321}
	}
	list := []odd{
		{name: "empty", in: reg(0)},
		{name: "setuid", in: layout.Inode{Mode: unix.S_IFREG | 0o4755, Size: 3, UID: 70000, GID: 4294967294}, data: "abc"},
		{name: "before-epoch", in: layout.Inode{Mode: unix.S_IFREG | 0o600, MtimeSec: -12345}},
		{name: "far-future", in: layout.Inode{Mode: unix.S_IFREG | 0o600, MtimeSec: 1 << 33}},
		{name: "dir/sub/file", in: reg(5000), data: strings.Repeat("x", 5000)},
		{name: "dir", in: layout.Inode{Mode: unix.S_IFDIR | 0o1777, MtimeSec: 7, MtimeNsec: 1}},
		{name: "char", in: layout.Inode{Mode: unix.S_IFCHR | 0o620, Major: 4095, Minor: 1048575}},
		{name: "block", in: layout.Inode{Mode: unix.S_IFBLK | 0o660, Major: 8, Minor: 300}},
		{name: "fifo", in: layout.Inode{Mode: unix.S_IFIFO | 0o600}},
		{name: "socket", in: layout.Inode{Mode: unix.S_IFSOCK | 0o600}},
		{name: "link", in: layout.Inode{Mode: unix.S_IFLNK | 0o777, Target: "dir/sub"}},
		{name: "long-link", in: layout.Inode{Mode: unix.S_IFLNK | 0o777, Target: strings.Repeat("t", 4095)}},
		{name: strings.Repeat("n", 255), in: reg(1), data: "y"},
		{name: "xattrs", in: layout.Inode{Mode: unix.S_IFREG | 0o644, Xattrs: []layout.Xattr{
			{Name: "user.big", Value: bytes.Repeat([]byte("v"), 60000)},
			{Name: "user.empty", Value: nil},
			{Name: "security.capability", Value: []byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")},
			{Name: "trusted.x", Value: []byte("t")},
		}}},
		{name: "xdir", in: layout.Inode{Mode: unix.S_IFDIR | 0o755,
			Xattrs: []layout.Xattr{{Name: "user.d", Value: bytes.Repeat([]byte("d"), 4000)}}}},
		{name: "gone/.wh.file", in: layout.Inode{Mode: unix.S_IFREG}},
		{name: "opaque/.wh..wh..opq", in: layout.Inode{Mode: unix.S_IFREG}},
		{name: "big-hole", in: layout.Inode{Mode: unix.S_IFREG | 0o644, Size: 5 << 30}},
		{name: "!sorts-before-dot", in: reg(0)},
	}
	return list
}

func buildOdds(t testing.TB) (*layout.Layout, map[string]odd) {
	b := layout.NewBuilder(layout.Limits{})
	byName := map[string]odd{}
	for _, o := range odds() {
		if _, _, err := b.Add(o.name, o.in); err != nil {
			t.Fatalf("%s: %v", o.name, err)
		}
		byName[o.name] = o
	}
	for _, name := range []string{"hard1", "dir/hard2"} {
		if err := b.Link(name, "setuid", byName["setuid"].in); err != nil {
			t.Fatal(err)
		}
	}
	l, err := b.Finish(blob.Plain, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return l, byName
}

func TestEveryKindOfInode(t *testing.T) {
	l, byName := buildOdds(t)
	content := map[uint32]string{}
	var walk func(dir uint32, path string)
	walk = func(dir uint32, path string) {
		for _, e := range l.Inodes[dir].Entries {
			p := filepath.Join(path, e.Name)
			if o, ok := byName[p]; ok {
				content[e.Inode] = o.data
			}
			if l.Inodes[e.Inode].IsDir() {
				walk(e.Inode, p)
			}
		}
	}
	walk(layout.Root, "")
	image := writeImage(t, l, func(i uint32) []byte { return []byte(content[i]) })
	fsck(t, image)
	dir := mountImage(t, image)
	for name, o := range byName {
		if strings.Contains(name, ".wh.") {
			continue
		}
		t.Run(fmt.Sprintf("%.20s", name), func(t *testing.T) {
			p := filepath.Join(dir, name)
			var st unix.Stat_t
			if err := unix.Lstat(p, &st); err != nil {
				t.Fatal(err)
			}
			if st.Mode != o.in.Mode || st.Uid != o.in.UID || st.Gid != o.in.GID {
				t.Errorf("mode, owner: got %#o %d:%d, want %#o %d:%d", st.Mode, st.Uid, st.Gid, o.in.Mode, o.in.UID, o.in.GID)
			}
			if st.Mtim.Sec != o.in.MtimeSec || uint32(st.Mtim.Nsec) != o.in.MtimeNsec {
				t.Errorf("mtime: got %d.%d, want %d.%d", st.Mtim.Sec, st.Mtim.Nsec, o.in.MtimeSec, o.in.MtimeNsec)
			}
			if o.in.IsDevice() && (unix.Major(st.Rdev) != o.in.Major || unix.Minor(st.Rdev) != o.in.Minor) {
				t.Errorf("device: got %d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
			}
			if o.in.IsRegular() && st.Size != o.in.Size {
				t.Errorf("size: got %d, want %d", st.Size, o.in.Size)
			}
			if o.in.IsRegular() && o.data != "" {
				if got, err := os.ReadFile(p); err != nil || string(got) != o.data {
					t.Errorf("content: got %d bytes, %v", len(got), err)
				}
			}
			if o.in.IsSymlink() {
				if got, err := os.Readlink(p); err != nil || got != o.in.Target {
					t.Errorf("target: got %.40q, %v", got, err)
				}
			}
			for _, x := range o.in.Xattrs {
				got := make([]byte, 70000)
				n, err := unix.Lgetxattr(p, x.Name, got)
				if err != nil || !bytes.Equal(got[:n], x.Value) {
					t.Errorf("%s: got %d bytes, %v", x.Name, n, err)
				}
			}
		})
	}
	t.Run("hard links share an inode", func(t *testing.T) {
		var a, b unix.Stat_t
		if err := unix.Lstat(filepath.Join(dir, "setuid"), &a); err != nil {
			t.Fatal(err)
		}
		if err := unix.Lstat(filepath.Join(dir, "dir/hard2"), &b); err != nil {
			t.Fatal(err)
		}
		if a.Ino != b.Ino || a.Nlink != 3 {
			t.Errorf("got inodes %d and %d, %d links", a.Ino, b.Ino, a.Nlink)
		}
	})
	t.Run("whiteout and opaque", func(t *testing.T) {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(dir, "gone/file"), &st); err != nil {
			t.Fatal(err)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != 0 {
			t.Errorf("whiteout is %#o %d", st.Mode, st.Rdev)
		}
		got := make([]byte, 8)
		n, err := unix.Lgetxattr(filepath.Join(dir, "opaque"), "trusted.overlay.opaque", got)
		if err != nil || string(got[:n]) != "y" {
			t.Errorf("opaque: %q, %v", got[:n], err)
		}
	})
	t.Run("a hole of more than 4 GiB reads as zeros at its end", func(t *testing.T) {
		f, err := os.Open(filepath.Join(dir, "big-hole"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		got := bytes.Repeat([]byte{1}, 100)
		if _, err := f.ReadAt(got, 5<<30-100); err != nil || !bytes.Equal(got, make([]byte, 100)) {
			t.Errorf("got %v, %v", got, err)
		}
	})
}

func TestDirectoryOf100000(t *testing.T) {
	b := layout.NewBuilder(layout.Limits{})
	for i := range 100_000 {
		if _, _, err := b.Add(fmt.Sprintf("d/%x-%d", i*2654435761%4294967296, i), layout.Inode{Mode: unix.S_IFREG | 0o644}); err != nil {
			t.Fatal(err)
		}
	}
	l, err := b.Finish(blob.Plain, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	image := writeImage(t, l, nil)
	fsck(t, image)
	dir := mountImage(t, image)
	entries, err := os.ReadDir(filepath.Join(dir, "d"))
	if err != nil || len(entries) != 100_000 {
		t.Fatalf("got %d entries, %v", len(entries), err)
	}
	for i := 0; i < 100_000; i += 97 {
		name := fmt.Sprintf("%x-%d", i*2654435761%4294967296, i)
		if _, err := os.Lstat(filepath.Join(dir, "d", name)); err != nil {
			t.Fatal(err)
		}
	}
}

// FuzzLayout: whatever tree a builder accepts, fsck.erofs accepts its image, which takes no more than what any layer may.
func FuzzLayout(f *testing.F) {
	f.Add("a/b\nc\n.wh.d\na/.wh..wh..opq", uint32(0o644), uint8(3), int64(77))
	f.Add("x", uint32(0o7777), uint8(200), int64(-1))
	f.Fuzz(func(t *testing.T, names string, mode uint32, nx uint8, sec int64) {
		var xattrs []layout.Xattr
		for k := range int(nx % 8) {
			xattrs = append(xattrs, layout.Xattr{Name: fmt.Sprintf("user.%d", k), Value: bytes.Repeat([]byte{1}, int(nx)*k*13)})
		}
		described := len(names) + (strings.Count(names, "\n")+1)*21*13*int(nx)
		var l *layout.Layout
		var err error
		heap.LayerMost(described).Allocates(t, func() int64 {
			b := layout.NewBuilder(layout.Limits{})
			last := ""
			for i, name := range strings.Split(names, "\n") {
				kinds := []uint32{unix.S_IFREG, unix.S_IFDIR, unix.S_IFLNK, unix.S_IFIFO, unix.S_IFCHR}
				in := layout.Inode{
					Mode: mode&0o7777 | kinds[(i+int(nx))%len(kinds)], MtimeSec: sec, Target: "t" + name, Xattrs: slices.Clone(xattrs),
				}
				if last != "" && i%5 == 4 {
					_ = b.Link(name, last, in) // may be refused
					continue
				}
				if _, ok, err := b.Add(name, in); err == nil && ok && !in.IsDir() {
					last = name
				}
			}
			if l, err = b.Finish(blob.Plain, nil, nil); err != nil {
				return 0
			}
			plan, err := erofs.NewPlan(l, [16]byte{})
			if err != nil {
				return 0
			}
			return plan.MetaSize
		})
		if err != nil {
			t.Skip()
		}
		fsck(t, writeImage(t, l, nil))
	})
}

func TestMain(m *testing.M) {
	syscall.Umask(0)
	os.Exit(m.Run())
}
