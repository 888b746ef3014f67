package imagetest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/fs/convert"
	"github.com/remora-storage/remora/fs/format"
	"github.com/remora-storage/remora/fs/format/estargz"
	"github.com/remora-storage/remora/fs/format/zstdchunked"
	"github.com/remora-storage/remora/fs/scan"
	"github.com/remora-storage/remora/internal/tartest"
)

// Member is a member of a layer's archive: a regular file, unless its header says something else.
type Member = tartest.Member

// File is a regular file.
func File(name string, body []byte) Member {
	return Member{Header: tar.Header{Name: name, Mode: 0o644, Typeflag: tar.TypeReg}, Body: body}
}

// Program is a file that can be run.
func Program(name string, body []byte) Member {
	return Member{Header: tar.Header{Name: name, Mode: 0o755, Typeflag: tar.TypeReg}, Body: body}
}

// Dir is a directory.
func Dir(name string, mode int64) Member {
	return Member{Header: tar.Header{Name: name + "/", Mode: mode, Typeflag: tar.TypeDir}}
}

// Link is a symbolic link.
func Link(name, target string) Member {
	return Member{Header: tar.Header{Name: name, Linkname: target, Mode: 0o777, Typeflag: tar.TypeSymlink}}
}

// Formats are those of the layers that are made here.
var Formats = []format.Format{estargz.Format{}, zstdchunked.Format{}}

// Noise returns n bytes that do not compress, the same for each seed.
func Noise(seed uint64, n int) []byte { return tartest.Noise(seed, n) }

// Layer is a layer of an image that a test makes.
type Layer struct {
	Desc   ocispec.Descriptor
	Blob   []byte
	DiffID digest.Digest
}

// Digest returns that of the layer's blob.
func (l Layer) Digest() digest.Digest { return l.Desc.Digest }

func packed(mediaType string, blob, plain []byte) Layer {
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(blob), Size: int64(len(blob))}
	return Layer{desc, blob, digest.FromBytes(plain)}
}

// TarLayer has no index, and is not compressed.
func TarLayer(t testing.TB, members ...Member) Layer {
	t.Helper()
	plain := tartest.Archive(t, members...)
	return packed(ocispec.MediaTypeImageLayer, plain, plain)
}

// GzipLayer has no index.
func GzipLayer(t testing.TB, members ...Member) Layer {
	t.Helper()
	plain := tartest.Archive(t, members...)
	var out bytes.Buffer
	w, err := gzip.NewWriterLevel(&out, gzip.BestSpeed) // which the race detector makes slow enough
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return packed(ocispec.MediaTypeImageLayerGzip, out.Bytes(), plain)
}

// ZstdLayer has no index.
func ZstdLayer(t testing.TB, members ...Member) Layer {
	t.Helper()
	plain := tartest.Archive(t, members...)
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

// Converted is a layer that our converter has made.
func Converted(t testing.TB, o convert.Options, members ...Member) Layer {
	t.Helper()
	plain := tartest.Archive(t, members...)
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
	return Layer{r.Descriptor, blob, r.DiffID}
}

// EstargzLayer has an index that the manifest vouches for.
func EstargzLayer(t testing.TB, members ...Member) Layer {
	t.Helper()
	return Converted(t, convert.Options{}, members...)
}

// ZstdChunkedLayer has one of zstd:chunked.
func ZstdChunkedLayer(t testing.TB, members ...Member) Layer {
	t.Helper()
	return Converted(t, convert.Options{Format: convert.ZstdChunked}, members...)
}

// Image is an image that a test makes.
type Image struct {
	Path, Tag        string // in the registry
	Layers           []Layer
	Manifest, Config []byte
	Target           ocispec.Descriptor
	ConfigDesc       ocispec.Descriptor
	ChainIDs         []digest.Digest
}

// NewImage makes an image of layers, the lowest first, that runs a command.
func NewImage(t testing.TB, path string, command []string, layers ...Layer) *Image {
	t.Helper()
	config := ocispec.Image{Config: ocispec.ImageConfig{Cmd: command}}
	config.RootFS.Type = "layers"
	for _, l := range layers {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, l.DiffID)
	}
	return ImageOf(t, path, config, layers...)
}

// ImageOf makes an image with a configuration, which may be wrong.
func ImageOf(t testing.TB, path string, config ocispec.Image, layers ...Layer) *Image {
	t.Helper()
	im := &Image{Path: path, Tag: "1", Layers: layers, Config: Encode(t, config)}
	im.ConfigDesc = ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(im.Config), Size: int64(len(im.Config)),
	}
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: im.ConfigDesc,
	}
	for _, l := range layers {
		m.Layers = append(m.Layers, l.Desc)
	}
	im.Manifest = Encode(t, m)
	im.Target = ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(im.Manifest), Size: int64(len(im.Manifest)),
	}
	im.ChainIDs = identity.ChainIDs(append([]digest.Digest{}, config.RootFS.DiffIDs...))
	return im
}

// Encode returns JSON.
func Encode(t testing.TB, v any) []byte {
	t.Helper()
	p, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// LogOf writes a log to a test's output.
func LogOf(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// IndexOf makes the index of a layer as an import does.
func IndexOf(t *testing.T, l Layer) []byte {
	t.Helper()
	codec, _ := scan.CodecOf(l.Desc.MediaType)
	found, err := scan.Scan(t.Context(), strings.NewReader(string(l.Blob)), codec, scan.Options{})
	if err != nil {
		t.Fatal(err)
	}
	data, ok := found.Index()
	if !ok {
		t.Fatal("the layer cannot be read by parts")
	}
	return data
}

// Large is a layer of which an index saves most.
func Large(t testing.TB, make func(testing.TB, ...Member) Layer) (l Layer, small, rest []byte) {
	t.Helper()
	small, rest = Noise(1, 4000), Noise(2, 6<<20)
	return make(t, File("small", small), File("rest", rest)), small, rest
}
