package testbed

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/continuity/sysx"
	"golang.org/x/sys/unix"
)

// An Entry is everything that stat(2), getxattr(2) and read(2) say of a file.
type Entry struct {
	Mode, UID, GID uint32
	Size           int64
	MtimeSec       int64
	Major, Minor   uint32
	Target         string
	Xattrs         map[string]string
	Links          string // the first path of those that share the inode
	Hash           [32]byte
}

// Tree reads a mounted tree.
func Tree(root string) (map[string]Entry, error) {
	all := map[string]Entry{}
	first := map[uint64]string{}
	shared := map[string]bool{} // names that are the first of several
	err := filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		e, err := readEntry(p, name, first)
		if e.Links != "" && e.Links != name {
			shared[e.Links] = true
		}
		all[name] = e
		return err
	})
	for name, e := range all {
		if e.Links != "" && !shared[e.Links] { // by another name outside the tree
			e.Links = ""
			all[name] = e
		}
	}
	return all, err
}

func readEntry(p, name string, first map[uint64]string) (Entry, error) {
	var st unix.Stat_t
	if err := unix.Lstat(p, &st); err != nil {
		return Entry{}, &os.PathError{Op: "lstat", Path: p, Err: err}
	}
	e := Entry{Mode: st.Mode, UID: st.Uid, GID: st.Gid, MtimeSec: st.Mtim.Sec, Xattrs: map[string]string{}}
	names, err := sysx.LListxattr(p)
	if err != nil && !errors.Is(err, unix.ENOTSUP) {
		return e, &os.PathError{Op: "listxattr", Path: p, Err: err}
	}
	for _, x := range names {
		v, err := sysx.LGetxattr(p, x)
		if err != nil {
			return e, &os.PathError{Op: "getxattr " + x, Path: p, Err: err}
		}
		e.Xattrs[x] = string(v)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		e.Size = st.Size
		e.Hash, err = hashFile(p)
	case unix.S_IFLNK:
		e.Target, err = os.Readlink(p)
	case unix.S_IFCHR, unix.S_IFBLK:
		e.Major, e.Minor = unix.Major(st.Rdev), unix.Minor(st.Rdev)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR && st.Nlink > 1 {
		if _, ok := first[st.Ino]; !ok {
			first[st.Ino] = name
		}
		e.Links = first[st.Ino]
	}
	return e, err
}

func hashFile(p string) (sum [32]byte, err error) {
	f, err := os.Open(p)
	if err != nil {
		return sum, err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return sum, err
	}
	h.Sum(sum[:0])
	return sum, nil
}

// CompareTrees says where got differs from want. The times of directories that no layer lists
// are those of unpacking; unlisted names them.
func CompareTrees(got, want map[string]Entry, unlisted func(path string) bool) error {
	var diffs []string
	for name, w := range want {
		g, ok := got[name]
		if !ok {
			diffs = append(diffs, name+": missing")
			continue
		}
		if w.Mode&unix.S_IFMT == unix.S_IFDIR && unlisted(name) {
			g.MtimeSec, w.MtimeSec = 0, 0
		}
		if a, b := fmt.Sprintf("%+v", g), fmt.Sprintf("%+v", w); a != b {
			diffs = append(diffs, fmt.Sprintf("%s:\n  got  %.400s\n  want %.400s", name, a, b))
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			diffs = append(diffs, name+": not wanted")
		}
	}
	if len(diffs) == 0 {
		return nil
	}
	slices.Sort(diffs)
	n := len(diffs)
	return fmt.Errorf("%d differences:\n%s", n, strings.Join(diffs[:min(n, 20)], "\n"))
}
