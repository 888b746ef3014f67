package image_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"testing"

	"github.com/remora-storage/remora/cache/blob"
	"github.com/remora-storage/remora/cache/budget"
	"github.com/remora-storage/remora/cache/image"
)

type meta []byte

func (m meta) WriteTo(w io.Writer) (int64, error) { n, err := w.Write(m); return int64(n), err }

const extents = 20

// content returns the bytes of an extent, a page and a bit.
func content(i int) []byte { return bytes.Repeat([]byte(fmt.Sprintf("extent %03d\n", i)), 400) }

func spec() *image.Spec {
	s := &image.Spec{MetaSize: 4096, Meta: meta(make([]byte, 4096)), Codec: blob.Plain, ImageSize: 4096}
	for i := range extents {
		p := content(i)
		s.Units = append(s.Units, blob.Unit{Off: int64(i * len(p)), Len: int64(len(p))})
		s.Extents = append(s.Extents, image.Extent{Off: s.ImageSize, Len: uint32(len(p)), Unit: uint32(i), Digest: sha256.Sum256(p)})
		s.ImageSize += 8192
	}
	return s
}

// open opens a directory of images with a budget of its own.
func open(t *testing.T, path string, limit int64) (*image.Dir, *budget.Budget) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	b := budget.New(limit, log)
	d, err := image.Open(path, image.Options{Budget: b, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	b.Evicts(d.DropIdleImports, d.AppendVictims)
	return d, b
}

// closeAndCheck ends a life of the directory, whose one image is m.
func closeAndCheck(t *testing.T, d *image.Dir, b *budget.Budget, m *image.Image) {
	t.Helper()
	sum, err := d.Check()
	if used, _ := b.Usage(); err != nil || used != sum {
		t.Errorf("%d bytes are accounted for, %d are there (%v)", used, sum, err)
	}
	if err := d.Commit(); err != nil {
		t.Error(err)
	}
	m.Close()
	if _, err := m.Use(0, 1); !errors.Is(err, image.ErrRemoved) {
		t.Errorf("a closed image is read: %v", err)
	}
}

// has returns which extents an image has, and fails if their bytes are others.
func has(t *testing.T, m *image.Image) (all []int) {
	t.Helper()
	for i := range extents {
		e := m.Table().Extent(uint32(i))
		p := make([]byte, e.Len)
		_, err := m.Peek(p, e.Off)
		missing, uerr := m.Use(i, i+1)
		if uerr != nil || errors.Is(err, image.ErrMissing) != (len(missing) == 1) || m.Has(uint32(i)) != (err == nil) {
			t.Errorf("extent %d: peeking gives %v, using %v %v", i, err, missing, uerr)
		}
		if err == nil {
			if !bytes.Equal(p, content(i)) {
				t.Errorf("extent %d has other bytes", i)
			}
			all = append(all, i)
		}
	}
	return all
}

// TestImageAlone: an image keeps what it is given, over a restart too, and gives it up where there is no room, without anything
// that fetches.
func TestImageAlone(t *testing.T) {
	path := t.TempDir()
	d, b := open(t, path, 0)
	m, err := d.New("a", spec())
	if err != nil {
		t.Fatal(err)
	}
	d.Add(m)
	for i := range extents / 2 {
		m.Put(uint32(i), content(i))
	}
	if m.Complete() || m.Wants(0) || !m.Wants(extents-1) || len(has(t, m)) != extents/2 {
		t.Errorf("half of it was put, %v are there", has(t, m))
	}
	closeAndCheck(t, d, b, m)

	d, b = open(t, path, 4096+4096+8192*12) // metadata, table, and a few extents more than there are
	if m, err = d.Load("a"); err != nil {
		t.Fatal(err)
	}
	d.Add(m)
	b.Add(m.Disk())
	if got := has(t, m); len(got) != extents/2 {
		t.Errorf("after a restart %v are there", got)
	}
	m.Pin()
	for i := range extents {
		if !m.Has(uint32(i)) {
			m.Put(uint32(i), content(i))
		}
	}
	if got := has(t, m); len(got) < extents/2 || len(got) == extents || b.EvictAll() > 0 {
		t.Errorf("%v are there of a pinned image that does not fit", got)
	}
	m.Unpin()
	m.Put(extents-1, content(extents-1))
	if got := has(t, m); got[len(got)-1] != extents-1 {
		t.Errorf("nothing made room: %v are there", got)
	}
	before := len(has(t, m))
	if b.EvictAll() == 0 || len(has(t, m)) != 0 || before == 0 {
		t.Errorf("%v are left of %d", has(t, m), before)
	}
	closeAndCheck(t, d, b, m)
	if err := d.Erase("a"); err != nil {
		t.Error(err)
	}
	if _, err := d.Load("a"); !errors.Is(err, image.ErrNotFound) {
		t.Errorf("an erased image is loaded: %v", err)
	}
}
