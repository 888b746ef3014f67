package cache_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/remora-storage/remora/cache"
)

// TestSurvivesRestart: what was recorded is neither fetched nor checked again.
func TestSurvivesRestart(t *testing.T) {
	dir := t.TempDir()
	im := newImage(t, 2, 100, 20_000)
	src := &source{blob: im.blob}
	c := open(t, dir, cache.Options{})
	f := create(t, c, "a", im, src)
	wantRange(t, f, im, 0, len(im.bytes)/2)
	closeAndCheck(t, c)
	fetched := src.bytes.Load()

	c = open(t, dir, cache.Options{})
	f, err := c.File("a", nil) // no source: half of it must be here
	if err != nil {
		t.Fatal(err)
	}
	wantRange(t, f, im, 0, len(im.bytes)/2)
	f.SetSource(src)
	wantAll(t, f, im)
	if got := src.bytes.Load(); got > int64(len(im.blob))+fetched/2 {
		t.Errorf("fetched %d bytes of a blob of %d: recorded extents were fetched again", got, len(im.blob))
	}
	if err := f.Verify(t.Context(), im.diffID); err != nil {
		t.Error(err)
	}
	closeAndCheck(t, c)
	c = open(t, dir, cache.Options{})
	if f, err = c.File("a", nil); err != nil || !f.Complete() || !f.Known() {
		t.Errorf("complete %v, verified %v, %v", f.Complete(), f.Known(), err)
	}
	closeAndCheck(t, c)
}

// TestRecordIsCutAnywhere cuts and garbles the presence record at every byte: whatever it then
// says is present must have the right bytes.
func TestRecordIsCutAnywhere(t *testing.T) {
	dir := t.TempDir()
	im := newImage(t, 3, 12, 9000)
	c := open(t, dir, cache.Options{})
	f := create(t, c, "a", im, &source{blob: im.blob})
	for i := range 12 { // one commit each, so that there are several entries
		wantRange(t, f, im, int(im.spec.Extents[i].Off), 1)
		if err := c.Commit(); err != nil {
			t.Fatal(err)
		}
	}
	closeAndCheck(t, c)
	path := filepath.Join(dir, "a", "present")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for n := range whole {
		for _, garble := range []bool{false, true} {
			p := bytes.Clone(whole[:n])
			if garble {
				p = bytes.Clone(whole)
				p[n] ^= 0x41
			}
			if err := os.WriteFile(path, p, 0o600); err != nil {
				t.Fatal(err)
			}
			c := openUnchecked(t, dir, cache.Options{})
			f, err := c.File("a", &source{blob: im.blob})
			if err == nil {
				wantAll(t, f, im)
			} else if !errors.Is(err, cache.ErrCorrupt) {
				t.Fatalf("cut at %d: %v", n, err)
			}
			f = nil
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestRecordIsCompacted: a record that evictions have made long says the same when it is short.
func TestRecordIsCompacted(t *testing.T) {
	dir := t.TempDir()
	im := newImage(t, 50, 20, 9000)
	src := &source{blob: im.blob}
	c := open(t, dir, cache.Options{Limit: 80_000})
	f := create(t, c, "a", im, src)
	path := filepath.Join(dir, "a", "present")
	size := func() int64 {
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return st.Size()
	}
	for range 400 {
		wantAll(t, f, im)
		if err := c.Commit(); err != nil {
			t.Fatal(err)
		}
		if size() > 20_000 {
			break
		}
	}
	before := size()
	closeAndCheck(t, c)
	if before <= 20_000 {
		t.Fatalf("the record has only %d bytes", before)
	}
	for range 2 { // the second time it is short already
		c = open(t, dir, cache.Options{Limit: 80_000})
		f, err := c.File("a", src)
		if err != nil {
			t.Fatal(err)
		}
		if n := size(); n > 1000 {
			t.Errorf("%d bytes after, %d before", n, before)
		}
		if err := c.Check(); err != nil {
			t.Error(err)
		}
		wantRange(t, f, im, 0, 5000)
		closeAndCheck(t, c)
	}
}
