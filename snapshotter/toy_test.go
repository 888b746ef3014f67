package snapshotter

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/blockdev/export"
	"github.com/remora-storage/remora/blockdev/mounts"
	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/cache/blob"
)

// A toy is a way into a kernel that is a directory: a mount is a file "data" in it that has the bytes of the device. It
// needs no root, and nothing of it is known elsewhere.
type toy struct {
	dir  string // of this root: what is mounted names it
	item string // what the keeper has of it

	mu      sync.Mutex // guards the fields below
	taken   bool       // an earlier process's exports are here
	serving bool
	exports map[uint64]blockdev.Device
}

const toyBackend blockdev.Backend = "toy"

func newToy(s Site) *toy {
	return &toy{dir: filepath.Join(s.Root, "toy"), item: "toys/" + s.Instance, exports: map[uint64]blockdev.Device{}}
}

func (y *toy) Backend() blockdev.Backend { return toyBackend }

func (y *toy) Take(kept map[string][]*os.File) (bool, error) {
	y.mu.Lock()
	defer y.mu.Unlock()
	_, y.taken = kept[y.item]
	delete(kept, y.item)
	return y.taken, nil
}

func (y *toy) Export(id uint64, dev blockdev.Device, _ export.How) (export.Path, error) {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.exports[id], y.serving = dev, true
	return toyPath{dev, filepath.Join(y.dir, strconv.FormatUint(id, 10))}, nil
}

func (y *toy) Adopt(id uint64, dev blockdev.Device) error {
	y.mu.Lock()
	defer y.mu.Unlock()
	if !y.taken {
		return export.ErrLost
	}
	y.exports[id] = dev
	return nil
}

func (y *toy) Withdraw(_ context.Context, id uint64) error {
	y.mu.Lock()
	defer y.mu.Unlock()
	delete(y.exports, id)
	return nil
}

func (y *toy) Made(m mounts.Mount) export.Made {
	switch {
	case m.Type != "toy":
		return export.NotMade
	case m.Dir == y.dir && y.taken:
		return export.Connection
	case filepath.Dir(m.Source) == y.dir:
		return export.Export
	}
	return export.NotMade
}

func (y *toy) Start() error { y.serving = true; return nil }
func (y *toy) Stop() error  { y.serving = false; return nil }
func (y *toy) End() error   { y.serving = false; clear(y.exports); return nil }

type toyPath struct {
	dev  blockdev.Device
	name string
}

func (p toyPath) String() string { return p.name }
func (p toyPath) Release() error { return nil }

func (p toyPath) Mount(dir string) error {
	b := make([]byte, p.dev.Size())
	if _, err := p.dev.ReadAt(context.Background(), b, 0); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "data"), b, 0o600)
}

// toyMeta is an image of metadata alone.
type toyMeta string

func (m toyMeta) WriteTo(w io.Writer) (int64, error) {
	n, err := io.WriteString(w, string(m))
	return int64(n), err
}

func toyImage(t *testing.T, c *cache.Cache, id, content string) *cache.File {
	t.Helper()
	f, err := c.Create(id, cache.Spec{
		ImageSize: int64(len(content)), MetaSize: int64(len(content)), Meta: toyMeta(content), Codec: blob.Gzip,
		Units: []blob.Unit{{Len: 1}},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// TestToyExporter: a way into the kernel is one file. A process mounts a layer by it, the next one adopts the mount, and one
// whose keeper is dead says so.
func TestToyExporter(t *testing.T) {
	root, log := t.TempDir(), slog.New(slog.NewTextHandler(t.Output(), nil))
	if err := os.WriteFile(filepath.Join(root, databaseFile), nil, 0o600); err != nil { // it keeps its instance
		t.Fatal(err)
	}
	c, err := cache.Open(filepath.Join(root, "cache"), cache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const content = "what the layer holds"
	f := toyImage(t, c, "toy", content)
	life := func(kept map[string][]*os.File) (*Exports, *toy) {
		var y *toy
		e, err := OpenExports(root, nil, kept, func(s Site) []export.Exporter {
			y = newToy(s)
			return []export.Exporter{y}
		}, log)
		if err != nil {
			t.Fatal(err)
		}
		return e, y
	}
	dir := t.TempDir()

	e, y := life(nil)
	if err := e.mount(toyBackend, 7, f, dir); err != nil {
		t.Fatal(err)
	}
	if p, err := os.ReadFile(filepath.Join(dir, "data")); err != nil || string(p) != content {
		t.Errorf("mounted: %q, %v", p, err)
	}
	if err := e.mount(blockdev.Precontent, 8, f, dir); err == nil {
		t.Error("mounted by a way that is not in the list")
	}
	if err := e.mount(toyBackend, 9, f, filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) || y.exports[9] != nil {
		t.Errorf("mounted on no directory: %v, exported %v", err, y.exports[9])
	}
	if err := e.leave(); err != nil || y.serving || y.exports[7] != f {
		t.Errorf("left: %v, serving %v, exports %v", err, y.serving, y.exports)
	}

	m := mounts.Mount{Dir: dir, Type: "toy", Source: filepath.Join(root, "toy", "7")}
	kept := map[string][]*os.File{y.item: nil, "of another instance": nil}
	e, y = life(kept)
	if len(kept) != 1 || !e.holds(mounts.Mount{Dir: y.dir, Type: "toy"}) || e.holds(m) {
		t.Errorf("taken: %v, left %v", y.taken, kept)
	}
	if way, err := e.adopt(m, 7, f); err != nil || way != toyBackend || y.exports[7] != f || y.serving {
		t.Errorf("adopted by %q, %v; exports %v, serving %v", way, err, y.exports, y.serving)
	}
	if _, err := e.adopt(mounts.Mount{Dir: dir, Type: "ext4", Source: "/dev/sda"}, 7, f); err == nil || errors.Is(err, export.ErrLost) {
		t.Errorf("another's mount: %v", err)
	}
	if err := e.start(); err != nil || !y.serving {
		t.Errorf("started: %v, %v", err, y.serving)
	}
	if e.release(toyBackend, 7); len(y.exports) != 0 {
		t.Errorf("released: %v", y.exports)
	}
	if err := e.end(); err != nil || y.serving {
		t.Errorf("ended: %v, %v", err, y.serving)
	}

	e, _ = life(nil)
	if _, err := e.adopt(m, 7, f); !errors.Is(err, export.ErrLost) {
		t.Errorf("adopted from nobody: %v", err)
	}
}
