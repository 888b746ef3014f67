package objects

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/golang/groupcache/lru"
	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/cache/budget"
)

// A Dir keeps parts of immutable objects, each in a sparse file of its name, within the budget of all that is cached.
//
// It does not know which parts it has, nor whether they are whole: what reads them must be able to tell, as it must be for
// bytes from anywhere. So nothing needs to be recorded or synced. Files are read and written past the page cache: what
// asks may be the disk that has to be written to before memory is free. All methods are safe for concurrent use.
type Dir struct {
	path   string
	budget *budget.Budget
	log    *slog.Logger

	mu   sync.Mutex // guards the fields below, and object.size; taken after object.mu
	all  map[string]*object
	open *lru.Cache // *object whose file is open
	left []*object  // what has left open and may be open still
}

type object struct {
	d    *Dir
	key  string
	used atomic.Uint32 // on the cache's clock

	writing sync.Mutex // one writer at a time counts what it adds; taken after mu

	mu   sync.RWMutex // held for reading while the file is used; guards the fields below
	f    *os.File     // nil while it is not open
	size int64        // bytes on disk; of Dir.mu
	gone bool
}

const (
	objectPage  = 4096
	objectExtra = 2 * objectPage // that the file system may need to find the pages of a sparse file
	openObjects = 512            // files that are kept open
	objectStep  = 1 << 20        // bytes that are copied at a time
	keySlash    = "+"            // in names of files; no key has one
	objectMode  = unix.O_DIRECT | unix.O_CLOEXEC
	maxObject   = 64 << 20 // bytes; what is beyond is not kept
)

// Open opens the directory at path and counts what it holds. It is made for the first object.
func Open(path string, b *budget.Budget, log *slog.Logger) (*Dir, error) {
	d := &Dir{path: path, budget: b, log: log, all: map[string]*object{}, open: lru.New(openObjects)}
	d.open.OnEvicted = func(b lru.Key, _ any) { d.left = append(d.left, b.(*object)) }
	entries, err := os.ReadDir(path)
	if errors.Is(err, unix.ENOTDIR) {
		err = d.dropDamaged(path)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		if !e.Type().IsRegular() {
			if err := d.dropDamaged(filepath.Join(path, e.Name())); err != nil {
				return nil, err
			}
			continue
		}
		size, err := onDisk(filepath.Join(path, e.Name()))
		if err != nil {
			return nil, err
		}
		key := objectKey(e.Name())
		d.all[key] = &object{d: d, key: key, size: size}
		b.Add(size)
	}
	return d, nil
}

// dropDamaged removes what is no object, or no directory of them: whatever should be there is fetched again.
func (d *Dir) dropDamaged(path string) error {
	d.log.Warn("something else is in the place of an object, and is removed", "path", path)
	return os.RemoveAll(path)
}

// onDisk returns the bytes that a file takes.
func onDisk(path string) (int64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return st.Blocks * 512, nil
}

// objectKey returns the key of an object by the name of its file.
func objectKey(name string) string { return strings.ReplaceAll(name, keySlash, "/") }

func (d *Dir) file(key string) string {
	return filepath.Join(d.path, strings.ReplaceAll(key, "/", keySlash))
}

// get returns an object with its file open and its lock held for reading, nil if there is none.
func (d *Dir) get(key string, create bool) (*object, error) {
	for {
		d.mu.Lock()
		b := d.all[key]
		if b == nil && create {
			b = &object{d: d, key: key}
			d.all[key] = b
		}
		if b != nil {
			d.open.Get(b) // it is the latest now
		}
		d.mu.Unlock()
		if b == nil {
			return nil, nil
		}
		b.used.Store(d.budget.Now())
		b.mu.RLock()
		if b.gone {
			b.mu.RUnlock()
			continue
		}
		if b.f != nil {
			return b, nil
		}
		b.mu.RUnlock()
		if err := d.openFile(b); err != nil {
			return nil, err
		}
	}
}

// openFile opens an object's file, and closes the one that was used least lately where too many are open.
func (d *Dir) openFile(b *object) error {
	closing, err := d.openOne(b)
	for _, x := range closing { // no other object's lock is held
		x.mu.Lock()
		if x.f != nil {
			x.f.Close() // it was only read from, or its writes have returned
			x.f = nil
		}
		x.mu.Unlock()
	}
	return err
}

// openOne opens an object's file unless it is open, and returns the objects whose files are now too many.
func (d *Dir) openOne(b *object) ([]*object, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.f != nil || b.gone {
		return nil, nil
	}
	f, err := os.OpenFile(d.file(b.key), os.O_RDWR|os.O_CREATE|objectMode, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.MkdirAll(d.path, 0o700); err == nil {
			f, err = os.OpenFile(d.file(b.key), os.O_RDWR|os.O_CREATE|objectMode, 0o600)
		}
	}
	if err != nil {
		return nil, err
	}
	b.f = f
	d.mu.Lock()
	defer d.mu.Unlock()
	d.open.Add(b, nil)
	return d.leftLocked(), nil
}

// leftLocked returns which objects have left open since the last call.
func (d *Dir) leftLocked() []*object {
	left := d.left
	d.left = nil
	return left
}

// buffers for direct I/O.
var objectBuffers = sync.Pool{New: func() any {
	p := make([]byte, objectStep+2*objectPage)
	skip := (objectPage - int(uintptr(unsafe.Pointer(unsafe.SliceData(p)))%objectPage)) % objectPage
	p = p[skip : skip+objectStep+objectPage]
	return &p
}}

// ReadAt fills p with what is kept of an object from off, and reports whether it may be all of it.
func (d *Dir) ReadAt(key string, p []byte, off int64) bool {
	b, err := d.get(key, false)
	if b == nil || err != nil {
		return false
	}
	defer b.mu.RUnlock()
	buf := objectBuffers.Get().(*[]byte)
	defer objectBuffers.Put(buf)
	for len(p) > 0 {
		from := off &^ (objectPage - 1)
		n := min(int64(len(p)), objectStep)
		to := (off + n + objectPage - 1) &^ (objectPage - 1)
		if k, _ := b.f.ReadAt((*buf)[:to-from], from); int64(k) < off+n-from {
			return false // beyond what is kept, or it cannot be read: it is fetched instead
		}
		copy(p, (*buf)[off-from:off-from+n])
		p, off = p[n:], off+n
	}
	return true
}

// WriteAt keeps what p has of whole pages of an object, if there is room or can be made.
func (d *Dir) WriteAt(key string, p []byte, off int64) {
	if skip := (objectPage - off%objectPage) % objectPage; skip > 0 {
		if skip >= int64(len(p)) {
			return
		}
		p, off = p[skip:], off+skip
	}
	p = p[:len(p)&^(objectPage-1)]
	reserved := int64(len(p)) + objectExtra
	if len(p) == 0 || off+int64(len(p)) > maxObject || !d.budget.Reserve(reserved) {
		return
	}
	grown, err := d.write(key, p, off)
	d.budget.Add(grown - reserved)
	if err != nil {
		d.log.Warn("part of an object is not kept", "key", key, "err", err)
	}
}

// write returns by how many bytes the file has grown on disk.
func (d *Dir) write(key string, p []byte, off int64) (grown int64, err error) {
	b, err := d.get(key, true)
	if err != nil {
		return 0, err
	}
	defer b.mu.RUnlock()
	b.writing.Lock()
	defer b.writing.Unlock()
	buf := objectBuffers.Get().(*[]byte)
	defer objectBuffers.Put(buf)
	for len(p) > 0 && err == nil {
		n := copy((*buf)[:objectStep], p)
		_, err = b.f.WriteAt((*buf)[:n], off)
		p, off = p[n:], off+int64(n)
	}
	var st unix.Stat_t
	if serr := unix.Fstat(int(b.f.Fd()), &st); serr != nil {
		return 0, errors.Join(err, fmt.Errorf("stat %s: %w", b.f.Name(), serr))
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	grown = st.Blocks*512 - b.size
	b.size += grown
	return grown, err
}

// Drop forgets an object.
func (d *Dir) Drop(key string) {
	d.mu.Lock()
	b := d.all[key]
	d.mu.Unlock()
	if b != nil {
		d.budget.Add(-d.drop(b))
	}
}

// ID is the object's key.
func (b *object) ID() string { return b.key }

// Drop removes the object's file, which is its one part.
func (b *object) Drop([]uint32) (freed int64, err error) { return b.d.drop(b), nil }

// drop removes an object's file and returns how many bytes that frees. Whoever uses it goes first.
func (d *Dir) drop(b *object) int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.gone {
		return 0
	}
	b.gone = true
	if err := os.Remove(d.file(b.key)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.log.Warn("an object stays in the cache", "key", b.key, "err", err)
		b.gone = false
		return 0
	}
	if b.f != nil {
		b.f.Close() // its bytes are of no use from now on
		b.f = nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.open.Remove(b)
	d.leftLocked() // it is closed
	delete(d.all, b.key)
	return b.size
}

// AppendVictims adds what may be evicted.
func (d *Dir) AppendVictims(all []budget.Victim) []budget.Victim {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, b := range d.all {
		all = append(all, budget.Victim{Of: b, Used: b.used.Load(), Size: b.size})
	}
	return all
}

// Close closes all files.
func (d *Dir) Close() {
	d.mu.Lock()
	all := slices.Collect(maps.Values(d.all))
	d.mu.Unlock()
	for _, b := range all {
		b.mu.Lock()
		if b.f != nil {
			b.f.Close() // nothing is left to be written
			b.f = nil
		}
		b.mu.Unlock()
	}
}
