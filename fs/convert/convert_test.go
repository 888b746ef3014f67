package convert_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	lib "github.com/containerd/stargz-snapshotter/estargz"
	stargzzstd "github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/fs/annotation"
	"github.com/remora-storage/remora/fs/convert"
	"github.com/remora-storage/remora/fs/format/estargz"
	"github.com/remora-storage/remora/fs/format/zstdchunked"
	"github.com/remora-storage/remora/fs/layout"
)

// aTar is a layer with files of many sizes, a hard link, a symbolic link and extended attributes.
func aTar(t testing.TB, seed uint64, files int) []byte {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 1))
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	add := func(h *tar.Header, body []byte) {
		h.Size, h.ModTime = int64(len(body)), time.Unix(1_700_000_000+int64(seed), 0)
		if err := tw.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write(body); err != nil {
			t.Fatal(err)
		}
	}
	add(&tar.Header{Name: "dir/", Typeflag: tar.TypeDir, Mode: 0o755}, nil)
	for i := range files {
		body := make([]byte, r.IntN(1<<uint(r.IntN(17)+1)))
		for k := range body {
			body[k] = byte(r.IntN(7)) + 'a'
		}
		add(&tar.Header{Name: fmt.Sprintf("dir/%d", i), Typeflag: tar.TypeReg, Mode: 0o644,
			PAXRecords: map[string]string{"SCHILY.xattr.user.n": fmt.Sprint(i)}}, body)
	}
	add(&tar.Header{Name: "dir/hard", Typeflag: tar.TypeLink, Linkname: "dir/0", Mode: 0o644}, nil)
	add(&tar.Header{Name: "dir/soft", Typeflag: tar.TypeSymlink, Linkname: "1", Mode: 0o777}, nil)
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func layer(t testing.TB, plain []byte, o convert.Options) (*convert.Result, []byte) {
	t.Helper()
	o.Dir = t.TempDir()
	t.Setenv("TMPDIR", o.Dir)
	r, err := convert.Layer(t.Context(), bytes.NewReader(plain), int64(len(plain)), o)
	if err != nil {
		t.Fatal(err)
	}
	defer r.File.Close()
	blob, err := io.ReadAll(io.NewSectionReader(r.File, 0, r.Descriptor.Size))
	if err != nil {
		t.Fatal(err)
	}
	if digest.FromBytes(blob) != r.Descriptor.Digest || int64(len(blob)) != r.Descriptor.Size {
		t.Errorf("the descriptor %+v is not that of the blob", r.Descriptor)
	}
	return r, blob
}

func formats(t *testing.T, test func(*testing.T, convert.Format)) {
	for _, f := range convert.Formats {
		t.Run(string(f), func(t *testing.T) { test(t, f) })
	}
}

// TestReproducible: the number of jobs, how the source was packed, and another run change nothing.
func TestReproducible(t *testing.T) {
	plain := aTar(t, 1, 300)
	var packed bytes.Buffer
	zw := gzip.NewWriter(&packed)
	if _, err := zw.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	formats(t, func(t *testing.T, f convert.Format) {
		o := convert.Options{Format: f, ChunkSize: 16 << 10, First: []string{"/dir/7", "dir/3", "/no/such"}}
		first, _ := layer(t, plain, o)
		for _, jobs := range []int{1, 2, 8} {
			o.Jobs = convert.NewJobs(jobs)
			for name, src := range map[string][]byte{"plain": plain, "gzip": packed.Bytes()} {
				if again, _ := layer(t, src, o); again.Descriptor.Digest != first.Descriptor.Digest {
					t.Errorf("%d jobs, %s: got %s, want %s", jobs, name, again.Descriptor.Digest, first.Descriptor.Digest)
				}
			}
		}
		if len(first.Missed) != 1 || first.Missed[0] != "/no/such" {
			t.Errorf("missed %v", first.Missed)
		}
	})
}

// TestUnpacks: an ordinary reader of the media type sees the same files, and the diffID is right.
func TestUnpacks(t *testing.T) {
	plain := aTar(t, 2, 200)
	formats(t, func(t *testing.T, f convert.Format) {
		var packed atomic.Int64
		r, blob := layer(t, plain, convert.Options{Format: f, First: []string{"/dir/9"}, Progress: func(n int) { packed.Add(int64(n)) }})
		if n := packed.Load(); n < r.Plain*9/10 || n > r.Plain {
			t.Errorf("told of %d bytes packed of %d", n, r.Plain)
		}
		var in io.Reader
		var err error
		if f == convert.Estargz {
			in, err = gzip.NewReader(bytes.NewReader(blob))
		} else {
			in, err = zstd.NewReader(bytes.NewReader(blob))
		}
		if err != nil {
			t.Fatal(err)
		}
		unpacked, err := io.ReadAll(in)
		if err != nil {
			t.Fatal(err)
		}
		if digest.FromBytes(unpacked) != r.DiffID || int64(len(unpacked)) != r.Plain {
			t.Errorf("diffID %s of %d bytes, want %s of %d", r.DiffID, r.Plain, digest.FromBytes(unpacked), len(unpacked))
		}
		want, got := content(t, plain), content(t, unpacked)
		for _, added := range []string{lib.PrefetchLandmark, lib.TOCTarName} {
			delete(got, added)
		}
		for name, sum := range want {
			if got[name] != sum {
				t.Errorf("%s is another", name)
			}
			delete(got, name)
		}
		if len(got) > 0 {
			t.Errorf("added: %v", got)
		}
	})
}

// content returns what a tar holds by name.
func content(t *testing.T, p []byte) map[string]string {
	t.Helper()
	all := map[string]string{}
	tr := tar.NewReader(bytes.NewReader(p))
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.New()
		if _, err := io.Copy(sum, tr); err != nil {
			t.Fatal(err)
		}
		all[h.Name] = fmt.Sprintf("%c %o %s %v %x", h.Typeflag, h.Mode, h.Linkname, h.PAXRecords, sum.Sum(nil))
	}
}

// TestStargzReads has stargz-snapshotter's library verify every chunk of what was made.
func TestStargzReads(t *testing.T) {
	plain := aTar(t, 3, 200)
	formats(t, func(t *testing.T, f convert.Format) {
		r, blob := layer(t, plain, convert.Options{Format: f, For: convert.ForStargz, ChunkSize: 16 << 10, First: []string{"/dir/9"}})
		opened, err := lib.Open(io.NewSectionReader(bytes.NewReader(blob), 0, int64(len(blob))),
			lib.WithDecompressors(new(stargzzstd.Decompressor)))
		if err != nil {
			t.Fatal(err)
		}
		verifier, err := opened.VerifyTOC(digest.Digest(r.Descriptor.Annotations[annotation.TOCDigest]))
		if err != nil {
			t.Fatal(err)
		}
		chunks := 0
		for i := range 200 {
			name := fmt.Sprintf("dir/%d", i)
			e, ok := opened.Lookup(name)
			if !ok {
				t.Fatalf("%s is not there", name)
			}
			data, err := opened.OpenFile(name)
			if err != nil {
				t.Fatal(err)
			}
			for off := int64(0); off < e.Size; chunks++ {
				c, ok := opened.ChunkEntryForOffset(name, off)
				if !ok {
					t.Fatalf("no chunk of %s at %d", name, off)
				}
				v, err := verifier.Verifier(c)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := io.Copy(v, io.NewSectionReader(data, c.ChunkOffset, c.ChunkSize)); err != nil {
					t.Fatal(err)
				}
				if !v.Verified() {
					t.Errorf("chunk of %s at %d is another", name, off)
				}
				off = c.ChunkOffset + c.ChunkSize
			}
		}
		if chunks < 200 {
			t.Errorf("only %d chunks", chunks)
		}
	})
}

// memory is a blob in memory, for both readers.
type memory []byte

func (m memory) Size() int64 { return int64(len(m)) }

func (m memory) Open(_ context.Context, off, n int64) (io.ReadCloser, error) {
	if off < 0 || n < 0 || off > int64(len(m))-n {
		return nil, errors.New("outside")
	}
	return io.NopCloser(bytes.NewReader(m[off : off+n])), nil
}

// TestRemoraReads opens what was made with our own readers, with what comes first marked.
func TestRemoraReads(t *testing.T) {
	plain := aTar(t, 4, 100)
	formats(t, func(t *testing.T, f convert.Format) {
		r, blob := layer(t, plain, convert.Options{Format: f, First: []string{"/dir/9", "/dir/3"}})
		if !convert.Ready(r.Descriptor, f) {
			t.Error("the result is not in the format, so --reuse would convert it again")
		}
		toc := digest.Digest(r.Descriptor.Annotations[annotation.TOCDigest])
		var l *layout.Layout
		var tail []byte
		if f == convert.Estargz {
			x, err := estargz.Open(t.Context(), memory(blob), estargz.Options{TOCDigest: toc})
			if err != nil {
				t.Fatal(err)
			}
			l, tail = x.Layout, x.Tail
		} else {
			table, named, err := zstdchunked.Named(r.Descriptor.Annotations)
			if err != nil || !named {
				t.Fatal(named, err)
			}
			if toc != "" {
				t.Error("Podman refuses a layer with this annotation")
			}
			x, err := zstdchunked.Open(t.Context(), memory(blob), zstdchunked.Options{Table: table, Landmarks: true})
			if err != nil {
				t.Fatal(err)
			}
			l, tail = x.Layout, x.Tail
			if _, err := zstdchunked.Open(t.Context(), memory(blob), zstdchunked.Options{Unverified: true}); err != nil {
				t.Errorf("by the footer: %v", err)
			}
		}
		if last := l.Units[len(l.Units)-1]; last.Off+last.Len != int64(len(blob)) || tail != nil && int64(len(tail)) != last.Len {
			t.Errorf("last unit %+v of %d bytes, tail of %d", last, len(blob), len(tail))
		}
		if len(l.Prefetch) < 2 {
			t.Errorf("prefetch %v", l.Prefetch)
		}
		if r.Descriptor.Annotations[annotation.StartSize] == "" {
			t.Error("the manifest does not say how much a start needs")
		}
	})
}

func TestOptions(t *testing.T) {
	for name, o := range map[string]convert.Options{
		"unknown format":      {Format: "squashfs"},
		"level for the other": {Format: convert.Estargz, Level: 19},
		"negative level":      {Format: convert.ZstdChunked, Level: -1},
	} {
		if _, err := convert.Layer(t.Context(), strings.NewReader(""), 0, o); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

// TestStopped: a conversion that is stopped ends, and leaves no file.
func TestStopped(t *testing.T) {
	plain := aTar(t, 5, 400)
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if r, err := convert.Layer(ctx, bytes.NewReader(plain), int64(len(plain)), convert.Options{Dir: dir}); err == nil {
		r.File.Close()
		t.Error("a stopped conversion says that it is done")
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestNotATar: what is no layer is refused, not packed.
func TestNotATar(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	junk := bytes.Repeat([]byte("junk"), 4096)
	formats(t, func(t *testing.T, f convert.Format) {
		if r, err := convert.Layer(t.Context(), bytes.NewReader(junk), int64(len(junk)),
			convert.Options{Format: f, Dir: t.TempDir()}); err == nil {
			r.File.Close()
			t.Error("taken")
		}
	})
}
