package cache_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/cache/blob"
)

// imported returns the specification of im as an import has it: its data behind cache.DataStart.
func imported(im *image) cache.Spec {
	spec := im.spec
	spec.Extents = nil
	for _, e := range im.spec.Extents {
		e.Off += cache.DataStart
		spec.Extents = append(spec.Extents, e)
	}
	spec.ImageSize += cache.DataStart
	return spec
}

// put imports im's data, in pieces of some bytes.
func put(t *testing.T, i *cache.Import, im *image, piece int) {
	t.Helper()
	for _, e := range im.spec.Extents {
		data := im.bytes[e.Off : e.Off+int64(e.Len)]
		for off := 0; off < len(data); off += piece {
			if _, err := i.WriteAt(data[off:min(off+piece, len(data))], cache.DataStart+e.Off+int64(off)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func wantImported(t *testing.T, f *cache.File, im *image) {
	t.Helper()
	for _, e := range im.spec.Extents {
		got := make([]byte, e.Len)
		if _, err := f.ReadAt(t.Context(), got, cache.DataStart+e.Off); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, im.bytes[e.Off:e.Off+int64(e.Len)]) {
			t.Fatalf("extent at %d has other bytes", e.Off)
		}
	}
}

// checkUsage compares what the budget says with what is on disk.
func checkUsage(t *testing.T, c *cache.Cache, dir string) {
	t.Helper()
	disk := int64(0)
	err := filepath.Walk(dir, func(_ string, st os.FileInfo, err error) error {
		if err == nil && st.Mode().IsRegular() {
			disk += allocated(t, st)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if used, _ := c.Usage(); used < disk-64<<10 || used > disk+256<<10 {
		t.Errorf("the budget says %d, on disk are %d", used, disk)
	}
}

// TestImportedWithoutData: what has no data came by an import or it did not, whether its diffID was
// checked or not.
func TestImportedWithoutData(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir, cache.Options{})
	im := newImage(t, 1, 0, 20_000)
	i, err := c.Import(t.Context(), "imported")
	if err != nil {
		t.Fatal(err)
	}
	if _, err = i.Finish("imported", imported(im), im.diffID, &source{blob: im.blob}); err != nil {
		t.Fatal(err)
	}
	f, err := c.Create("indexed", im.spec, &source{blob: im.blob})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Verify(t.Context(), im.diffID); err != nil {
		t.Fatal(err)
	}
	for _, when := range []string{"when made", "after a restart"} {
		for _, id := range []string{"imported", "indexed"} {
			f, err := c.File(id, &source{blob: im.blob})
			if err != nil {
				t.Fatal(err)
			}
			if !f.Known() || f.Imported() != (id == "imported") {
				t.Errorf("%s, %s: imported %v, known %v", id, when, f.Imported(), f.Known())
			}
		}
		closeAndCheck(t, c)
		c = open(t, dir, cache.Options{})
	}
	closeAndCheck(t, c)
}

func TestImport(t *testing.T) {
	for _, piece := range []int{100, 5000, 1 << 20} {
		dir := t.TempDir()
		c := open(t, dir, cache.Options{})
		im := newImage(t, 1, 300, 20_000)
		i, err := c.Import(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		i.Keep(im.blob)
		put(t, i, im, piece)
		f, err := i.Finish("a", imported(im), im.diffID, &source{blob: im.blob})
		if err != nil {
			t.Fatal(err)
		}
		if !f.Complete() || !f.Imported() || !f.Verified(im.diffID) {
			t.Errorf("complete %v, imported %v, verified %v", f.Complete(), f.Imported(), f.Verified(im.diffID))
		}
		wantImported(t, f, im)
		checkUsage(t, c, dir)
		closeAndCheck(t, c)
		c = open(t, dir, cache.Options{})
		src := &source{blob: im.blob}
		if f, err = c.File("a", src); err != nil {
			t.Fatal(err)
		}
		wantImported(t, f, im)
		if src.opens.Load() > 0 || !f.Verified(im.diffID) {
			t.Errorf("after a restart %d requests, verified %v", src.opens.Load(), f.Verified(im.diffID))
		}
		checkUsage(t, c, dir)
		if err := c.Remove("a"); err != nil {
			t.Fatal(err)
		}
		if used, _ := c.Usage(); used != 0 {
			t.Errorf("%d bytes after all was removed", used)
		}
		closeAndCheck(t, c)
	}
}

// TestImportGoesOn: what arrived before a crash is there for the next try, and counted.
func TestImportGoesOn(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir, cache.Options{})
	im := newImage(t, 2, 50, 20_000)
	i, err := c.Import(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	i.Keep(im.blob[:70_000])
	put(t, i, im, 5000)
	if err := c.Close(); err != nil { // as by kill -9: nobody stops the import
		t.Fatal(err)
	}
	c = open(t, dir, cache.Options{})
	if ids, err := c.IDs(); err != nil || len(ids) > 0 {
		t.Errorf("images %v, %v", ids, err)
	}
	checkUsage(t, c, dir)
	if i, err = c.Import(t.Context(), "a"); err != nil || i.Held != 70_000 {
		t.Fatalf("%d bytes held, %v", i.Held, err)
	}
	held, err := io.ReadAll(i.Packed())
	if err != nil || !bytes.Equal(held, im.blob[:70_000]) {
		t.Fatalf("%d bytes, %v", len(held), err)
	}
	i.Stop(true)
	if i, err = c.Import(t.Context(), "a"); err != nil || i.Held != 70_000 {
		t.Fatalf("%d bytes held, %v", i.Held, err)
	}
	i.Stop(false) // they are wrong
	if i, err = c.Import(t.Context(), "a"); err != nil || i.Held != 0 {
		t.Fatalf("%d bytes held, %v", i.Held, err)
	}
	i.Stop(true)
	if used, _ := c.Usage(); used != 0 {
		t.Errorf("%d bytes after all was dropped", used)
	}
	closeAndCheck(t, c)
}

// TestImportWithoutRoom: what there is no room for is fetched when it is read.
func TestImportWithoutRoom(t *testing.T) {
	const limit = 2 << 20
	c := open(t, t.TempDir(), cache.Options{Limit: limit})
	im := newImage(t, 3, 600, 20_000)
	i, err := c.Import(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	i.Keep(im.blob) // for which there is none either
	put(t, i, im, 5000)
	src := &source{blob: im.blob}
	f, err := i.Finish("a", imported(im), im.diffID, src)
	if err != nil {
		t.Fatal(err)
	}
	if f.Complete() {
		t.Error("complete, in a cache that is too small")
	}
	wantImported(t, f, im)
	if used, _ := c.Usage(); used > limit || src.opens.Load() == 0 {
		t.Errorf("%d bytes used, %d requests", used, src.opens.Load())
	}
	closeAndCheck(t, c)

	c = open(t, t.TempDir(), cache.Options{Limit: limit})
	if i, err = c.Import(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	put(t, i, im, 5000)
	spec := imported(im)
	spec.Codec, spec.Units = blob.Whole, []blob.Unit{{Len: int64(len(im.blob))}}
	for k := range spec.Extents {
		spec.Extents[k].Unit, spec.Extents[k].Inner = 0, 0
	}
	if _, err := i.Finish("a", spec, im.diffID, src); !errors.Is(err, cache.ErrNoRoom) {
		t.Errorf("one piece without room: %v", err)
	}
	if used, _ := c.Usage(); used != 0 {
		t.Errorf("%d bytes after it failed", used)
	}
	closeAndCheck(t, c)
}

// TestImportReplaces: what was written for a file that a later one replaced is given back.
func TestImportReplaces(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir, cache.Options{})
	im := newImage(t, 4, 100, 50_000)
	i, err := c.Import(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	put(t, i, im, 5000)
	spec := imported(im)
	spec.Extents = append(spec.Extents[:20:20], spec.Extents[60:]...)
	f, err := i.Finish("a", spec, im.diffID, nil)
	if err != nil {
		t.Fatal(err)
	}
	im.spec.Extents = append(im.spec.Extents[:20:20], im.spec.Extents[60:]...)
	wantImported(t, f, im)
	checkUsage(t, c, dir)
	closeAndCheck(t, c)
}

func TestReadWhole(t *testing.T) {
	c := open(t, t.TempDir(), cache.Options{})
	blob := newImage(t, 5, 600, 40_000).blob
	for _, off := range []int64{0, 1, 1 << 20, int64(len(blob)) - 1, int64(len(blob))} {
		r := c.Read(t.Context(), &source{blob: blob}, off, int64(len(blob)), 0, false)
		got, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(got, blob[off:]) {
			t.Errorf("from %d: %d bytes, %v", off, len(got), err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	boom := errors.New("boom")
	src := &source{blob: blob, fault: func(_ context.Context, off, _ int64, _ int) (io.ReadCloser, error) {
		if off >= 2<<20 {
			return nil, boom
		}
		return nil, nil
	}}
	for _, alone := range []bool{false, true} {
		r := c.Read(t.Context(), src, 0, int64(len(blob)), 0, alone)
		got, err := io.ReadAll(r)
		if !errors.Is(err, boom) || !bytes.Equal(got, blob[:2<<20]) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	var asked atomic.Int64
	src = &source{blob: blob, fault: func(context.Context, int64, int64, int) (io.ReadCloser, error) {
		asked.Add(1)
		return nil, boom
	}}
	r := c.Read(t.Context(), src, 0, int64(len(blob)), 0, true)
	if _, err := io.ReadAll(r); !errors.Is(err, boom) || asked.Load() != 1 {
		t.Errorf("a source that fails was asked %d times, and the error is %v", asked.Load(), err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	r = c.Read(t.Context(), src, 0, int64(len(blob)), 0, false)
	if err := r.Close(); err != nil { // at once
		t.Error(err)
	}
	closeAndCheck(t, c)
}

func allocated(t *testing.T, st os.FileInfo) int64 {
	t.Helper()
	return st.Sys().(*syscall.Stat_t).Blocks * 512
}

// TestIdleImportsMakeRoom: what an interrupted import has left goes before any extent does.
func TestIdleImportsMakeRoom(t *testing.T) {
	c := open(t, t.TempDir(), cache.Options{Limit: 1 << 20})
	i, err := c.Import(t.Context(), "left")
	if err != nil {
		t.Fatal(err)
	}
	i.Keep(make([]byte, 900<<10))
	i.Stop(true)
	im := newImage(t, 6, 20, 20_000)
	f := create(t, c, "a", im, &source{blob: im.blob})
	wantAll(t, f, im)
	if !f.Complete() {
		t.Error("there was no room beside an import that nobody makes")
	}
	if i, err = c.Import(t.Context(), "left"); err != nil || i.Held != 0 {
		t.Errorf("%d bytes held, %v", i.Held, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.Import(ctx, "left"); err == nil {
		t.Error("an import was begun twice")
	}
	i.Stop(false)
	closeAndCheck(t, c)
}

// TestZerosAreHoles: a layer of zeros, which packs to next to nothing, has next to nothing written, and is read as any other.
func TestZerosAreHoles(t *testing.T) {
	const size = 8 << 20
	im := large(t, size)
	tail := bytes.Clone(im.blob[size-4096:])
	clear(im.blob)
	copy(im.blob[size-4096:], tail) // the end of it is none
	im.bytes = append(im.bytes[:4096], im.blob...)
	im.diffID = digest.FromBytes(im.blob)
	im.spec.Extents[0].Digest = sha256.Sum256(im.blob)
	dir := t.TempDir()
	c := open(t, dir, cache.Options{})
	i, err := c.Import(t.Context(), "zeros")
	if err != nil {
		t.Fatal(err)
	}
	put(t, i, im, 50_000)
	f, err := i.Finish("zeros", imported(im), im.diffID, &source{blob: im.blob})
	if err != nil {
		t.Fatal(err)
	}
	wantImported(t, f, im)
	st, err := f.Image().Stat()
	if err != nil {
		t.Fatal(err)
	}
	if n := allocated(t, st); n > size/4 {
		t.Errorf("%d bytes were written", n)
	}
	closeAndCheck(t, c)
	c = open(t, dir, cache.Options{})
	if f, err = c.File("zeros", nil); err != nil {
		t.Fatal(err)
	}
	wantImported(t, f, im)
	closeAndCheck(t, c)
}
