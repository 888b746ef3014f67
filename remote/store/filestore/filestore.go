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
	"sync/atomic"

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

	entering sync.Mutex // held by whoever looks at the directory before the first request
	entered  atomic.Bool
}

const (
	tempDir = ".new"   // files that have no name yet
	lockDir = ".locks" // one file for some keys each, by their hashes
	reserve = 64 << 20 // bytes that bulk leaves free
)

// Open opens the store in dir. It looks at nothing: while there is no store, requests fail with store.ErrAway.
func Open(dir string, opts Options) (*Store, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if opts.Bulk == nil {
		opts.Bulk = func(string) bool { return false }
	}
	return &Store{dir: dir, opts: opts}, nil
}

// Make is Open, and makes the store if there is none.
func Make(dir string, opts Options) (*Store, error) {
	s, err := Open(dir, opts)
	if err != nil {
		return nil, err
	}
	return s, s.Make()
}

// Make implements store.Maker.
func (s *Store) Make() error {
	for _, d := range []string{s.dir, filepath.Join(s.dir, tempDir), filepath.Join(s.dir, lockDir)} {
		if err := makeDir(d); err != nil {
			return err
		}
	}
	return s.enter()
}

// enter looks at the directory before its first request.
func (s *Store) enter() error {
	if s.entered.Load() {
		return nil
	}
	s.entering.Lock()
	defer s.entering.Unlock()
	if s.entered.Load() {
		return nil
	}
	if err := s.there(); err != nil {
		return err
	}
	if err := s.checkLocal(); err != nil {
		return err
	}
	for _, d := range []string{tempDir, lockDir} { // a backup may have left them out
		if err := addDir(filepath.Join(s.dir, d)); err != nil {
			return err
		}
	}
	if err := s.sweep(); err != nil {
		return err
	}
	s.entered.Store(true)
	return nil
}

// there fails with ErrAway if the store is not there. The directory alone proves nothing: it may be where a file system is to
// be mounted.
func (s *Store) there() error {
	for _, mark := range []string{lockDir, store.MarkKey} {
		if _, err := os.Lstat(filepath.Join(s.dir, mark)); !isMissing(err) {
			return err
		}
	}
	return fmt.Errorf("%s: %w", s, store.ErrAway)
}

func isMissing(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR)
}

// sure calls do, and again if something is missing though the store is there: it may have come back between.
func (s *Store) sure(do func() error) error {
	err := do()
	if isMissing(err) {
		if err := s.there(); err != nil {
			return err
		}
		err = do()
	}
	return err
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
	_ store.Maker = (*Store)(nil)
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
	if err := s.enter(); err != nil {
		return "", fmt.Errorf("%s %s: %w", op, key, err)
	}
	return filepath.Join(s.dir, filepath.FromSlash(key)), nil
}

// fail says what an error of the file system is for a Store's callers.
func (s *Store) fail(op, key string, err error) error {
	if err == nil {
		return nil
	}
	if isMissing(err) {
		if away := s.there(); away != nil {
			err = away
		}
	}
	switch {
	case isMissing(err) && op == "get":
		err = store.ErrNoObject
	case errors.Is(err, unix.ENOTDIR): // an object is where the directory would be
		err = store.ErrNested
	case errors.Is(err, fs.ErrNotExist):
		s.entered.Store(false) // the store's own directories may be missing
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

// file returns an object's open file and size.
func (s *Store) file(path string) (x *handle, size int64, err error) {
	err = s.sure(func() (err error) {
		x, size, err = s.handles.get(path)
		return err
	})
	return x, size, err
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key string, off, n int64) ([]byte, store.Object, error) {
	path, err := s.begin(ctx, "get", key)
	if err != nil {
		return nil, store.Object{}, err
	}
	x, size, err := s.file(path)
	if err != nil {
		return nil, store.Object{}, s.fail("get", key, err)
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
		return nil, o, s.fail("get", key, err)
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
	x, size, err := s.file(path)
	if err != nil {
		return store.Object{}, s.fail("get", key, err)
	}
	defer s.handles.release(x)
	s.handles.drop(path, x)
	h := xxh3.New()
	if _, err := io.Copy(h, io.NewSectionReader(x.f, 0, size)); err != nil {
		return store.Object{}, s.fail("get", key, err)
	}
	return store.Object{Key: key, Size: size, Version: versionOf(h.Sum128())}, nil
}

// Delete implements store.Store.
func (s *Store) Delete(ctx context.Context, key string) error {
	path, err := s.begin(ctx, "delete", key)
	if err != nil {
		return err
	}
	switch err := s.sure(func() error { return unix.Unlink(path) }); {
	case isMissing(err), errors.Is(err, unix.EISDIR):
		return nil
	case err != nil:
		return s.fail("delete", key, err)
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
	return s.fail("delete", key, err)
}

// List implements store.Store.
func (s *Store) List(ctx context.Context, prefix string, yield func(store.Object) bool) error {
	err := s.enter()
	if err == nil {
		err = s.there() // an empty directory would be an empty list
	}
	if err != nil {
		return fmt.Errorf("list %s: %w", prefix, err)
	}
	dir, _ := filepath.Split(prefix)
	_, err = s.list(ctx, dir, prefix, yield)
	return err
}

// list lists what is below dir, which ends with a slash or is empty.
func (s *Store) list(ctx context.Context, dir, prefix string, yield func(store.Object) bool) (more bool, err error) {
	if err := context.Cause(ctx); err != nil {
		return false, err
	}
	var entries []fs.DirEntry
	err = s.sure(func() (err error) {
		entries, err = os.ReadDir(filepath.Join(s.dir, dir))
		return err
	})
	if isMissing(err) {
		return true, nil
	}
	if err != nil {
		return false, s.fail("list", dir, err)
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
			return false, s.fail("list", key, err)
		}
		if !yield(store.Object{Key: key, Size: st.Size()}) {
			return false, nil
		}
	}
	return true, nil
}
