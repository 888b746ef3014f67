package snapshotter

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"

	"github.com/remora-storage/remora/cache"
)

// check walks all that an ended Snapshotter has left: the database, the snapshots' directories, the
// records of layers, the cache, and what is mounted. Each must name what the others have.
func (b *bed) check() {
	t := b.t
	t.Helper()
	known := b.inDatabase()
	entries, err := os.ReadDir(filepath.Join(b.root, "snapshots"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("check: %v", err)
	}
	there := map[string]bool{}
	for _, e := range entries {
		there[e.Name()] = true
		if _, ok := known[e.Name()]; !ok {
			t.Errorf("check: the directory of snapshot %s is in no database", e.Name())
		}
	}
	images, err := b.inCache()
	if err != nil {
		t.Fatalf("check: %v", err)
	}
	for id, info := range known {
		if strings.Contains(info.Name, "-claim-") {
			t.Errorf("check: %s was begun and not ended", info.Name)
		}
		if !there[id] {
			t.Errorf("check: snapshot %s (%s) has no directory", id, info.Name)
			continue
		}
		saved, remote := loadBinding(filepath.Join(b.root, "snapshots", id), info.Name, b.opts.Log)
		switch {
		case !remote:
			continue
		case saved.Source.Descriptor.Digest == "":
			t.Errorf("check: %s", saved.Quarantined)
			continue
		case saved.Name != info.Name || info.Kind != snapshots.KindCommitted:
			t.Errorf("check: the record of %s is on %s %s", saved.Name, info.Kind, info.Name)
		case saved.CacheID != "" && saved.Quarantined == "" && !images[saved.CacheID]:
			t.Errorf("check: the image of %s is not in the cache", info.Name)
		}
		for _, p := range saved.Parents {
			if _, ok := known[p]; !ok {
				t.Errorf("check: %s lies on snapshot %s, which is unknown", info.Name, p)
			}
		}
	}
	b.checkMounts(known)
	b.checkNames()
}

// inDatabase returns the snapshots by id.
func (b *bed) inDatabase() map[string]snapshots.Info {
	b.t.Helper()
	store, err := storage.NewMetaStore(filepath.Join(b.root, databaseFile))
	if err != nil {
		b.t.Fatalf("check: %v", err)
	}
	known := map[string]snapshots.Info{}
	err = store.WithTransaction(context.Background(), true, func(ctx context.Context) error {
		return storage.WalkInfo(ctx, func(ctx context.Context, info snapshots.Info) error {
			id, _, _, err := storage.GetInfo(ctx, info.Name)
			known[id] = info
			return err
		})
	})
	if errdefs.IsNotFound(err) { // there never was one
		err = nil
	}
	if err := errors.Join(err, store.Close()); err != nil {
		b.t.Fatalf("check: %v", err)
	}
	return known
}

// inCache returns the images in the cache, each of which can be opened.
func (b *bed) inCache() (map[string]bool, error) {
	c, err := cache.Open(filepath.Join(b.root, "cache"), cache.Options{})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	ids, err := c.IDs()
	all := map[string]bool{}
	for _, id := range ids {
		if _, err := c.File(id, nil); err != nil {
			return nil, err
		}
		all[id] = true
	}
	return all, err
}

// checkMounts finds what is mounted for no snapshot, and what is served for nobody.
func (b *bed) checkMounts(known map[string]snapshots.Info) {
	b.t.Helper()
	b.kernel.mu.Lock()
	defer b.kernel.mu.Unlock()
	top := map[string]mounted{}
	for _, m := range b.kernel.table {
		rest, ours := strings.CutPrefix(m.Dir, filepath.Join(b.root, "snapshots")+"/")
		if _, ok := known[filepath.Dir(rest)]; ours && !ok {
			b.t.Errorf("check: %s is mounted and no snapshot's", m.Dir)
		}
		top[m.Dir] = m
	}
	for dir, m := range top { // what is below it shows to nobody
		if m.way != "" && !b.kernel.outlive {
			b.t.Errorf("check: %s needs a process that has ended", dir)
		}
	}
	if b.kernel.served != 0 {
		b.t.Errorf("check: %d devices are served to nobody", b.kernel.served)
	}
}

// checkNames finds files that were being written.
func (b *bed) checkNames() {
	b.t.Helper()
	err := filepath.WalkDir(b.root, func(path string, d os.DirEntry, err error) error {
		if err == nil && (strings.HasSuffix(path, ".new") || strings.Contains(d.Name(), ".tmp")) {
			b.t.Errorf("check: %s was left", path)
		}
		return err
	})
	if err != nil {
		b.t.Errorf("check: %v", err)
	}
}

const patience = 10 * time.Second // for what happens by itself, and soon

// eventually returns when something has come to be true.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for until := time.Now().Add(patience); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(until) {
			t.Fatalf("waited %s in vain until %s", patience, what)
		}
	}
}

// noneLeft fails the test if a goroutine of ours has outlived what started it.
func noneLeft(t testing.TB) {
	t.Helper()
	var left map[string]int
	for until := time.Now().Add(patience); time.Now().Before(until); time.Sleep(time.Millisecond) {
		if left = ours(); len(left) == 0 {
			return
		}
	}
	for _, stack := range slices.Sorted(maps.Keys(left)) {
		t.Errorf("check: %d goroutines have not ended:\n%s", left[stack], stack)
	}
}

// ours returns the stacks of goroutines in this module's packages, but for those of tests.
func ours() map[string]int {
	buf := make([]byte, 1<<20)
	buf = buf[:runtime.Stack(buf, true)]
	all := map[string]int{}
	for stack := range strings.SplitSeq(string(buf), "\n\n") {
		_, frames, _ := strings.Cut(stack, "\n") // the first line has a number
		if strings.Contains(frames, "remora-storage/remora/") && !strings.Contains(frames, "testing.tRunner") &&
			!strings.Contains(frames, "(*origin)") {
			all[frames]++
		}
	}
	return all
}
