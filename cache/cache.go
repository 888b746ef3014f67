package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/singleflight"

	"github.com/remora-storage/remora/cache/budget"
	"github.com/remora-storage/remora/cache/fetch"
	"github.com/remora-storage/remora/cache/image"
	"github.com/remora-storage/remora/cache/objects"
	"github.com/remora-storage/remora/internal/memory"
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
	// Plain is how many bytes a blob may decode to while its diffID is computed; 0 for no bound.
	Plain int64
	// Memory is shared by all units that are decoded, and others that take of it; nil for no bound.
	Memory *memory.Budget
	// Held returns a descriptor of the image file called id, opened in an earlier life, or nil.
	// It is used instead of opening the file, and belongs to the cache.
	Held func(id string) (*os.File, error)
	Log  *slog.Logger

	fdatasync func(fd int) error // of image files; nil for the system's
}

// A Cache is a directory of image files. Open makes one.
type Cache struct {
	policy  Policy
	plain   int64 // Options.Plain
	log     *slog.Logger
	budget  *budget.Budget
	images  *image.Dir
	fetches *fetch.Pool
	objects *objects.Dir

	mu    sync.Mutex // guards files, whose images are those that images lists; taken before all others of one image
	files map[string]*File

	loads   singleflight.Group // by id
	stop    context.CancelFunc
	started sync.WaitGroup
}

// objectsDir is the directory of objects.
const objectsDir = "objects"

// Open opens the cache in dir, making the directory if there is none. Files in it are opened by
// File. Close must be called.
func Open(dir string, opts Options) (*Cache, error) {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	c := &Cache{
		policy: opts.Policy.WithDefaults(), plain: opts.Plain, log: opts.Log, budget: budget.New(opts.Limit, opts.Log), files: map[string]*File{},
		fetches: fetch.NewPool(fetch.Options{Unreachable: opts.Unreachable, Rate: opts.Rate, Memory: opts.Memory, Log: opts.Log}),
	}
	var err error
	c.images, err = image.Open(dir, image.Options{
		Budget: c.budget, Log: opts.Log, Held: opts.Held, Lost: c.refill, Fdatasync: opts.fdatasync,
	})
	if err == nil {
		c.objects, err = objects.Open(filepath.Join(dir, objectsDir), c.budget, c.log)
	}
	if err != nil {
		return nil, err
	}
	c.budget.Evicts(c.images.DropIdleImports, func(all []budget.Victim) []budget.Victim {
		return c.objects.AppendVictims(c.images.AppendVictims(all))
	})
	ctx, stop := context.WithCancel(context.Background())
	c.stop = stop
	c.started.Go(func() { c.images.Run(ctx) })
	return c, nil
}

// Close records what is not recorded yet and closes all files.
func (c *Cache) Close() error {
	c.stop()
	c.mu.Lock()
	files := c.files
	c.files = map[string]*File{}
	for _, f := range files {
		c.images.Forget(f.img)
	}
	c.mu.Unlock()
	for _, f := range files {
		f.fetch.Close(errors.New("cache is closed"))
	}
	c.started.Wait()
	c.fetches.Wait()
	c.objects.Close()
	var errs []error
	for _, f := range files {
		errs = append(errs, f.img.Commit())
		f.img.Close()
	}
	return errors.Join(errs...)
}

// CopyOnly has images copy bytes that others have only where may says so, given the names of both. It must not wait.
func (c *Cache) CopyOnly(may func(to, from string) bool) { c.images.CopyOnly(may) }

// Create makes the file called id from a specification and opens it. The file survives a crash
// of the machine once its first commit is done, within about a second. If there is a file of
// that name it is replaced.
func (c *Cache) Create(id string, spec Spec, src Source) (*File, error) {
	if err := c.removeAny(id); err != nil {
		return nil, err
	}
	img, err := c.images.New(id, &spec)
	if err != nil {
		return nil, err
	}
	f := c.add(c.newFile(img, src))
	c.images.Kick()
	return f, nil
}

// add puts a file on the list, in the place of another one of its name.
func (c *Cache) add(f *File) *File {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.files[f.ID()] = f
	c.images.Add(f.img)
	return f
}

// File opens the file called id, or returns the one that is open. An error that wraps
// ErrNotFound or ErrCorrupt says that it must be created again.
func (c *Cache) File(id string, src Source) (*File, error) {
	// Once, whoever asks: where the kernel reports reads of it, a second descriptor could not be written through.
	f, err, _ := c.loads.Do(id, func() (any, error) {
		if f := c.opened(id); f != nil {
			return f, nil
		}
		img, err := c.images.Load(id)
		if err != nil {
			return nil, err
		}
		f := c.newFile(img, src)
		c.mu.Lock()
		defer c.mu.Unlock()
		if other := c.files[id]; other != nil { // made anew meanwhile
			img.Close()
			return other, nil
		}
		c.budget.Add(img.Disk())
		c.files[id] = f
		c.images.Add(img)
		return f, nil
	})
	if err != nil {
		return nil, err
	}
	return f.(*File), nil
}

// opened returns the open file called id, or nil.
func (c *Cache) opened(id string) *File {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.files[id]
}

// Remove deletes the file called id.
func (c *Cache) Remove(id string) error {
	c.mu.Lock()
	f := c.files[id]
	delete(c.files, id)
	if f != nil {
		c.images.Forget(f.img)
	}
	c.mu.Unlock()
	if f != nil {
		c.budget.Add(-f.discard())
	}
	return c.images.Erase(id)
}

// removeAny is Remove where there need not be such a file.
func (c *Cache) removeAny(id string) error {
	if err := c.Remove(id); err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	return nil
}

// refill fetches what a disk has lost of an image that the kernel reads itself.
func (c *Cache) refill(img *image.Image) {
	c.started.Go(func() {
		f := c.opened(img.ID())
		if f == nil || f.img != img {
			return // it was removed
		}
		if err := f.PrefetchAll(context.Background()); err != nil {
			c.log.Error("bytes that the disk lost are still missing", "digest", img.ID(), "err", err)
		}
	})
}

// IDs lists the images on disk, opened or not.
func (c *Cache) IDs() ([]string, error) { return c.images.IDs(objectsDir) }

// Opened returns the open files whose names begin with prefix, by name.
func (c *Cache) Opened(prefix string) []*File {
	return slices.DeleteFunc(c.open(), func(f *File) bool { return !strings.HasPrefix(f.ID(), prefix) })
}

// open returns the open files, by name.
func (c *Cache) open() []*File {
	c.mu.Lock()
	defer c.mu.Unlock()
	files := make([]*File, 0, len(c.files))
	for _, f := range c.files {
		files = append(files, f)
	}
	slices.SortFunc(files, func(a, b *File) int { return strings.Compare(a.ID(), b.ID()) })
	return files
}

// Objects returns what the cache keeps of objects.
func (c *Cache) Objects() *objects.Dir { return c.objects }

// Commit records everything that was filled so far and returns when that is on stable storage.
func (c *Cache) Commit() error { return c.images.Commit() }

// Usage returns the bytes on disk and the limit.
func (c *Cache) Usage() (used, limit int64) { return c.budget.Usage() }

// Prune evicts everything that may be evicted and returns how many bytes that freed.
func (c *Cache) Prune() int64 { return c.budget.EvictAll() }

// Pinned returns the bytes on disk that cannot be evicted.
func (c *Cache) Pinned() int64 { return c.images.Pinned() }

// Waiting returns the reads that have waited for longer than some time, the oldest first.
func (c *Cache) Waiting(longer time.Duration) []Wait { return c.fetches.Waiting(longer) }

// Busy reports whether a read has waited within some time.
func (c *Cache) Busy(within time.Duration) bool { return c.fetches.Busy(within) }

// Observe calls fn with each event from now on until stop is called. fn must return soon, and may
// be called by several goroutines together.
func (c *Cache) Observe(fn func(Event)) (stop func()) { return c.fetches.Observe(fn) }

// Read returns a reader of a blob from off to its end. It makes several requests side by side, each for a
// piece, all of which count as prefetch: a reader's go before them. If alone, the others wait until the first one is answered.
func (c *Cache) Read(ctx context.Context, src Source, off, size int64, try int, alone bool) io.ReadCloser {
	return c.fetches.Read(ctx, src, off, size, try, alone)
}

// Stream returns a reader of all that open reads of a source's blob, which is one request and counts as prefetch.
func (c *Cache) Stream(ctx context.Context, src Source, open func(context.Context) (io.ReadCloser, error)) io.ReadCloser {
	return c.fetches.Stream(ctx, src, open)
}

// Sample draws a few units of a blob that nobody can foresee, for a name of it and of what says what is in it; the same ones each time
// while this process lives. An error that wraps ErrNotByParts says that only the whole blob would show that a source has it.
func (c *Cache) Sample(name string, of *Content) (*Sample, error) { return c.fetches.Sample(name, of) }

// Shows returns nil if a source serves some units of a blob as they are. An error that wraps blob.ErrBytes says that it serves others.
func (c *Cache) Shows(ctx context.Context, src Source, s *Sample) error {
	return c.fetches.Shows(ctx, src, s)
}

// Register adds the cache's metrics to a registry.
func (c *Cache) Register(r prometheus.Registerer) {
	r.MustRegister(slices.Concat(c.fetches.Collectors(), c.images.Collectors(), c.budget.Collectors())...)
}

// Check walks everything: each extent that is said to be present must have its digest, the sizes of
// objects must be those on disk, and the budget must be the sum of what there is. It is for tests and for
// repair. It waits for fetches that are under way, also those that no reader waits for. Meanwhile nobody may
// begin a fetch, use objects, or import.
func (c *Cache) Check() error {
	for _, f := range c.open() {
		f.fetch.Await()
	}
	images, err := c.images.Check()
	objects, oerr := c.objects.Check()
	errs := []error{err, oerr}
	if used, _ := c.Usage(); used != images+objects {
		errs = append(errs, fmt.Errorf("%d bytes are accounted for, %d are there", used, images+objects))
	}
	return errors.Join(errs...)
}
