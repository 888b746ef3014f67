package snapshotter

import (
	"context"
	"errors"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/containerd/continuity/fs"
	"github.com/containerd/continuity/sysx"
	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/fs/layout"
)

// below returns a function that gives the attributes of a directory as the snapshots with the
// given ids, the nearest first, show it together. It waits until they are mounted.
func (m *mountings) below(ctx context.Context, parents []string) (func(string) (layout.Attributes, bool, error), error) {
	roots, err := m.mounted(ctx, parents)
	if err != nil {
		return nil, err
	}
	return func(p string) (layout.Attributes, bool, error) {
		if err := context.Cause(ctx); err != nil { // a layer may have very many directories to ask for
			return layout.Attributes{}, false, err
		}
		return lookBelow(roots, p)
	}, nil
}

// mounted returns the directories of snapshots once what they show is there.
func (m *mountings) mounted(ctx context.Context, ids []string) (dirs []string, err error) {
	for _, id := range ids {
		if b := m.bindings.get(id); b != nil {
			if err := m.ensure(ctx, b); err != nil {
				return nil, &belowError{err}
			}
		}
		dirs = append(dirs, m.upperPath(id))
	}
	return dirs, nil
}

// A belowError says that a layer below one could not be mounted. That says nothing of the one itself, neither that it is gone nor that it
// was refused, so it does not wrap why.
type belowError struct{ err error }

func (e *belowError) Error() string { return "below it, " + e.err.Error() }

// lookBelow finds p in the topmost root that has it, heeding whiteouts and opaque directories.
func lookBelow(roots []string, p string) (a layout.Attributes, found bool, err error) {
	for _, root := range roots {
		st, hidden, err := lookIn(root, p)
		if err != nil {
			return a, false, err
		}
		if st != nil {
			at := filepath.Join(root, p)
			if st.Mode&unix.S_IFMT == unix.S_IFLNK {
				// containerd's unpacker makes a directory over the link, with the attributes of what the link
				// leads to in the same layer.
				if at, st, err = follow(root, p); err != nil {
					return a, false, err
				}
				if st == nil {
					continue
				}
			}
			if st.Mode&unix.S_IFMT != unix.S_IFDIR {
				return a, false, nil // replaced: nothing to take
			}
			a, err = attributes(at, st)
			return a, err == nil, err
		}
		if hidden {
			return a, false, nil
		}
	}
	return a, false, nil
}

// follow returns where p leads in one layer, symbolic links heeded, and its status, or none.
func follow(root, p string) (at string, st *unix.Stat_t, err error) {
	if at, err = fs.RootPath(root, p); err != nil {
		return "", nil, err
	}
	var one unix.Stat_t
	err = unix.Lstat(at, &one)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return at, nil, nil
	}
	if err != nil {
		return at, nil, &os.PathError{Op: "lstat", Path: at, Err: err}
	}
	return at, &one, nil
}

// lookIn returns p's status in one layer, or whether the layer hides those below.
func lookIn(root, p string) (st *unix.Stat_t, hidden bool, err error) {
	at := root
	for part := range strings.SplitSeq(path.Clean(p), "/") {
		if isOpaque(at) {
			hidden = true
		}
		at = filepath.Join(at, part)
		var one unix.Stat_t
		err := unix.Lstat(at, &one)
		if errors.Is(err, unix.ENOENT) {
			return nil, hidden, nil
		}
		if err != nil {
			return nil, false, &os.PathError{Op: "lstat", Path: at, Err: err}
		}
		switch one.Mode & unix.S_IFMT {
		case unix.S_IFCHR:
			if one.Rdev == 0 {
				return nil, true, nil // whiteout
			}
			return &one, true, nil
		case unix.S_IFDIR:
			st = &one
		default:
			return &one, true, nil
		}
	}
	return st, hidden, nil
}

func isOpaque(dir string) bool {
	var v [1]byte
	n, err := unix.Lgetxattr(dir, "trusted.overlay.opaque", v[:])
	return err == nil && n == 1 && v[0] == 'y'
}

func attributes(p string, st *unix.Stat_t) (layout.Attributes, error) {
	a := layout.Attributes{Mode: st.Mode, UID: st.Uid, GID: st.Gid, MtimeSec: st.Mtim.Sec, MtimeNsec: uint32(st.Mtim.Nsec)}
	names, err := sysx.LListxattr(p)
	if err != nil && !errors.Is(err, unix.ENOTSUP) {
		return a, &os.PathError{Op: "listxattr", Path: p, Err: err}
	}
	for _, name := range names {
		if strings.HasPrefix(name, "trusted.overlay.") {
			continue
		}
		v, err := sysx.LGetxattr(p, name)
		if err != nil {
			return a, &os.PathError{Op: "getxattr " + name, Path: p, Err: err}
		}
		a.Xattrs = append(a.Xattrs, layout.Xattr{Name: name, Value: v})
	}
	return a, nil
}
