package filestore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/zeebo/xxh3"
	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/remote/store"
)

// Options of a Store. The zero value works.
type Options struct {
	// Shared permits file systems that other machines can write to (NFS, FUSE), where locks may not hold.
	Shared bool
	// Bulk says which keys are bulk, as store.Bulk has it. They leave a reserve of room alone, so that what frees room can
	// be written. nil for none.
	Bulk func(key string) bool
}

// A Store is a directory of objects.
type Store struct {
	dir    string
	opts   Options
	synced sync.Map // directories of objects that are known to be on stable storage, by path
	handles
}

const (
	tempDir = ".new"   // files that have no name yet
	lockDir = ".locks" // one file for some keys each, by their hashes
	reserve = 64 << 20 // bytes that bulk leaves free
)

// Open opens the store in dir, making the directory if there is none.
func Open(dir string, opts Options) (*Store, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	for _, d := range []string{dir, filepath.Join(dir, tempDir), filepath.Join(dir, lockDir)} {
		if err := makeDir(d); err != nil {
			return nil, err
		}
	}
	if opts.Bulk == nil {
		opts.Bulk = func(string) bool { return false }
	}
	s := &Store{dir: dir, opts: opts}
	if err := s.checkLocal(); err != nil {
		return nil, err
	}
	return s, s.sweep()
}

// checkLocal refuses file systems whose locks and renames may not be atomic for all who see them.
func (s *Store) checkLocal() error {
	var st unix.Statfs_t
	if err := unix.Statfs(s.dir, &st); err != nil {
		return fmt.Errorf("%s: %w", s.dir, err)
	}
	if s.opts.Shared {
		return nil
	}
	shared := map[int64]string{
		unix.NFS_SUPER_MAGIC: "NFS", unix.FUSE_SUPER_MAGIC: "FUSE", unix.SMB2_SUPER_MAGIC: "SMB", unix.CIFS_SUPER_MAGIC: "CIFS",
	}
	if name, ok := shared[int64(st.Type)]; ok {
		return fmt.Errorf("%s is on %s, where two machines' locks may not exclude each other: %w", s.dir, name, store.ErrUnsafe)
	}
	return nil
}

// sweep removes temporary files that nobody writes any more: their writers hold locks on them.
func (s *Store) sweep() error {
	entries, err := os.ReadDir(filepath.Join(s.dir, tempDir))
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(s.dir, tempDir, e.Name())
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			continue // gone meanwhile
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			err = os.Remove(path)
		}
		f.Close()
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

var (
	_ store.Bulk  = (*Store)(nil)
	_ store.Local = (*Store)(nil)
)

// IsBulk implements store.Bulk.
func (s *Store) IsBulk(key string) bool { return s.opts.Bulk(key) }

// Near implements store.Local.
func (s *Store) Near() bool { return !s.opts.Shared }

// String implements store.Store.
func (s *Store) String() string { return "file:" + s.dir }

// begin begins an operation on an object and returns its file's path.
func (s *Store) begin(ctx context.Context, op, key string) (path string, err error) {
	if err := store.CheckKey(key); err != nil {
		return "", err
	}
	if err := context.Cause(ctx); err != nil {
		return "", fmt.Errorf("%s %s: %w", op, key, err)
	}
	return filepath.Join(s.dir, filepath.FromSlash(key)), nil
}

// storeError says what an error of the file system is for a Store's callers.
func storeError(op, key string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrNotExist):
		err = store.ErrNoObject
	case errors.Is(err, unix.ENOTDIR): // an object is where the directory would be
		err = store.ErrNested
		if op == "get" {
			err = store.ErrNoObject
		}
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		err = fmt.Errorf("%w: %w", store.ErrFull, err)
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS):
		err = fmt.Errorf("%w: %w", store.ErrDenied, err)
	}
	return fmt.Errorf("%s %s: %w", op, key, err)
}

// version is made of the content: nothing else is kept of it that another process or a crash could not change.
func version(p []byte) string { return versionOf(xxh3.Hash128(p)) }

func versionOf(h xxh3.Uint128) string {
	return fmt.Sprintf("%016x%016x", h.Hi, h.Lo)
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key string, off, n int64) ([]byte, store.Object, error) {
	path, err := s.begin(ctx, "get", key)
	if err != nil {
		return nil, store.Object{}, err
	}
	x, size, err := s.handles.get(path)
	if err != nil {
		return nil, store.Object{}, storeError("get", key, err)
	}
	defer s.handles.release(x)
	if n < 0 || !s.opts.Bulk(key) { // read once, as a rule
		s.handles.drop(path, x)
	}
	o := store.Object{Key: key, Size: size}
	if n < 0 || n > o.Size-off {
		n = max(o.Size-off, 0)
	}
	if err := store.CheckRead(key, o.Size, off, n); err != nil {
		return nil, o, err
	}
	p := make([]byte, n)
	if _, err := x.f.ReadAt(p, off); err != nil && !(errors.Is(err, io.EOF) && n == 0) {
		return nil, o, storeError("get", key, err)
	}
	if n == o.Size {
		o.Version = version(p)
	}
	return p, o, nil
}

// Head implements store.Store. It reads the object, a piece at a time: its version is its content's.
func (s *Store) Head(ctx context.Context, key string) (store.Object, error) {
	path, err := s.begin(ctx, "get", key)
	if err != nil {
		return store.Object{}, err
	}
	x, size, err := s.handles.get(path)
	if err != nil {
		return store.Object{}, storeError("get", key, err)
	}
	defer s.handles.release(x)
	s.handles.drop(path, x)
	h := xxh3.New()
	if _, err := io.Copy(h, io.NewSectionReader(x.f, 0, size)); err != nil {
		return store.Object{}, storeError("get", key, err)
	}
	return store.Object{Key: key, Size: size, Version: versionOf(h.Sum128())}, nil
}

// Delete implements store.Store.
func (s *Store) Delete(ctx context.Context, key string) error {
	path, err := s.begin(ctx, "delete", key)
	if err != nil {
		return err
	}
	switch err := unix.Unlink(path); {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.EISDIR):
		return nil
	case err != nil:
		return storeError("delete", key, err)
	}
	s.forget(path)
	dir, gone := s.removeEmpty(filepath.Dir(path))
	if s.opts.Bulk(key) && !gone {
		return nil
	}
	err = syncDir(dir)
	for errors.Is(err, fs.ErrNotExist) && dir != s.dir { // another Delete has just taken it away as an empty one
		dir = filepath.Dir(dir)
		err = syncDir(dir)
	}
	return storeError("delete", key, err)
}

// List implements store.Store.
func (s *Store) List(ctx context.Context, prefix string, yield func(store.Object) bool) error {
	dir, _ := filepath.Split(prefix)
	_, err := s.list(ctx, dir, prefix, yield)
	return err
}

// list lists what is below dir, which ends with a slash or is empty.
func (s *Store) list(ctx context.Context, dir, prefix string, yield func(store.Object) bool) (more bool, err error) {
	if err := context.Cause(ctx); err != nil {
		return false, err
	}
	entries, err := os.ReadDir(filepath.Join(s.dir, dir))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return true, nil
	}
	if err != nil {
		return false, storeError("list", dir, err)
	}
	for _, e := range inKeyOrder(entries) {
		key := dir + e.Name()
		if e.IsDir() {
			key += "/"
		}
		if strings.HasPrefix(e.Name(), ".") || !strings.HasPrefix(key, prefix) && !strings.HasPrefix(prefix, key) {
			continue
		}
		if e.IsDir() {
			if more, err := s.list(ctx, key, prefix, yield); !more {
				return false, err
			}
			continue
		}
		st, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue // deleted meanwhile
		}
		if err != nil {
			return false, storeError("list", key, err)
		}
		if !yield(store.Object{Key: key, Size: st.Size()}) {
			return false, nil
		}
	}
	return true, nil
}
