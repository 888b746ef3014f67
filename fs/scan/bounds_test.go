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
			heap.Refuses(t, 20<<20, layout.ErrInvalid, "unlisted ones included", func() error {
				_, err := scan.Scan(t.Context(), bytes.NewReader(packed), p.codec, scan.Options{})
				return err
			})
		})
	}
	t.Run("index", func(t *testing.T) {
		p := indexOf(entries...)
		heap.Refuses(t, 20<<20, layout.ErrInvalid, "unlisted ones included", func() error {
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
	links := []index.Entry{{Name: "f", Inode: fifo}}
	for i := range 20 {
		link := index.Entry{Name: fmt.Sprint(i), Link: "f", Inode: crowded(16 << 10)}
		link.Inode.UID = uint32(i)
		links = append(links, link)
	}
	for name, c := range map[string]struct {
		entries []index.Entry
		limits  layout.Limits
		says    string
	}{
		"attributes that nobody has": {links, layout.Limits{Tree: 8 << 20}, "of memory (limit)"},
		"one long path":              {paths, layout.Limits{Paths: 4 << 20}, "limit of all paths"},
		"attributes of a directory":  {attributes[:200], layout.Limits{Tree: 8 << 20}, "of memory (limit)"},
	} {
		t.Run(name, func(t *testing.T) {
			p := indexOf(c.entries...)
			heap.Refuses(t, 32<<20, layout.ErrInvalid, c.says, func() error {
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
			took := heap.LayerMost(len(p)).Peaks(t, func() int64 {
				l, err := index.Decode(t.Context(), p, layout.Limits{})
				if err != nil {
					t.Error(err)
				} else if len(l.Inodes) < len(entries) {
					t.Errorf("%d inodes of %d entries", len(l.Inodes), len(entries))
				}
				return 0
			})
			t.Logf("%+v, %d bytes an entry", took, took.Memory/int64(len(entries)))
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
			heap.Refuses(t, 8<<20, layout.ErrInvalid, "cannot have", func() error {
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
	heap.Refuses(t, 64<<20, layout.ErrInvalid, "of memory (limit)", func() error {
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
			var out counted
			most := heap.Cost{Memory: 64 << 20, CPU: 20 * time.Second, Written: n}
			took := most.Peaks(t, func() int64 {
				l, err = scan.Scan(t.Context(), bytes.NewReader(packed), p.codec, scan.Options{Data: &out})
				return out.n
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d bytes packed, %+v, codec %d", len(packed), took, l.Layout.Codec)
			for _, e := range l.Layout.Extents {
				if e.Inner+e.Len > blob.MaxUnit && l.Layout.Codec != blob.Whole {
					t.Fatalf("an extent at %d+%d of a unit", e.Inner, e.Len)
				}
			}
		})
	}
}

// TestWindowsTakeMemory: what decoding a frame of zstd takes is asked for, also if the frame says that its content is its window.
func TestWindowsTakeMemory(t *testing.T) {
	full := errors.New("full")
	for name, head := range map[string][]byte{
		"a window":    {0x28, 0xb5, 0x2f, 0xfd, 0, (26 - 10) << 3},
		"one segment": {0x28, 0xb5, 0x2f, 0xfd, 0xa0, 0, 0, 0, 4},
	} {
		t.Run(name, func(t *testing.T) {
			const window = 64 << 20
			packed := append(head, 1, 0, 0) // an empty block, the last one
			asked := int64(0)
			var mu sync.Mutex // guards asked: the tree asks, too
			var err error
			peak := heap.Peak(func() {
				_, err = scan.Scan(t.Context(), bytes.NewReader(packed), blob.Zstd, scan.Options{Limits: layout.Limits{Grow: func(n int64) error {
					mu.Lock()
					defer mu.Unlock()
					asked += n
					return full
				}}})
			})
			const allowed = 16 << 20 // by whoever calls it
			if !errors.Is(err, full) || asked < window-allowed || peak > allowed {
				t.Errorf("asked for %d bytes, and took %d: %v", asked, peak, err)
			}
		})
	}
}
