package layers

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/cache/blob"
	"github.com/remora-storage/remora/fs/erofs"
	"github.com/remora-storage/remora/fs/format"
	"github.com/remora-storage/remora/fs/format/toc"
	"github.com/remora-storage/remora/fs/layout"
	"github.com/remora-storage/remora/snapshotter/internal/imagetest"
)

// A toy is a format that only this file knows: files behind each other, and a list of them at the end. An annotation has the list's
// digest and how long it is.
type toy struct{}

const (
	toyList  = "test.toy.list" // digest:bytes
	toyMedia = "application/vnd.test.toy"
)

type toyFile struct {
	Name string
	Size int64
	Sum  [32]byte
}

func (toy) Name() string { return "toy" }

func (toy) Claims(desc ocispec.Descriptor) (format.Opener, error) {
	if desc.MediaType != toyMedia {
		return nil, nil
	}
	alg, rest, _ := bytes.Cut([]byte(desc.Annotations[toyList]), []byte(":"))
	hex, size, _ := bytes.Cut(rest, []byte(":"))
	n, err := strconv.ParseInt(string(size), 10, 64)
	if err != nil || n > desc.Size {
		return nil, fmt.Errorf("list %q", desc.Annotations[toyList])
	}
	return toyOpener{digest.NewDigestFromEncoded(digest.Algorithm(alg), string(hex)), n}, nil
}

type toyOpener struct {
	sum digest.Digest
	n   int64
}

func (o toyOpener) Vouched() string { return o.sum.String() }

func (o toyOpener) Open(ctx context.Context, b toc.Blob, limits layout.Limits) (*format.Index, error) {
	off := b.Size() - o.n
	list, err := toc.ReadRange(ctx, b, limits, off, o.n)
	if err != nil {
		return nil, err
	}
	var files []toyFile
	if digest.FromBytes(list) != o.sum {
		return nil, fmt.Errorf("%w: another list", layout.ErrInvalid)
	}
	if err := json.Unmarshal(list, &files); err != nil {
		return nil, fmt.Errorf("%w: %w", layout.ErrInvalid, err)
	}
	tree := layout.NewBuilder(limits)
	var units []blob.Unit
	at := int64(0)
	for i, f := range files {
		h, _, err := tree.Add(f.Name, layout.Inode{Mode: unix.S_IFREG | 0o644, Size: f.Size})
		if err == nil {
			err = tree.AddExtent(h, layout.Extent{Len: f.Size, Unit: uint32(i), Digest: f.Sum})
		}
		if err != nil {
			return nil, err
		}
		units = append(units, blob.Unit{Off: at, Len: f.Size})
		at += f.Size
	}
	units = append(units, blob.Unit{Off: off, Len: o.n})
	l, err := tree.Finish(blob.Plain, units, func(u uint32) uint32 { return u })
	return &format.Index{Layout: l, Tail: list, TailOff: off}, err
}

// toyLayer is a layer of files that have no two names alike.
func toyLayer(t *testing.T, bodies ...[]byte) imagetest.Layer {
	t.Helper()
	var data []byte
	var files []toyFile
	for i, body := range bodies {
		data = append(data, body...)
		files = append(files, toyFile{fmt.Sprintf("f%d", i), int64(len(body)), sha256.Sum256(body)})
	}
	list := imagetest.Encode(t, files)
	data = append(data, list...)
	return imagetest.Layer{Blob: data, Desc: ocispec.Descriptor{
		MediaType: toyMedia, Digest: digest.FromBytes(data), Size: int64(len(data)),
		Annotations: map[string]string{toyList: fmt.Sprintf("%s:%d", digest.FromBytes(list), len(list))},
	}}
}

// TestToyFormat: a format is one file. Its layers are read by parts, and what is wrong with one is said.
func TestToyFormat(t *testing.T) {
	small, large := imagetest.Noise(1, 5000), imagetest.Noise(2, 3<<20)
	good := toyLayer(t, large, small)
	bad := toyLayer(t, large, small, small)
	bad.Desc.Annotations = good.Desc.Annotations
	im := imagetest.NewImage(t, "app", nil, good)
	o := imagetest.NewOrigin(t, im, imagetest.NewImage(t, "bad", nil, bad))
	l := newOf(t, o, Options{Formats: []format.Format{toy{}}})
	src := sourceOf(o, im)
	if err := l.Refuses(&src); err != nil || l.Whole(&src) {
		t.Fatalf("refused: %v; read whole: %v", err, l.Whole(&src))
	}
	f, tree, err := l.Image(t.Context(), &src)
	if err != nil || tree != nil {
		t.Fatalf("got %v, %v", tree, err)
	}
	if got := l.FormatOf(&src, f); got != "toy" {
		t.Errorf("its format is %q", got)
	}
	files, err := erofs.NewReader(f.Image(), f.MetaSize())
	if err != nil {
		t.Fatal(err)
	}
	n, found, _, _, err := files.Find("f1")
	if err != nil || !found {
		t.Fatalf("found %v, %v", found, err)
	}
	got := make([]byte, n.Size)
	if _, err := f.ReadAt(t.Context(), got, n.Data); err != nil || !bytes.Equal(got, small) {
		t.Errorf("read %d bytes that differ, or %v", len(got), err)
	}
	if st := f.Stats(); st.Fetched >= int64(len(large)) {
		t.Errorf("%d bytes were fetched", st.Fetched)
	}
	wrong := src
	wrong.Repo.Path, wrong.Descriptor = "bad", bad.Desc
	if _, _, err := l.Image(t.Context(), &wrong); !errors.Is(err, ErrNotLazy) || !errors.Is(err, layout.ErrInvalid) {
		t.Errorf("with another layer's list: %v", err)
	}
	wrong.Descriptor.Annotations = nil
	if err := l.Refuses(&wrong); !errors.Is(err, ErrNotLazy) {
		t.Errorf("without a list: %v", err)
	}
}
