package scan_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"math/rand"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/cache/blob"
	"github.com/remora-storage/remora/cache/inflate"
	"github.com/remora-storage/remora/conformance/heap"
	"github.com/remora-storage/remora/fs/index"
	"github.com/remora-storage/remora/fs/layout"
	"github.com/remora-storage/remora/fs/scan"
)

// refusingTakes is the processor time that refusing a layer takes at most, some times what was measured.
const refusingTakes = 5 * time.Second

// refused wants what do returns to be the layer's fault in some words, for no more than most bytes of heap.
func refused(t *testing.T, packed []byte, says string, most int64, do func() error) {
	t.Helper()
	var err error
	peak, cpu := heap.Peak(func() { err = do() }), heap.CPU(func() { err = do() })
	t.Logf("%d bytes packed, %d MiB of heap, %s: %v", len(packed), peak>>20, cpu, err)
	if !errors.Is(err, layout.ErrInvalid) || !strings.Contains(err.Error(), says) {
		t.Errorf("got %v, want that %s", err, says)
	}
	if peak > most {
		t.Errorf("refusing took %d MiB", peak>>20)
	}
	if cpu > refusingTakes {
		t.Errorf("refusing took %s of processor time", cpu)
	}
}

// fifo is an inode without data.
var fifo = layout.Inode{Mode: unix.S_IFIFO | 0o644}

// indexOf encodes entries of a layer without data.
func indexOf(entries ...index.Entry) []byte {
	w := index.NewWriter()
	for i := range entries {
		w.Add(&entries[i], true)
	}
	d := digest.FromString("")
	return w.Encode(&index.Blob{Digest: d, DiffID: d, Size: 1, Codec: blob.Plain, Points: []inflate.Point{{}}})
}

// TestTreesThatGrow: layers whose trees have more directories than their entries justify are refused for little memory,
// scanned or by their index.
func TestTreesThatGrow(t *testing.T) {
	long := strings.Repeat("a/", 2047) + "a"
	entries := []index.Entry{{Name: "s", Inode: layout.Inode{Mode: unix.S_IFLNK | 0o777, Target: long}}}
	plain := archive(t, func(w *tar.Writer) {
		add(t, w, tar.Header{Name: "s", Typeflag: tar.TypeSymlink, Linkname: long}, nil)
		for i := range 100 {
			add(t, w, tar.Header{Name: fmt.Sprintf("%d/s", i), Typeflag: tar.TypeLink, Linkname: "s"}, nil)
			add(t, w, tar.Header{Name: fmt.Sprintf("%d/s/f", i)}, nil)
			entries = append(entries, index.Entry{Name: fmt.Sprintf("%d/s", i), Link: "s"},
				index.Entry{Name: fmt.Sprintf("%d/s/f", i), Inode: fifo})
		}
	})
	for how, p := range packs {
		t.Run(how, func(t *testing.T) {
			packed := p.pack(t, plain)
			refused(t, packed, "unlisted ones included", 20<<20, func() error {
				_, err := scan.Scan(t.Context(), bytes.NewReader(packed), p.codec, scan.Options{})
				return err
			})
		})
	}
	t.Run("index", func(t *testing.T) {
		p := indexOf(entries...)
		refused(t, p, "unlisted ones included", 20<<20, func() error {
			_, err := index.Decode(t.Context(), p, layout.Limits{})
			return err
		})
	})
}

// TestIndexesThatGrow: what an index says in a few bytes of one entry after another is counted in full.
func TestIndexesThatGrow(t *testing.T) {
	const times = 2_000
	paths, attributes := make([]index.Entry, times), make([]index.Entry, times)
	deep := strings.Repeat("d/", 2000)
	for i := range times {
		paths[i] = index.Entry{Name: deep + "f", Inode: fifo}
		attributes[i] = index.Entry{Name: fmt.Sprint(i), Inode: layout.Inode{Mode: unix.S_IFDIR | 0o755}}
		for k := range 1000 {
			if i == 0 {
				attributes[0].Inode.Xattrs = append(attributes[0].Inode.Xattrs, layout.Xattr{Name: fmt.Sprintf("%d%d", k/10, k%10)})
			}
		}
		attributes[i].Inode.Xattrs = attributes[0].Inode.Xattrs
	}
	for name, c := range map[string]struct {
		entries []index.Entry
		limits  layout.Limits
		says    string
	}{
		"one long path":             {paths, layout.Limits{Paths: 4 << 20}, "limit of all paths"},
		"attributes of a directory": {attributes[:200], layout.Limits{Tree: 8 << 20}, "of memory (limit)"},
	} {
		t.Run(name, func(t *testing.T) {
			p := indexOf(c.entries...)
			refused(t, p, c.says, 32<<20, func() error {
				_, err := index.Decode(t.Context(), p, c.limits)
				return err
			})
		})
	}
}

// TestTreesEnd: a tree is no longer built once its context has ended.
func TestTreesEnd(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("gone")
	cancel(gone)
	if _, err := index.Decode(ctx, indexOf(index.Entry{Name: "f", Inode: fifo}), layout.Limits{}); !errors.Is(err, gone) {
		t.Error(err)
	}
}

// TestTreesThatAreLarge: trees that real layers have are taken: very many files in a directory, and directories that nobody
// lists.
func TestTreesThatAreLarge(t *testing.T) {
	crowd := []index.Entry{{Name: "d/", Inode: layout.Inode{Mode: unix.S_IFDIR | 0o755}}}
	var unlisted, usr []index.Entry
	usr = append(usr, index.Entry{Name: "lib", Inode: layout.Inode{Mode: unix.S_IFLNK, Target: "usr/lib"}})
	for i := range 100_000 {
		crowd = append(crowd, index.Entry{Name: fmt.Sprintf("d/%06d", i), Inode: fifo})
		unlisted = append(unlisted, index.Entry{Name: fmt.Sprintf("store/%02x/%02x/%06d/f", i%256, i/256%256, i), Inode: fifo})
		usr = append(usr, index.Entry{Name: fmt.Sprintf("lib/x86_64-linux-gnu/%d/%d", i%100, i), Inode: fifo})
	}
	for name, entries := range map[string][]index.Entry{"crowd": crowd, "unlisted": unlisted, "through a link": usr} {
		t.Run(name, func(t *testing.T) {
			p := indexOf(entries...)
			peak := heap.Peak(func() {
				l, err := index.Decode(t.Context(), p, layout.Limits{})
				if err != nil {
					t.Error(err)
				} else if len(l.Inodes) < len(entries) {
					t.Errorf("%d inodes of %d entries", len(l.Inodes), len(entries))
				}
			})
			t.Logf("%d MiB of heap, %d bytes an entry", peak>>20, peak/int64(len(entries)))
		})
	}
}

// TestUnitsThatGrow: an index whose blob cannot have the bytes that it tells of is refused.
func TestUnitsThatGrow(t *testing.T) {
	for name, c := range map[string]struct {
		codec blob.Codec
		size  int64
	}{"plain": {blob.Plain, 1 << 20}, "gzip": {blob.Spans, 1000}, "zstd": {blob.Zstd, 10}} {
		t.Run(name, func(t *testing.T) {
			w := index.NewWriter()
			const n = 60 << 20
			w.Add(&index.Entry{Name: "f", Inode: layout.Inode{Mode: unix.S_IFREG, Size: n}, Parts: []index.Part{{Len: n}}}, true)
			for range n / index.MaxExtent {
				w.Digest([32]byte{})
			}
			d := digest.FromString("")
			p := w.Encode(&index.Blob{Digest: d, DiffID: d, Size: c.size, PlainSize: n, Codec: c.codec, Points: []inflate.Point{{}}})
			refused(t, p, "cannot have", 8<<20, func() error {
				_, err := index.Decode(t.Context(), p, layout.Limits{})
				return err
			})
		})
	}
}

// hungry is a gzip layer each of whose points needs almost all of the window before it, of which it has n.
func hungry(t *testing.T, n int) []byte {
	t.Helper()
	noise := make([]byte, 30_000)
	rand.New(rand.NewSource(1)).Read(noise)
	plain := archive(t, func(w *tar.Writer) { add(t, w, tar.Header{Name: "f"}, bytes.Repeat(noise, n*hungrySpan/len(noise))) })
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	for ; len(plain) > 0; plain = plain[min(len(plain), hungrySpan):] {
		if _, err := w.Write(plain[:min(len(plain), hungrySpan)]); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(); err != nil { // begins a block
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

const hungrySpan = 64 << 10

// TestPointsThatGrow: what a gzip layer needs before each place at which decoding can begin is counted while it is found, a thousand
// times as much as the layer has bytes.
func TestPointsThatGrow(t *testing.T) {
	const points = 2000
	packed := hungry(t, points)
	read := func(limits layout.Limits) (*scan.Layer, error) {
		return scan.Scan(t.Context(), bytes.NewReader(packed), blob.Gzip, scan.Options{Span: hungrySpan, Limits: limits})
	}
	asked := int64(0)
	var mu sync.Mutex // guards asked: the tree asks, too
	layer, err := read(layout.Limits{Grow: func(n int64) error {
		mu.Lock()
		defer mu.Unlock()
		asked += n
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	windows := int64(0)
	for _, p := range layer.Layout.Points {
		windows += int64(len(p.Window))
	}
	t.Logf("%d bytes packed, %d points with %d bytes, asked for %d", len(packed), len(layer.Layout.Points), windows, asked)
	if windows < points*20_000 {
		t.Errorf("the layer is not hungry: %d bytes before its points", windows)
	}
	if asked < windows || asked > 2*windows {
		t.Errorf("asked for %d bytes", asked)
	}
	full, left := errors.New("full"), asked
	if _, err := read(layout.Limits{Grow: func(n int64) error {
		mu.Lock()
		defer mu.Unlock()
		if left -= n; left < windows/2 {
			return full
		}
		return nil
	}}); !errors.Is(err, full) {
		t.Errorf("got %v when there is no memory", err)
	}
	refused(t, packed, "of memory (limit)", 64<<20, func() error {
		_, err := read(layout.Limits{Tree: 16 << 20})
		return err
	})
	memory := heap.Peak(func() {
		if data, ok := layer.Index(); !ok || int64(len(data)) < points {
			t.Errorf("an index of %d bytes", len(data))
		}
	})
	told, all := layer.EncodeMemory(), layer.IndexMemory()
	t.Logf("the index takes %d bytes, said to be %d, beside %d, said to be %d", memory, told, windows, all-told)
	const free = 1 << 20 // that the scan's caller allows for
	if memory > told || windows > all-told || all-told > asked+free {
		t.Error("the index takes more memory than is asked for")
	}
}

// TestZeros: a file of zeros, a thousand times as large as its packed bytes, is scanned in little memory, and no unit of it is
// larger than what a reader of one byte may wait for.
func TestZeros(t *testing.T) {
	const n = 200 << 20
	for how, p := range packs {
		if how == "plain" {
			continue
		}
		t.Run(how, func(t *testing.T) {
			packed := p.pack(t, archive(t, func(w *tar.Writer) { add(t, w, tar.Header{Name: "z"}, make([]byte, n)) }))
			var l *scan.Layer
			var err error
			peak := heap.Peak(func() { l, err = scan.Scan(t.Context(), bytes.NewReader(packed), p.codec, scan.Options{}) })
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d bytes packed, %d MiB of heap, codec %d", len(packed), peak>>20, l.Layout.Codec)
			if peak > 64<<20 {
				t.Errorf("%d MiB of heap", peak>>20)
			}
			for _, e := range l.Layout.Extents {
				if e.Inner+e.Len > blob.MaxUnit && l.Layout.Codec != blob.Whole {
					t.Fatalf("an extent at %d+%d of a unit", e.Inner, e.Len)
				}
			}
		})
	}
}
