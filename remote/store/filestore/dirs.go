package filestore

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/remote/store"
)

// keyDir makes an object's directory and those above it, each on stable storage when it returns: one that is there already
// may be so new that whoever made it has not synced it yet.
func (s *Store) keyDir(dir string) error {
	if dir == s.dir {
		return nil
	}
	there, err := isDir(dir)
	if err != nil {
		return err
	}
	if _, synced := s.synced.Load(dir); there && synced {
		return nil
	}
	if err := s.keyDir(filepath.Dir(dir)); err != nil {
		return err
	}
	if err := s.addKeyDir(dir); err != nil {
		return err
	}
	s.synced.Store(dir, true)
	return nil
}

// addKeyDir is addDir for an object's directory. It works in the directory that is the store now: if that is renamed meanwhile,
// nothing is made where it was.
func (s *Store) addKeyDir(dir string) error {
	rel, err := filepath.Rel(s.dir, dir)
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(s.dir)
	if err != nil {
		return err
	}
	defer root.Close()
	if _, err := root.Lstat(lockDir); err != nil {
		if _, err := root.Lstat(store.MarkKey); err != nil {
			return err
		}
	}
	if err := root.Mkdir(rel, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	above, err := root.Open(filepath.Dir(rel))
	if err != nil {
		return err
	}
	defer above.Close()
	return above.Sync()
}

// removeEmpty removes an object's directory, and those above it, while they are empty. It returns the first that stays, and
// whether one has gone.
func (s *Store) removeEmpty(dir string) (stays string, gone bool) {
	for dir != s.dir && unix.Rmdir(dir) == nil {
		s.synced.Delete(dir)
		dir, gone = filepath.Dir(dir), true
	}
	return dir, gone
}

// makeDir makes a directory and those above it that are not there, each on stable storage.
func makeDir(dir string) error {
	if there, err := isDir(dir); there || err != nil {
		return err
	}
	if err := makeDir(filepath.Dir(dir)); err != nil {
		return err
	}
	return addDir(dir)
}

// isDir reports whether a directory is there. Something else in its place is an error.
func isDir(dir string) (bool, error) {
	st, err := os.Stat(dir)
	if errors.Is(err, unix.ENOTDIR) || err == nil && !st.IsDir() {
		return false, &fs.PathError{Op: "make directory", Path: dir, Err: unix.ENOTDIR}
	}
	return err == nil, nil
}

// addDir puts a directory on stable storage, making it if it is not there.
func addDir(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(filepath.Dir(dir))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
