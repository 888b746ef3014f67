package layers

import (
	"archive/tar"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/conformance/heap"
	"github.com/remora-storage/remora/fs/layout"
	"github.com/remora-storage/remora/fs/scan"
	"github.com/remora-storage/remora/internal/memory"
	"github.com/remora-storage/remora/internal/memorytest"
	"github.com/remora-storage/remora/snapshotter/internal/imagetest"
)

// sparseFile is an archive of one file of zeros, in a form of GNU's: its headers say how many, and nothing of them is there.
func sparseFile(size int64) imagetest.Layer {
	header := func(kind byte, name string, size int) []byte {
		h := make([]byte, 512)
		put := func(at int, format string, args ...any) { copy(h[at:], fmt.Sprintf(format, args...)) }
		put(0, "%s", name)
		put(100, "0000644\x000000000\x000000000\x00%011o\x0000000000000\x00", size)
		put(148, "        %c", kind)
		put(257, "ustar\x0000")
		sum := 0
		for _, b := range h {
			sum += int(b)
		}
		put(148, "%06o\x00 ", sum)
		return h
	}
	records := ""
	for _, r := range []string{"GNU.sparse.major=0", "GNU.sparse.minor=1", fmt.Sprintf("GNU.sparse.size=%d", size),
		"GNU.sparse.numblocks=1", fmt.Sprintf("GNU.sparse.map=%d,0", size)} {
		records += fmt.Sprintf("%d %s\n", len(r)+4, r) // of two digits
	}
	blob := append(header('x', "records", len(records)), make([]byte, 512)...)
	copy(blob[512:], records)
	blob = append(append(blob, header('0', "zeros", 0)...), make([]byte, 1024)...)
	d := digest.FromBytes(blob)
	return imagetest.Layer{Blob: blob, DiffID: d,
		Desc: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: d, Size: int64(len(blob))}}
}

// inodes counts what is in a directory, and the bytes of the files.
func inodes(t *testing.T, dir string) (n int, bytes int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		n++
		if info, err := d.Info(); err == nil && info.Mode().IsRegular() {
			bytes += info.Size()
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return n, bytes
}

// TestUnpackingIsBounded: what is unpacked may have twice as many files, and bytes of their paths, as an image, and as many bytes; all
// of them are counted before they are made. A layer beyond is not tried again for a while.
func TestUnpackingIsBounded(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root gives files to root")
	}
	many := func(n int) (all []imagetest.Member) {
		for i := range n {
			all = append(all, imagetest.File(fmt.Sprint(i), nil))
		}
		return all
	}
	var implied, deep []imagetest.Member
	deep = append(deep, imagetest.Link("l", strings.Repeat("a/", 200)+"a"))
	for i := range 20 {
		implied = append(implied, imagetest.File(fmt.Sprintf("%d/%sf", i, strings.Repeat("d/", 50)), nil))
		link := imagetest.Member{Header: tar.Header{Name: fmt.Sprintf("%d/l", i), Linkname: "l", Typeflag: tar.TypeLink}}
		deep = append(deep, imagetest.Dir(fmt.Sprint(i), 0o755), link, imagetest.File(fmt.Sprintf("%d/l/f", i), nil))
	}
	long := func(n int) (all []imagetest.Member) {
		for i := range n {
			all = append(all, imagetest.File(fmt.Sprintf("%s/%d", strings.Repeat("p", 200), i), nil))
		}
		return all
	}
	limits := layout.Limits{Nodes: 200, Paths: 10_000, Plain: 1 << 20}
	for name, c := range map[string]struct {
		l    imagetest.Layer
		want error
	}{
		"many":             {imagetest.GzipLayer(t, many(390)...), nil},
		"too many":         {imagetest.GzipLayer(t, many(410)...), layout.ErrBeyond},
		"directories":      {imagetest.GzipLayer(t, implied[:7]...), nil},
		"many directories": {imagetest.GzipLayer(t, implied...), layout.ErrBeyond},
		"behind links":     {imagetest.GzipLayer(t, deep...), layout.ErrBeyond},
		"long paths":       {imagetest.GzipLayer(t, long(90)...), nil},
		"too long paths":   {imagetest.GzipLayer(t, long(110)...), layout.ErrBeyond},
		"zeros":            {sparseFile(1 << 20), nil},
		"too many zeros":   {sparseFile(1<<20 + 1), scan.ErrBomb},
	} {
		t.Run(name, func(t *testing.T) {
			im := imagetest.NewImage(t, "app", nil, c.l)
			o := imagetest.NewOrigin(t, im)
			l := newOf(t, o, Options{Limits: limits})
			src := sourceOf(o, im)
			for range 2 {
				dir := filepath.Join(t.TempDir(), "unpacked")
				err := l.Imports.UnpackInto(t.Context(), &src, dir, nil)
				if !errors.Is(err, c.want) {
					t.Fatalf("got %v", err)
				}
				if _, err := os.Stat(dir); err != nil {
					continue // it was known
				}
				if n, bytes := inodes(t, dir); n > 2*limits.Nodes+1 || bytes > limits.Plain {
					t.Errorf("%d files and directories, and %d bytes", n, bytes)
				}
			}
			if n := o.Requests("blobs", c.l.Digest().String()); c.want != nil && n != 1 {
				t.Errorf("it was asked for %d times", n)
			}
		})
	}
}

// TestUnpackingTakesMemory: what unpacking keeps of each entry is asked for.
func TestUnpackingTakesMemory(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root gives files to root")
	}
	const limit = 32 << 20
	deep := strings.Repeat(strings.Repeat("d", 250)+"/", 14)
	var all []imagetest.Member
	for i := range 6_000 {
		all = append(all, imagetest.Dir(fmt.Sprintf("%s%d", deep, i), 0o755))
	}
	im := imagetest.NewImage(t, "app", nil, imagetest.GzipLayer(t, all...))
	o := imagetest.NewOrigin(t, im)
	m := memory.New(limit)
	l := newOf(t, o, Options{Memory: m})
	src := sourceOf(o, im)
	var err error
	took := heap.Cost{Memory: limit, CPU: time.Minute, Written: 256 << 20}.Peaks(t, func() int64 { // it unpacks until it is refused
		err = l.Imports.UnpackInto(t.Context(), &src, filepath.Join(t.TempDir(), "unpacked"), nil)
		return 0
	})
	t.Logf("%+v: %v", took, err)
	if !errors.Is(err, memory.ErrBeyond) {
		t.Error(err)
	}
	giveBack, err := memorytest.Spend(t.Context(), m)
	if err != nil {
		t.Errorf("memory was not given back: %v", err)
	}
	giveBack()
}
