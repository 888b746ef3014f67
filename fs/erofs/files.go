package erofs

import (
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	maxDepth = 4096 // of directories: more than a path of the kernel can name

	// types of directory entries
	entryRegular = 1
	entryDir     = 2
)

// Files calls yield with every regular file and its path, which begins with a slash, until it
// returns false. A file with several names comes under each.
func (r *Reader) Files(yield func(path string, n *Node) bool) error {
	_, err := r.files(r.Root(), "/", 0, yield)
	return err
}

func (r *Reader) files(nid uint64, at string, depth int, yield func(string, *Node) bool) (more bool, err error) {
	if depth > maxDepth {
		return false, fmt.Errorf("%w: directories nest deeper than %d", ErrNotOurs, maxDepth)
	}
	dir, err := r.Node(nid)
	if err != nil {
		return false, err
	}
	more = true
	rerr := r.ReadDir(dir, 0, func(e DirEntry) bool {
		if e.Name == "." || e.Name == ".." {
			return true
		}
		switch name := path.Join(at, e.Name); e.Type {
		case entryDir:
			more, err = r.files(e.NID, name, depth+1, yield)
		case entryRegular:
			var n *Node
			if n, err = r.Node(e.NID); err == nil {
				more = yield(name, n)
			}
		}
		return more && err == nil
	})
	if err == nil {
		err = rerr
	}
	return more, err
}

// Find returns the node at an absolute path, without following symbolic links. found is false if
// there is none; link, if that is so because a symbolic link is on the way, is the link and rest
// what follows it in the path.
func (r *Reader) Find(name string) (n *Node, found bool, link *Node, rest string, err error) {
	if n, err = r.Node(r.Root()); err != nil {
		return nil, false, nil, "", err
	}
	for rest = strings.Trim(path.Clean(name), "/"); rest != ""; {
		part, more, _ := strings.Cut(rest, "/")
		switch n.Mode & unix.S_IFMT {
		case unix.S_IFLNK:
			return nil, false, n, rest, nil
		case unix.S_IFDIR:
		default:
			return nil, false, nil, "", nil
		}
		e, ok, err := r.Lookup(n, part)
		if err != nil || !ok {
			return nil, false, nil, "", err
		}
		if n, err = r.Node(e.NID); err != nil {
			return nil, false, nil, "", err
		}
		rest = more
	}
	return n, true, nil, "", nil
}
