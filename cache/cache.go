package cache

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"

	"github.com/remora-storage/remora/cache/blob"
	"github.com/remora-storage/remora/cache/budget"
	"github.com/remora-storage/remora/cache/objects"
	"github.com/remora-storage/remora/internal/durable"
	"github.com/remora-storage/remora/internal/memory"
	"github.com/remora-storage/remora/internal/wire"
)

// Options of a Cache. The zero value works.
type Options struct {
	Limit  int64  // bytes on disk, files of all kinds together; 0 for no limit
	Policy Policy // of files that are given none
	// Unreachable tells the errors of sources that pass, so that waiting may help, from those
	// that do not. nil takes all for the latter.
	Unreachable func(error) bool
	// Rate bounds what CompleteInBackground fetches, in bytes a second; 0 for no bound.
	Rate int64
	// Memory is shared by all units that are decoded, and whoever else takes of it; nil for no bound.
	Memory *memory.Budget
	// Held returns a descriptor of the image file called id, opened in an earlier life, or nil.
	// It is used instead of opening the file, and belongs to the cache.
	Held func(id string) *os.File
	Log  *slog.Logger

	fdatasync func(fd int) error // of image files; nil for the system's
}

// A Source supplies the bytes of a blob. It must be safe for concurrent use and return soon
// after ctx ends.
type Source interface {
	// Open returns exactly the n bytes of the blob from off, or the reader fails. try counts
	// from 0 the attempts to get these bytes right: a source that has several places to read
	// from takes another one each time.
	Open(ctx context.Context, off, n int64, try int) (io.ReadCloser, error)
}

// A Placed source says where its bytes come from, and for whom. Requests to one host are counted together, and its users share
// them, so that neither a host that does not answer nor one user of it holds up others.
type Placed interface {
	Place() (host, user string)
}

// A Cache is a directory of image files. Open makes one.
type Cache struct {
	dir       string
	opts      Options
	log       *slog.Logger
	scheds    scheds
	waits     waits
	observers observers
	limiter   *rate.Limiter       // of CompleteInBackground; nil for none
	decoding  *semaphore.Weighted // one for each packed unit in memory

	budget   *budget.Budget
	residues residueCodec
	metrics  metrics
	objects  *objects.Dir

	mu    sync.Mutex // guards the fields below; taken before File.mu
	files map[string]*File
	// importing are the imports under way.
	importing map[string]bool

	stop    context.CancelFunc
	started sync.WaitGroup
	kick    chan struct{}
}

// ErrNotFound says that the cache holds no such file.
var ErrNotFound = errors.New("not in the cache")

// ErrNoRoom says that an image's metadata does not fit the budget.
var ErrNoRoom = errors.New("no room in the cache: raise [cache] limit or remove images")

// Open opens the cache in dir, making the directory if there is none. Files in it are opened by
// File. Close must be called.
func Open(dir string, opts Options) (*Cache, error) {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	opts.Policy = opts.Policy.withDefaults()
	if opts.Unreachable == nil {
		opts.Unreachable = func(error) bool { return false }
	}
	if opts.Held == nil {
		opts.Held = func(string) *os.File { return nil }
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	c := &Cache{
		dir: dir, opts: opts, log: opts.Log, budget: budget.New(opts.Limit, opts.Log),
		files: map[string]*File{}, importing: map[string]bool{}, stop: stop,
		kick: make(chan struct{}, 1), decoding: semaphore.NewWeighted(int64(2 * runtime.GOMAXPROCS(0))),
	}
	if opts.Rate > 0 {
		c.limiter = rate.NewLimiter(rate.Limit(opts.Rate), bulkRequestSize)
	}
	c.residues.init()
	c.metrics = newMetrics()
	err := c.sweepImports()
	if err == nil {
		c.objects, err = objects.Open(filepath.Join(dir, objectsDir), c.budget, c.log)
	}
	if err != nil {
		stop()
		return nil, err
	}
	c.budget.Evicts(c.dropIdleImports, c.victims)
	c.started.Go(func() { c.commitLoop(ctx) })
	return c, nil
}

// Close records what is not recorded yet and closes all files.
func (c *Cache) Close() error {
	c.stop()
	c.mu.Lock()
	files := c.files
	c.files = map[string]*File{}
	c.mu.Unlock()
	for _, f := range files {
		f.mu.Lock()
		f.closing = true // no fetch begins any more
		f.mu.Unlock()
		f.cancelFills(errors.New("cache is closed"))
	}
	c.started.Wait()
	c.objects.Close()
	var errs []error
	for _, f := range files {
		errs = append(errs, f.commit())
		f.closeFiles()
	}
	return errors.Join(errs...)
}

// Create makes the file called id from a specification and opens it. The file survives a crash
// of the machine once its first commit is done, within about a second. If there is a file of
// that name it is replaced.
func (c *Cache) Create(id string, spec Spec, src Source) (*File, error) {
	if err := c.Remove(id); err != nil && !errors.Is(err, ErrNotFound) {
		return nil, err
	}
	f, err := c.create(id, &spec, src)
	if err != nil {
		os.RemoveAll(c.path(id)) // what is left is overwritten by the next Create
		return nil, fmt.Errorf("create image %s: %w", id, err)
	}
	if len(spec.Tail) > 0 {
		f.keepResidue(uint32(f.t.nUnits-1), spec.Tail, true)
	}
	c.mu.Lock()
	c.files[id] = f
	c.mu.Unlock()
	c.kickCommit()
	return f, nil
}

func (c *Cache) path(id string) string { return filepath.Join(c.dir, id) }

func (c *Cache) create(id string, spec *Spec, src Source) (*File, error) {
	dir := c.path(id)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	img, err := os.OpenFile(filepath.Join(dir, imageFile), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	f, err := c.make(id, dir, img, spec, src)
	if err != nil {
		img.Close()
		return nil, err
	}
	return f, nil
}

// make writes all but the data of an image into dir, within the budget.
func (c *Cache) make(id, dir string, img *os.File, spec *Spec, src Source) (_ *File, err error) {
	enc, err := encodeTable(spec)
	if err != nil {
		return nil, err
	}
	var points []byte
	if spec.Codec == blob.Spans {
		points = encodePoints(spec, le.Uint32(enc[48:]))
	}
	cost := pages(spec.MetaSize) + pages(int64(len(enc))) + pages(int64(len(points)))
	if !c.budget.Reserve(cost) {
		return nil, fmt.Errorf("%d bytes of metadata: %w", cost, ErrNoRoom)
	}
	defer func() {
		if err != nil {
			c.budget.Add(-cost)
		}
	}()
	if err := os.WriteFile(filepath.Join(dir, tableFile), enc, 0o600); err != nil {
		return nil, err
	}
	if points != nil {
		if err := os.WriteFile(filepath.Join(dir, pointsFile), points, 0o600); err != nil {
			return nil, err
		}
	}
	sum := wire.NewSum()
	w := bufio.NewWriterSize(io.MultiWriter(io.NewOffsetWriter(img, 0), sum), 1<<20)
	n, err := spec.Meta.WriteTo(w)
	if err == nil {
		err = w.Flush()
	}
	if err == nil && n != spec.MetaSize {
		err = fmt.Errorf("metadata of %d bytes, not %d", n, spec.MetaSize)
	}
	if err == nil {
		err = img.Truncate(spec.ImageSize)
	}
	if err != nil {
		return nil, err
	}
	t, err := openTable(filepath.Join(dir, tableFile))
	if err != nil {
		return nil, err
	}
	f, err := newFile(c, id, dir, img, t, src)
	if err == nil {
		f.metaSum = sum.Sum32()
	}
	return f, err
}

// File opens the file called id, or returns the one that is open. An error that wraps
// ErrNotFound or ErrCorrupt says that it must be created again.
func (c *Cache) File(id string, src Source) (*File, error) {
	c.mu.Lock()
	f := c.files[id]
	c.mu.Unlock()
	if f != nil {
		return f, nil
	}
	f, err := c.open(id, src)
	if err != nil {
		return nil, fmt.Errorf("open image %s: %w", id, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if other := c.files[id]; other != nil {
		f.closeFiles()
		return other, nil
	}
	c.budget.Add(f.allocated())
	c.files[id] = f
	return f, nil
}

func (c *Cache) open(id string, src Source) (*File, error) {
	dir := c.path(id)
	t, err := openTable(filepath.Join(dir, tableFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, ErrNotFound
	}
	if err != nil {
		return nil, err
	}
	if err := durable.Sweep(dir); err != nil {
		return nil, err
	}
	img, err := c.openImage(id)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	f, err := newFile(c, id, dir, img, t, src)
	if err != nil {
		img.Close()
		return nil, err
	}
	st, err := img.Stat()
	if err == nil && st.Size() != t.imageSize {
		err = fmt.Errorf("%w: image of %d bytes, not %d", ErrCorrupt, st.Size(), t.imageSize)
	}
	if err == nil {
		f.record, err = openPresence(filepath.Join(dir, presenceFile), t.sum, uint32(t.nExtents), f.applyRun)
		if errors.Is(err, os.ErrNotExist) {
			err = fmt.Errorf("%w: never recorded", ErrCorrupt)
		}
	}
	if err == nil && f.record.entries > uint32(t.nExtents)+minCompact {
		err = f.compact()
	}
	if err == nil && t.codec == blob.Whole && f.nPresent < t.nExtents {
		err = fmt.Errorf("%w: not all of it was recorded, and it cannot be fetched by parts", ErrCorrupt)
	}
	if err != nil {
		f.closeFiles()
		return nil, err
	}
	f.loadPlainSum()
	f.loadResidue()
	if _, err := os.Stat(filepath.Join(dir, keptFile)); err == nil {
		f.kept = true
	}
	return f, nil
}

// openImage opens an image file, or takes the descriptor that an earlier life has left: where the
// kernel reports reads of the file, only one that was opened before that may be written through.
func (c *Cache) openImage(id string) (*os.File, error) {
	path := filepath.Join(c.path(id), imageFile)
	held := c.opts.Held(id)
	if held == nil {
		return os.OpenFile(path, os.O_RDWR, 0)
	}
	a, err := held.Stat()
	if err == nil {
		var b os.FileInfo
		if b, err = os.Stat(path); err == nil && !os.SameFile(a, b) {
			err = fmt.Errorf("%s was replaced", path)
		}
	}
	if err != nil {
		held.Close()
		return nil, err
	}
	return held, nil
}

// Remove deletes the file called id.
func (c *Cache) Remove(id string) error {
	c.mu.Lock()
	f := c.files[id]
	delete(c.files, id)
	c.mu.Unlock()
	if f != nil {
		n := f.discard()
		c.budget.Add(-n)
	}
	if _, err := os.Lstat(c.path(id)); errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove image %s: %w", id, ErrNotFound)
	}
	if err := os.RemoveAll(c.path(id)); err != nil {
		return fmt.Errorf("remove image %s: %w", id, err)
	}
	return nil
}

// Objects returns what the cache keeps of objects.
func (c *Cache) Objects() *objects.Dir { return c.objects }

// objectsDir is the directory of objects.
const objectsDir = "objects"

// IDs lists the images on disk, opened or not.
func (c *Cache) IDs() ([]string, error) {
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, e := range entries {
		if e.Name() != importsDir && e.Name() != objectsDir {
			ids = append(ids, e.Name())
		}
	}
	return ids, nil
}

// Opened returns the open files whose names begin with prefix, by name.
func (c *Cache) Opened(prefix string) []*File {
	return slices.DeleteFunc(c.snapshotFiles(), func(f *File) bool { return !strings.HasPrefix(f.id, prefix) })
}

func (c *Cache) snapshotFiles() []*File {
	c.mu.Lock()
	defer c.mu.Unlock()
	files := make([]*File, 0, len(c.files))
	for _, f := range c.files {
		files = append(files, f)
	}
	slices.SortFunc(files, func(a, b *File) int {
		if a.id < b.id {
			return -1
		}
		return 1
	})
	return files
}

const commitInterval = time.Second

// commitLoop records what was filled, soon after it was.
func (c *Cache) commitLoop(ctx context.Context) {
	tick := time.NewTicker(commitInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-c.kick:
		}
		for _, f := range c.snapshotFiles() {
			if err := f.commit(); err != nil {
				c.log.Warn("presence not recorded, will try again", "digest", f.id, "err", err)
			}
			f.residue.trim()
		}
	}
}

func (c *Cache) kickCommit() {
	select {
	case c.kick <- struct{}{}:
	default:
	}
}
