package snapshotter

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/fs/convert"
)

// member is a member of a layer's archive: a regular file, unless its header says something else.
type member struct {
	tar.Header
	body []byte
}

func file(name string, body []byte) member {
	return member{tar.Header{Name: name, Mode: 0o644, Typeflag: tar.TypeReg}, body}
}

func program(name string, body []byte) member {
	return member{tar.Header{Name: name, Mode: 0o755, Typeflag: tar.TypeReg}, body}
}

func dir(name string, mode int64) member {
	return member{tar.Header{Name: name + "/", Mode: mode, Typeflag: tar.TypeDir}, nil}
}

func link(name, target string) member {
	return member{tar.Header{Name: name, Linkname: target, Mode: 0o777, Typeflag: tar.TypeSymlink}, nil}
}

// noise returns n bytes that do not compress, the same for each seed.
func noise(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 7))
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(r.Uint32())
	}
	return p
}

// archive returns a tar of members. Directories that are not among them are implicit.
func archive(t testing.TB, members ...member) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, m := range members {
		m.Size, m.ModTime = int64(len(m.body)), time.Unix(1700000000, 0)
		if err := w.WriteHeader(&m.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(m.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// layer is a layer of an image that a test makes.
type layer struct {
	desc   ocispec.Descriptor
	blob   []byte
	diffID digest.Digest
}

func (l layer) digest() digest.Digest { return l.desc.Digest }

func packed(mediaType string, blob, plain []byte) layer {
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(blob), Size: int64(len(blob))}
	return layer{desc, blob, digest.FromBytes(plain)}
}

// tarLayer has no index, and is not compressed.
func tarLayer(t testing.TB, members ...member) layer {
	t.Helper()
	plain := archive(t, members...)
	return packed(ocispec.MediaTypeImageLayer, plain, plain)
}

// gzipLayer has no index.
func gzipLayer(t testing.TB, members ...member) layer {
	t.Helper()
	plain := archive(t, members...)
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return packed(ocispec.MediaTypeImageLayerGzip, out.Bytes(), plain)
}

// zstdLayer has no index.
func zstdLayer(t testing.TB, members ...member) layer {
	t.Helper()
	plain := archive(t, members...)
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	var out []byte
	for part := range slices.Chunk(plain, 1<<20) { // a frame each, so that it can be read by parts
		out = w.EncodeAll(part, out)
	}
	return packed(ocispec.MediaTypeImageLayerZstd, out, plain)
}

func converted(t testing.TB, o convert.Options, members ...member) layer {
	t.Helper()
	plain := archive(t, members...)
	if o.ChunkSize == 0 {
		o.ChunkSize = 16 << 10
	}
	r, err := convert.Layer(t.Context(), bytes.NewReader(plain), int64(len(plain)), o)
	if err != nil {
		t.Fatal(err)
	}
	defer r.File.Close()
	blob, err := io.ReadAll(io.NewSectionReader(r.File, 0, r.Descriptor.Size))
	if err != nil {
		t.Fatal(err)
	}
	return layer{r.Descriptor, blob, r.DiffID}
}

// estargzLayer has an index that the manifest vouches for.
func estargzLayer(t testing.TB, members ...member) layer {
	t.Helper()
	return converted(t, convert.Options{}, members...)
}

// zstdChunkedLayer has one of zstd:chunked.
func zstdChunkedLayer(t testing.TB, members ...member) layer {
	t.Helper()
	return converted(t, convert.Options{Format: convert.ZstdChunked}, members...)
}

// image is an image that a test makes.
type image struct {
	path, tag        string // in the registry
	layers           []layer
	manifest, config []byte
	target           ocispec.Descriptor
	configDesc       ocispec.Descriptor
	chainIDs         []digest.Digest
}

// newImage makes an image of layers, the lowest first, that runs a command.
func newImage(t testing.TB, path string, command []string, layers ...layer) *image {
	t.Helper()
	config := ocispec.Image{Config: ocispec.ImageConfig{Cmd: command}}
	config.RootFS.Type = "layers"
	for _, l := range layers {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, l.diffID)
	}
	return imageOf(t, path, config, layers...)
}

// imageOf makes an image with a configuration, which may be wrong.
func imageOf(t testing.TB, path string, config ocispec.Image, layers ...layer) *image {
	t.Helper()
	im := &image{path: path, tag: "1", layers: layers, config: encode(t, config)}
	im.configDesc = ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(im.config), Size: int64(len(im.config)),
	}
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: im.configDesc,
	}
	for _, l := range layers {
		m.Layers = append(m.Layers, l.desc)
	}
	im.manifest = encode(t, m)
	im.target = ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(im.manifest), Size: int64(len(im.manifest)),
	}
	im.chainIDs = identity.ChainIDs(append([]digest.Digest{}, config.RootFS.DiffIDs...))
	return im
}

func encode(t testing.TB, v any) []byte {
	t.Helper()
	p, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return p
}
