package estargz_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	lib "github.com/containerd/stargz-snapshotter/estargz"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/blockdev/export/fusefile"
	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/fs/erofs"
	"github.com/remora-storage/remora/fs/format/estargz"
)

// memBlob is a blob in memory that counts its reads.
type memBlob struct {
	data  []byte
	reads int
	bytes int64
}

func (b *memBlob) Size() int64 { return int64(len(b.data)) }

func (b *memBlob) Open(_ context.Context, off, n int64) (io.ReadCloser, error) {
	b.reads++
	b.bytes += n
	return io.NopCloser(io.NewSectionReader(bytes.NewReader(b.data), off, n)), nil
}

type source struct{ *memBlob }

func (s source) Open(ctx context.Context, off, n int64, _ int) (io.ReadCloser, error) {
	return s.memBlob.Open(ctx, off, n)
}

type file struct {
	name string
	body string
}

// build makes an eStargz blob by the reference library.
func build(t testing.TB, files []file, opts ...lib.Option) (blob []byte, toc, diffID digest.Digest) {
	t.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Mode: 0o644, Size: int64(len(f.body)), Typeflag: tar.TypeReg, ModTime: time.Unix(1700000000, 0)}
		if strings.HasSuffix(f.name, "/") {
			h.Typeflag, h.Mode, h.Size = tar.TypeDir, 0o755, 0
		}
		if err := tw.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := io.WriteString(tw, f.body); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := lib.Build(io.NewSectionReader(bytes.NewReader(buf.Bytes()), 0, int64(buf.Len())), opts...)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	blob, err = io.ReadAll(b)
	if err != nil {
		t.Fatal(err)
	}
	return blob, b.TOCDigest(), b.DiffID()
}

func sample() []file {
	files := []file{{"dir/", ""}, {"dir/empty", ""}}
	for i := range 300 {
		body := strings.Repeat(fmt.Sprintf("line %d of some file\n", i), i*7)
		files = append(files, file{fmt.Sprintf("dir/f%03d", i), body})
	}
	return append(files, file{"big", strings.Repeat("0123456789abcdef", 700_000)})
}

func TestOneRoundTrip(t *testing.T) {
	blob, toc, _ := build(t, sample())
	b := &memBlob{data: blob}
	if _, err := estargz.Open(t.Context(), b, estargz.Options{TOCDigest: toc}); err != nil {
		t.Fatal(err)
	}
	if b.reads != 1 {
		t.Errorf("footer and table took %d reads, want 1", b.reads)
	}
}

func TestTableLongerThanTheFirstRead(t *testing.T) {
	blob, toc, _ := build(t, sample())
	b := &memBlob{data: blob}
	if _, err := estargz.Open(t.Context(), b, estargz.Options{TOCDigest: toc, MinTailRead: 60}); err != nil {
		t.Fatal(err)
	}
	if b.reads != 2 {
		t.Errorf("took %d reads, want 2", b.reads)
	}
}

// TestMountedThroughEverything reads a blob through table, layout, image, cache, FUSE and the
// kernel's EROFS, and then checks the diffID from what the cache has kept.
func TestMountedThroughEverything(t *testing.T) {
	for name, opts := range map[string][]lib.Option{
		"one file a member":      {lib.WithChunkSize(1 << 20)},
		"several files a member": {lib.WithMinChunkSize(50_000), lib.WithChunkSize(1 << 20)},
		"with landmark":          {lib.WithPrioritizedFiles([]string{"dir/f200", "dir/f100"})},
	} {
		t.Run(name, func(t *testing.T) { mountedThroughEverything(t, opts) })
	}
}

func mountedThroughEverything(t *testing.T, opts []lib.Option) {
	files := sample()
	blob, toc, diffID := build(t, files, opts...)
	b := &memBlob{data: blob}
	index, err := estargz.Open(t.Context(), b, estargz.Options{TOCDigest: toc})
	if err != nil {
		t.Fatal(err)
	}
	plan, err := erofs.NewPlan(index.Layout, [16]byte{})
	if err != nil {
		t.Fatal(err)
	}
	spec, err := plan.Spec(index.Tail)
	if err != nil {
		t.Fatal(err)
	}
	c, err := cache.Open(t.TempDir(), cache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	f, err := c.Create("layer", spec, source{b})
	if err != nil {
		t.Fatal(err)
	}
	dir, on := t.TempDir(), t.TempDir()
	served, err := fusefile.Mount(dir, fusefile.Options{Log: slog.Default()})
	if err != nil {
		t.Fatal(err)
	}
	defer served.Unmount()
	path := served.Export(fusefile.FirstNode, f)
	if err := blockdev.MountEROFS(path, on); err != nil {
		t.Fatal(err)
	}
	defer blockdev.Unmount(on)
	if len(index.Layout.Prefetch) > 0 {
		if err := f.Prefetch(t.Context(), index.Layout.Prefetch); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range files {
		if strings.HasSuffix(want.name, "/") {
			continue
		}
		got, err := os.ReadFile(filepath.Join(on, want.name))
		if err != nil || string(got) != want.body {
			t.Fatalf("%s: got %d bytes (%x), want %d, %v", want.name, len(got), sha256.Sum256(got), len(want.body), err)
		}
	}
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(on, "big"), &st); err != nil || st.Mtim.Sec != 1700000000 {
		t.Errorf("mtime %d, %v", st.Mtim.Sec, err)
	}
	if !f.Complete() {
		t.Error("every file was read, yet the image is not complete")
	}
	before := b.bytes
	if err := f.Verify(t.Context(), diffID); err != nil {
		t.Errorf("diffID: %v", err)
	}
	t.Logf("blob %d bytes, read %d, for the diffID %d more", len(blob), before, b.bytes-before)
	if err := f.Verify(t.Context(), "sha256:"+digest.Digest(strings.Repeat("0", 64))); !errors.Is(err, cache.ErrDiffID) {
		t.Errorf("another image's diffID: %v", err)
	}
	before = b.bytes
	if err := f.Verify(t.Context(), diffID); err != nil || b.bytes != before {
		t.Errorf("checked again: %v, %d bytes read", err, b.bytes-before)
	}
}
