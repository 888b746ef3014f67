package filestore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/remote/store"
)

// Put implements store.Store. An object that is new gets its name before it is on stable storage: what a power cut may
// leave of it was not acknowledged. So the file system has one transaction to write, not two.
func (s *Store) Put(ctx context.Context, key string, p []byte) (store.Object, error) {
	return s.store(ctx, "put", key, p, func(t *temp, path string) error {
		err := unix.Renameat2(unix.AT_FDCWD, t.path, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE)
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := t.sync(); err != nil { // what is there stays whole until it is replaced
			return err
		}
		unlock, err := s.lock(key) // a rename between another's comparison and its rename would be undone
		if err != nil {
			return err
		}
		defer unlock()
		return nested(os.Rename(t.path, path), path)
	})
}

// PutIfAbsent implements store.Store. link(2) fails if the name exists, for all processes alike.
func (s *Store) PutIfAbsent(ctx context.Context, key string, p []byte) (store.Object, error) {
	return s.store(ctx, "put", key, p, func(t *temp, path string) error {
		if err := t.sync(); err != nil {
			return err
		}
		err := nested(os.Link(t.path, path), path)
		if errors.Is(err, fs.ErrExist) {
			return store.ErrExists
		}
		return err
	})
}

// PutIfMatch implements store.Store.
func (s *Store) PutIfMatch(ctx context.Context, key string, p []byte, want string) (store.Object, error) {
	return s.store(ctx, "replace", key, p, func(t *temp, path string) error {
		if err := t.sync(); err != nil {
			return err
		}
		unlock, err := s.lock(key)
		if err != nil {
			return err
		}
		defer unlock()
		var old []byte
		err = s.sure(func() (err error) {
			old, err = os.ReadFile(path)
			return err
		})
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EISDIR) || err == nil && version(old) != want {
			return store.ErrChanged
		}
		if err != nil {
			return err
		}
		return os.Rename(t.path, path)
	})
}

// nested returns err, or ErrNested if err is because path is the directory of objects whose keys continue its key.
func nested(err error, path string) error {
	if err == nil {
		return nil
	}
	if st, serr := os.Lstat(path); serr == nil && st.IsDir() {
		return store.ErrNested
	}
	return err
}

// store writes p to a file without a name, has publish give it the name, and returns when both are on stable storage.
func (s *Store) store(ctx context.Context, op, key string, p []byte, publish func(t *temp, path string) error) (store.Object, error) {
	path, err := s.begin(ctx, op, key)
	if err != nil {
		return store.Object{}, err
	}
	if s.opts.Bulk(key) {
		if err := s.leavesReserve(int64(len(p))); err != nil {
			return store.Object{}, s.fail(op, key, err)
		}
	}
	dir := filepath.Dir(path)
	t, err := s.writeTemp(p)
	if err != nil {
		return store.Object{}, s.fail(op, key, err)
	}
	defer t.f.Close() // its lock kept sweep away
	// A Delete may take the directory away as an empty one.
	for range 100 {
		if err = s.keyDir(dir); err == nil {
			err = publish(t, path)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	if rmErr := os.Remove(t.path); err == nil && rmErr != nil && !errors.Is(rmErr, fs.ErrNotExist) {
		err = rmErr
	}
	if err == nil {
		err = t.sync()
	}
	if err == nil {
		err = syncDir(dir)
	}
	if err != nil {
		return store.Object{}, s.fail(op, key, err)
	}
	o := store.Object{Key: key, Size: int64(len(p))}
	if !s.opts.Bulk(key) { // nobody replaces it
		o.Version = version(p)
	}
	return o, nil
}

// leavesReserve fails if n bytes more would use what only small objects may.
func (s *Store) leavesReserve(n int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(s.dir, &st); err != nil {
		return err
	}
	if int64(st.Bavail)*st.Bsize < n+reserve {
		return unix.ENOSPC
	}
	return nil
}

// temp is a file that has no name yet.
type temp struct {
	f      *os.File
	path   string
	synced bool
}

// sync puts the file on stable storage, once.
func (t *temp) sync() error {
	if t.synced {
		return nil
	}
	t.synced = true // a second try would succeed whatever became of the bytes
	return t.f.Sync()
}

// writeTemp returns a locked file that holds p.
func (s *Store) writeTemp(p []byte) (*temp, error) {
	t, err := s.newTemp()
	if err != nil {
		return nil, err
	}
	if err := write(t.f, p); err != nil {
		t.f.Close()
		os.Remove(t.path) // sweep removes it if this fails
		return nil, err
	}
	return t, nil
}

// newTemp returns a locked file whose name nobody else gives to another, be it another Store of this process.
func (s *Store) newTemp() (*temp, error) {
	for {
		f, err := os.CreateTemp(filepath.Join(s.dir, tempDir), "")
		if err != nil {
			return nil, err
		}
		var st unix.Stat_t
		err = errors.Join(flock(f), unix.Fstat(int(f.Fd()), &st))
		if err == nil && st.Nlink > 0 {
			return &temp{f: f, path: f.Name()}, nil
		}
		f.Close()
		if err != nil {
			return nil, err
		}
		// Somebody who has just opened the store has swept it away before it was locked.
	}
}

// flock waits for an exclusive lock of a file.
func flock(f *os.File) error {
	for {
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

const (
	directLeast = 256 << 10 // bytes from which the page cache is only in the way
	directBlock = 4096
	// directPiece is how much of an object is at the disk at a time: others, such as a journal, would wait behind all of it.
	directPiece = 2 << 20
)

// write writes a new file. What is large goes past the page cache, if the file system lets it: nobody reads it soon, and
// copying it there takes longer than the disk does.
func write(f *os.File, p []byte) error {
	aligned := uintptr(unsafe.Pointer(unsafe.SliceData(p)))%directBlock == 0
	n := len(p) &^ (directBlock - 1)
	if len(p) < directLeast || !aligned || setDirect(f, true) != nil {
		_, err := f.Write(p)
		return err
	}
	for off := 0; off < n; off += directPiece {
		_, err := f.WriteAt(p[off:min(n, off+directPiece)], int64(off))
		if errors.Is(err, unix.EINVAL) { // larger blocks, or a file system that says so late
			n = off
		} else if err != nil {
			return err
		}
	}
	if err := setDirect(f, false); err != nil {
		return err
	}
	_, err := f.WriteAt(p[n:], int64(n))
	return err
}

func setDirect(f *os.File, on bool) error {
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	if err != nil {
		return err
	}
	if on {
		flags |= unix.O_DIRECT
	} else {
		flags &^= unix.O_DIRECT
	}
	_, err = unix.FcntlInt(f.Fd(), unix.F_SETFL, flags)
	return err
}

// lock excludes everybody who replaces key, on this machine.
func (s *Store) lock(key string) (unlock func(), err error) {
	h := fnv.New32a()
	h.Write([]byte(key))
	f, err := os.OpenFile(filepath.Join(s.dir, lockDir, fmt.Sprintf("%02x", h.Sum32()%256)), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := flock(f); err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}

// inKeyOrder sorts a directory's entries as their keys are sorted: "a.b" is before "a/b", and "a0" after it.
func inKeyOrder(entries []fs.DirEntry) []fs.DirEntry {
	name := func(e fs.DirEntry) string {
		if e.IsDir() {
			return e.Name() + "/"
		}
		return e.Name()
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return cmp.Compare(name(a), name(b)) })
	return entries
}
