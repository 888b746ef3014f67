package image

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/cache/budget"
)

// Options of a Dir. Budget and Log are needed.
type Options struct {
	Budget *budget.Budget
	Log    *slog.Logger
	// Held returns a descriptor of the image file called id, opened in an earlier life, or nil.
	// It is used instead of opening the file, and belongs to the Dir.
	Held func(id string) (*os.File, error)
	// Lost is told of a pinned image that lost bytes which a disk did not take. It must not wait.
	Lost func(m *Image)
	// Fdatasync syncs image files; nil for the system's.
	Fdatasync func(fd int) error
}

// A Dir is a directory of images with one budget.
type Dir struct {
	path      string
	log       *slog.Logger
	budget    *budget.Budget
	openHeld  func(id string) (*os.File, error)
	lost      func(m *Image)
	fdatasync func(fd int) error
	residues  residueCodec
	metrics   metrics
	kick      chan struct{}
	mayCopy   atomic.Pointer[func(to, from string) bool] // nil for all

	mu        sync.Mutex // guards the fields below
	images    map[string]*Image
	importing map[string]bool // the imports under way
}

// ErrNotFound says that the cache holds no such file.
var ErrNotFound = errors.New("not in the cache")

// ErrNoRoom says that an image's metadata does not fit the budget.
var ErrNoRoom = errors.New("no room in the cache: raise [cache] limit or remove images")

// Open opens the directory at path and counts what imports have left in it. Images are opened by Load.
func Open(path string, o Options) (*Dir, error) {
	if o.Held == nil {
		o.Held = func(string) (*os.File, error) { return nil, nil }
	}
	if o.Fdatasync == nil {
		o.Fdatasync = unix.Fdatasync
	}
	if o.Lost == nil {
		o.Lost = func(*Image) {}
	}
	d := &Dir{
		path: path, log: o.Log, budget: o.Budget, openHeld: o.Held, lost: o.Lost, fdatasync: o.Fdatasync, metrics: newMetrics(),
		kick: make(chan struct{}, 1), images: map[string]*Image{}, importing: map[string]bool{},
	}
	d.residues.init()
	return d, d.sweepImports()
}

// CopyOnly has images copy from others only where may says so, given the names of both.
func (d *Dir) CopyOnly(may func(to, from string) bool) { d.mayCopy.Store(&may) }

// copies reports whether an image may have what another one has.
func (d *Dir) copies(to, from *Image) bool {
	may := d.mayCopy.Load()
	return may == nil || (*may)(to.id, from.id)
}

func (d *Dir) file(id string) string { return filepath.Join(d.path, id) }

// Add lists an image that New, Load or an Import made. The image of that name that was listed is no longer.
func (d *Dir) Add(m *Image) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.images[m.id] = m
}

// Forget lists an image no longer.
func (d *Dir) Forget(m *Image) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.images[m.id] == m {
		delete(d.images, m.id)
	}
}

// Images returns the images that are listed, by name.
func (d *Dir) Images() []*Image {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := make([]*Image, 0, len(d.images))
	for _, m := range d.images {
		all = append(all, m)
	}
	slices.SortFunc(all, func(a, b *Image) int { return strings.Compare(a.id, b.id) })
	return all
}

// IDs lists the images on disk, opened or not, without entries that others have in the directory.
func (d *Dir) IDs(others ...string) ([]string, error) {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, e := range entries {
		if e.Name() != importsDir && !slices.Contains(others, e.Name()) {
			ids = append(ids, e.Name())
		}
	}
	return ids, nil
}

// Erase deletes what is on disk of the image called id.
func (d *Dir) Erase(id string) error {
	if _, err := os.Lstat(d.file(id)); errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove image %s: %w", id, ErrNotFound)
	}
	if err := os.RemoveAll(d.file(id)); err != nil {
		return fmt.Errorf("remove image %s: %w", id, err)
	}
	return nil
}

const commitInterval = time.Second

// Run records what was filled, soon after it was, until ctx ends.
func (d *Dir) Run(ctx context.Context) {
	tick := time.NewTicker(commitInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-d.kick:
		}
		for _, m := range d.Images() {
			if err := m.Commit(); err != nil {
				d.log.Warn("presence not recorded, will try again", "digest", m.id, "err", err)
			}
			m.residue.trim()
		}
	}
}

// Kick has Run record soon.
func (d *Dir) Kick() {
	select {
	case d.kick <- struct{}{}:
	default:
	}
}

// Commit records everything that was filled so far and returns when that is on stable storage.
func (d *Dir) Commit() error {
	var errs []error
	for _, m := range d.Images() {
		errs = append(errs, m.Commit())
	}
	return errors.Join(errs...)
}
