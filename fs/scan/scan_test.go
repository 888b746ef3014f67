package scan_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/cache/blob"
	"github.com/remora-storage/remora/conformance/heap"
	"github.com/remora-storage/remora/fs/index"
	"github.com/remora-storage/remora/fs/layout"
	"github.com/remora-storage/remora/fs/scan"
)

// memory is what a scan writes data to.
type memory struct{ b []byte }

const dataStart = 1 << 20

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	off -= dataStart
	if n := int(off) + len(p); n > len(m.b) {
		m.b = append(m.b, make([]byte, n-len(m.b))...)
	}
	return copy(m.b[off:], p), nil
}

func archive(t testing.TB, write func(*tar.Writer)) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	write(w)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func add(t testing.TB, w *tar.Writer, h tar.Header, body []byte) {
	t.Helper()
	h.Size = int64(len(body))
	if h.Mode == 0 {
		h.Mode = 0o644
	}
	if err := w.WriteHeader(&h); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(body); err != nil {
		t.Fatal(err)
	}
}

func bytesOf(seed int64, n int) []byte {
	r := rand.New(rand.NewSource(seed))
	p := make([]byte, n)
	for i := 0; i < n; {
		k := min(1+r.Intn(300), n-i)
		if r.Intn(3) > 0 && i > 1000 {
			copy(p[i:i+k], p[r.Intn(i-999):])
		} else {
			r.Read(p[i : i+k])
		}
		i += k
	}
	return p
}

// tars are archives of many kinds.
func tars(t testing.TB) map[string][]byte {
	all := map[string][]byte{
		"empty": archive(t, func(*tar.Writer) {}),
		"one file": archive(t, func(w *tar.Writer) {
			add(t, w, tar.Header{Name: "file"}, []byte("content"))
		}),
		"one large file": archive(t, func(w *tar.Writer) {
			add(t, w, tar.Header{Name: "file"}, bytesOf(1, 9<<20+123))
		}),
		"many": archive(t, func(w *tar.Writer) {
			for i := range 3000 {
				if i%50 == 0 {
					add(t, w, tar.Header{Name: fmt.Sprintf("d%d/", i/50), Typeflag: tar.TypeDir, Mode: 0o755}, nil)
				}
				add(t, w, tar.Header{
					Name: fmt.Sprintf("d%d/file-%d", i/50, i), Uid: i % 3, ModTime: time.Unix(1500000000+int64(i%7), int64(i%2)*123456789),
					Format: tar.FormatPAX,
				}, bytesOf(int64(i%100), i*7%5000))
			}
		}),
		"kinds": archive(t, func(w *tar.Writer) {
			long := strings.Repeat("long/", 60)
			add(t, w, tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755, ModTime: time.Unix(7, 0)}, nil)
			add(t, w, tar.Header{Name: "a/", Typeflag: tar.TypeDir, Mode: 0o1777}, nil)
			add(t, w, tar.Header{Name: "a/twice"}, []byte("the first one, which goes"))
			add(t, w, tar.Header{Name: "a/twice", Uid: 3000000000, Format: tar.FormatPAX}, []byte("the second"))
			add(t, w, tar.Header{Name: "b/hard", Typeflag: tar.TypeLink, Linkname: "a/twice"}, nil)
			add(t, w, tar.Header{Name: "soft", Typeflag: tar.TypeSymlink, Linkname: "../a/twice"}, nil)
			add(t, w, tar.Header{Name: "dev", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}, nil)
			add(t, w, tar.Header{Name: "disk", Typeflag: tar.TypeBlock, Devmajor: 8, Devminor: 300}, nil)
			add(t, w, tar.Header{Name: "fifo", Typeflag: tar.TypeFifo}, nil)
			add(t, w, tar.Header{Name: long + "gnu", Format: tar.FormatGNU}, []byte("gnu"))
			add(t, w, tar.Header{Name: long + "pax", Format: tar.FormatPAX, PAXRecords: map[string]string{"SCHILY.xattr.user.x": "\x00\x01"}},
				[]byte("pax"))
			add(t, w, tar.Header{Name: "a/.wh.gone"}, []byte("a mark with data"))
			add(t, w, tar.Header{Name: "a/.wh..wh..opq"}, nil)
			add(t, w, tar.Header{Name: "old", ModTime: time.Unix(-5, 0), Format: tar.FormatPAX}, []byte("x"))
		}),
	}
	for _, format := range []string{"gnu", "posix0.0", "posix0.1", "posix1.0"} {
		all["sparse, "+format] = sparseTar(t, format)
	}
	return all
}

// sparseTar has GNU tar pack sparse files.
func sparseTar(t testing.TB, format string) []byte {
	t.Helper()
	dir := t.TempDir()
	for name, parts := range map[string]map[int64]int{
		"holes": {0: 5000, 1 << 20: 70000, 3 << 20: 10}, "hole-first": {1 << 20: 4096}, "one-hole": {},
		"forty": func() map[int64]int {
			m := map[int64]int{}
			for i := range int64(40) {
				m[i*65536] = 4096
			}
			return m
		}(),
	} {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		for off, n := range parts {
			if _, err := f.WriteAt(bytesOf(off, n), off); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(f.Truncate(4<<20), f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "z"), []byte("behind them"), 0o644); err != nil {
		t.Fatal(err)
	}
	args := []string{"-C", dir, "--sparse", "--format=gnu", "-cf", "-", "."}
	if v, ok := strings.CutPrefix(format, "posix"); ok {
		args[3] = "--format=posix"
		args = append([]string{"--sparse-version=" + v}, args...)
	}
	out, err := exec.Command("tar", args...).Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// packs are the ways in which a layer comes.
var packs = map[string]struct {
	codec blob.Codec
	pack  func(t testing.TB, p []byte) []byte
}{
	"plain": {blob.Plain, func(_ testing.TB, p []byte) []byte { return p }},
	"gzip":  {blob.Gzip, func(t testing.TB, p []byte) []byte { return gz(t, p) }},
	"gzip members": {blob.Gzip, func(t testing.TB, p []byte) (out []byte) {
		for len(p) > 0 {
			k := min(len(p), 700_001)
			out, p = append(out, gz(t, p[:k])...), p[k:]
		}
		return out
	}},
	"zstd": {blob.Zstd, func(t testing.TB, p []byte) []byte { return zs(t, p) }},
	"zstd frames": {blob.Zstd, func(t testing.TB, p []byte) (out []byte) {
		for len(p) > 0 {
			k := min(len(p), 300_001)
			out, p = append(out, zs(t, p[:k])...), p[k:]
			out = append(out, 0x53, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 'a', 'b', 'c') // a skippable frame
		}
		return out
	}},
}

func gz(t testing.TB, p []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	w.Name, w.Comment, w.Extra = "layer.tar", "a comment", []byte("an extra field")
	if _, err := w.Write(p); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func zs(t testing.TB, p []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(true))
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll(p, nil)
}

func TestScan(t *testing.T) {
	all := tars(t)
	for i, name := range slices.Sorted(maps.Keys(all)) {
		plain := all[name]
		for j, how := range slices.Sorted(maps.Keys(packs)) {
			if testing.Short() && i%len(packs) != j { // each tar in one way, each way for some tar
				continue
			}
			p := packs[how]
			t.Run(name+", "+how, func(t *testing.T) {
				packed := p.pack(t, plain)
				var m memory
				l, err := scan.Scan(t.Context(), bytes.NewReader(packed), p.codec, scan.Options{Data: &m, DataStart: dataStart, Span: 1 << 20})
				if err != nil {
					t.Fatal(err)
				}
				if l.Blob != digest.FromBytes(packed) || l.DiffID != digest.FromBytes(plain) || l.Size != int64(len(packed)) {
					t.Errorf("digests %s, %s", l.Blob, l.DiffID)
				}
				checkData(t, plain, l.Layout, m.b)
				checkUnits(t, plain, packed, l.Layout)
				data, ok := l.Index()
				if !ok {
					t.Fatal("no index")
				}
				again, err := index.Decode(t.Context(), data, layout.Limits{})
				if err != nil {
					t.Fatal(err)
				}
				for i := range l.Layout.Inodes {
					l.Layout.Inodes[i].Data = 0
				}
				if !reflect.DeepEqual(again, l.Layout) {
					t.Errorf("the index gives another layout:\n%.2000q\n%.2000q", fmt.Sprint(again), fmt.Sprint(l.Layout))
				}
			})
		}
	}
}

// checkData compares what archive/tar reads of each regular file with what was written for it.
func checkData(t *testing.T, plain []byte, l *layout.Layout, data []byte) {
	t.Helper()
	want := map[string][]byte{}
	r := tar.NewReader(bytes.NewReader(plain))
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if (h.Typeflag == tar.TypeReg || h.Typeflag == tar.TypeGNUSparse) && !strings.HasPrefix(path.Base(h.Name), ".wh.") {
			if want[path.Clean(h.Name)], err = io.ReadAll(r); err != nil {
				t.Fatal(err)
			}
		}
		if h.Typeflag == tar.TypeLink {
			want[path.Clean(h.Name)] = want[path.Clean(h.Linkname)]
		}
	}
	seen := 0
	walk(l, layout.Root, "", func(name string, in *layout.Inode) {
		if !in.IsRegular() {
			return
		}
		seen++
		got := make([]byte, in.Size)
		for _, e := range l.Extents[in.FirstExtent : in.FirstExtent+in.NumExtents] {
			b := data[in.Data-dataStart+e.FileOff:][:e.Len]
			if sha256.Sum256(b) != e.Digest {
				t.Errorf("%s: extent at %d has another digest", name, e.FileOff)
			}
			copy(got[e.FileOff:], b)
		}
		if w, ok := want[name]; !ok || !bytes.Equal(got, w) {
			t.Errorf("%s: %d bytes, want %d of which (known %v)", name, len(got), len(w), ok)
		}
	})
	if seen != len(want) {
		t.Errorf("%d regular files, want %d", seen, len(want))
	}
}

func walk(l *layout.Layout, at uint32, prefix string, f func(string, *layout.Inode)) {
	for _, e := range l.Inodes[at].Entries {
		in := &l.Inodes[e.Inode]
		f(path.Join(prefix, e.Name), in)
		if in.IsDir() {
			walk(l, e.Inode, path.Join(prefix, e.Name), f)
		}
	}
}

// checkUnits decodes every unit by itself.
func checkUnits(t *testing.T, plain, packed []byte, l *layout.Layout) {
	t.Helper()
	decoded := make([][]byte, len(l.Units))
	at := 0
	for i, u := range l.Units {
		b := packed[u.Off : u.Off+u.Len]
		switch l.Codec {
		case blob.Plain:
			decoded[i] = b
		case blob.Spans:
			end := l.PlainSize
			if i+1 < len(l.Points) {
				end = l.Points[i+1].Plain
			}
			var err error
			if decoded[i], err = l.Points[i].Inflate(b, int(end-l.Points[i].Plain)); err != nil {
				t.Fatalf("unit %d: %v", i, err)
			}
		case blob.Zstd:
			r, err := zstd.NewReader(bytes.NewReader(b))
			if err != nil {
				t.Fatal(err)
			}
			if decoded[i], err = io.ReadAll(r); err != nil {
				t.Fatalf("unit %d: %v", i, err)
			}
			r.Close()
		}
		if !bytes.HasPrefix(plain[at:], decoded[i]) {
			t.Fatalf("unit %d at %d decodes to something else", i, u.Off)
		}
		at += len(decoded[i])
	}
	if at != len(plain) {
		t.Errorf("units decode to %d bytes of %d", at, len(plain))
	}
	for _, e := range l.Extents {
		if sha256.Sum256(decoded[e.Unit][e.Inner:e.Inner+e.Len]) != e.Digest {
			t.Errorf("extent at %d of unit %d has another digest", e.Inner, e.Unit)
		}
	}
}

func TestScanRefuses(t *testing.T) {
	all := tars(t)
	good := all["many"]
	entry := func(h tar.Header) []byte {
		return archive(t, func(w *tar.Writer) { add(t, w, h, nil) })
	}
	for name, c := range map[string]struct {
		codec  blob.Codec
		packed []byte
		limits layout.Limits
		want   error
	}{
		"path escape": {blob.Plain, entry(tar.Header{Name: "a/../../etc/passwd"}), layout.Limits{}, layout.ErrInvalid},
		"hard link to nothing": {blob.Plain, entry(tar.Header{Name: "a", Typeflag: tar.TypeLink, Linkname: "b"}),
			layout.Limits{}, layout.ErrInvalid},
		"hard link before file": {blob.Plain, archive(t, func(w *tar.Writer) {
			add(t, w, tar.Header{Name: "a", Typeflag: tar.TypeLink, Linkname: "b"}, nil)
			add(t, w, tar.Header{Name: "b"}, []byte("x"))
		}), layout.Limits{}, layout.ErrInvalid},
		"link loop": {blob.Plain, archive(t, func(w *tar.Writer) {
			add(t, w, tar.Header{Name: "a", Typeflag: tar.TypeSymlink, Linkname: "b"}, nil)
			add(t, w, tar.Header{Name: "b", Typeflag: tar.TypeSymlink, Linkname: "a"}, nil)
			add(t, w, tar.Header{Name: "a/c"}, []byte("x"))
		}), layout.Limits{}, layout.ErrInvalid},
		"too many entries": {blob.Plain, archive(t, func(w *tar.Writer) {
			for i := range 20 {
				add(t, w, tar.Header{Name: fmt.Sprint(i), Typeflag: tar.TypeChar, Devmajor: 1}, nil)
			}
		}), layout.Limits{Entries: 10}, layout.ErrInvalid},
		"bomb": {blob.Gzip, gz(t, make([]byte, 20<<20)), layout.Limits{Plain: 10 << 20}, scan.ErrBomb},
		"bomb of a file": {blob.Gzip, gz(t, archive(t, func(w *tar.Writer) { add(t, w, tar.Header{Name: "z"}, make([]byte, 20<<20)) })),
			layout.Limits{Plain: 10 << 20}, scan.ErrBomb},
		"cut tar":          {blob.Plain, all["one large file"][:5000], layout.Limits{}, layout.ErrInvalid},
		"cut gzip":         {blob.Gzip, gz(t, good)[:10000], layout.Limits{}, layout.ErrInvalid},
		"cut zstd":         {blob.Zstd, zs(t, good)[:10000], layout.Limits{}, layout.ErrInvalid},
		"size beyond":      {blob.Plain, sizeLies(t), layout.Limits{}, layout.ErrInvalid},
		"gzip as zstd":     {blob.Zstd, gz(t, good), layout.Limits{}, layout.ErrInvalid},
		"zstd as gzip":     {blob.Gzip, zs(t, good), layout.Limits{}, layout.ErrInvalid},
		"not a tar":        {blob.Plain, bytesOf(5, 4096), layout.Limits{}, layout.ErrInvalid},
		"nothing, as gzip": {blob.Gzip, nil, layout.Limits{}, layout.ErrInvalid},
		"a huge sparse file": {blob.Plain,
			entry(tar.Header{Name: "x", Format: tar.FormatPAX, PAXRecords: map[string]string{"remora.x": "1"}}), layout.Limits{}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := scan.Scan(t.Context(), bytes.NewReader(c.packed), c.codec, scan.Options{Limits: c.limits})
			if !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}

// sizeLies is an archive whose only file claims more than there is.
func sizeLies(t testing.TB) []byte {
	p := archive(t, func(w *tar.Writer) { add(t, w, tar.Header{Name: "file"}, make([]byte, 10<<10)) })
	return p[:512+2048]
}

// TestSourceFails: an error of the reader is not taken for the layer's.
func TestSourceFails(t *testing.T) {
	many, times := tars(t)["many"], 200
	if testing.Short() {
		times = 20
	}
	for how, p := range packs {
		packed := p.pack(t, many)
		boom := errors.New("the line is cut")
		places := []int{5, 1000, len(packed) / 2, len(packed) - 1}
		for _, at := range append(places, make([]int, times)...) { // whoever waits for the first byte must not be quicker to fail
			r := io.MultiReader(bytes.NewReader(packed[:at]), failing{boom})
			if _, err := scan.Scan(t.Context(), r, p.codec, scan.Options{}); !errors.Is(err, boom) || errors.Is(err, layout.ErrInvalid) {
				t.Errorf("%s, cut at %d: %v", how, at, err)
			}
		}
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func FuzzScan(f *testing.F) {
	for name, plain := range tars(f) {
		if len(plain) < 1<<20 || strings.HasPrefix(name, "sparse") {
			for i, how := range []string{"plain", "gzip", "zstd frames"} {
				f.Add(packs[how].pack(f, plain), byte(i))
			}
		}
	}
	f.Add(opaque(f, 500, 100), byte(0))
	f.Add(gz(f, opaque(f, 500, 100)), byte(1))
	codecs := []blob.Codec{blob.Plain, blob.Gzip, blob.Zstd}
	f.Fuzz(func(t *testing.T, packed []byte, codec byte) {
		limits := layout.Limits{Plain: 8 << 20, Image: 1 << 30}
		var l *scan.Layer
		var err error
		var out counted
		most := heap.LayerMost(len(packed))
		most.Memory += 64 * limits.Plain
		most.Written = limits.Plain
		most.Allocates(t, func() int64 {
			l, err = scan.Scan(t.Context(), bytes.NewReader(packed), codecs[int(codec)%3], scan.Options{
				Data: &out, DataStart: dataStart, Limits: limits, Span: 4096,
			})
			return out.n
		})
		if err != nil {
			return
		}
		for i := range l.Layout.Inodes {
			l.Layout.Inodes[i].Data = 0
		}
		data, ok := l.Index()
		if !ok {
			return
		}
		again, err := index.Decode(t.Context(), data, limits)
		if err != nil {
			t.Fatalf("the index of a layer that was read: %v", err)
		}
		if !reflect.DeepEqual(again, l.Layout) {
			t.Fatalf("the index gives another layout:\n%.2000q\n%.2000q", fmt.Sprint(again), fmt.Sprint(l.Layout))
		}
	})
}

// counted counts what is written to it.
type counted struct{ n int64 }

func (c *counted) WriteAt(p []byte, _ int64) (int, error) {
	c.n += int64(len(p))
	return len(p), nil
}

func FuzzIndex(f *testing.F) {
	for name, plain := range tars(f) {
		if name == "kinds" || name == "one file" || strings.HasPrefix(name, "sparse") {
			for _, how := range []string{"plain", "gzip", "zstd frames"} {
				l, err := scan.Scan(f.Context(), bytes.NewReader(packs[how].pack(f, plain)), packs[how].codec, scan.Options{Span: 64 << 10})
				if err != nil {
					f.Fatal(err)
				}
				data, _ := l.Index()
				f.Add(data)
			}
		}
	}
	for _, data := range shared(f, 1000, 1000) {
		f.Add(data)
	}
	f.Add(repeated(f, 1000, index.Entry{Name: "d/", Inode: crowded(1000)}, index.Entry{Name: "d/.wh..wh..opq", Inode: fifo}))
	f.Fuzz(func(t *testing.T, data []byte) {
		limits := layout.Limits{Image: 1 << 40, Entries: 100_000, PlainIndex: 16 << 20, Paths: 16 << 20, Tree: 256 << 20}
		var l *layout.Layout
		var err error
		most := heap.LayerMost(len(data))
		most.Memory, most.CPU = 2<<30, 30*time.Second // some times the limits
		most.Allocates(t, func() int64 { l, err = index.Decode(t.Context(), data, limits); return 0 })
		if err != nil && !errors.Is(err, layout.ErrInvalid) {
			t.Fatal(err)
		}
		if err == nil && len(l.Inodes) == 0 {
			t.Fatal("no root")
		}
	})
}
