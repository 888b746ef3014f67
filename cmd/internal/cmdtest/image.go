package cmdtest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/internal/tartest"
)

// A Doc is a blob or a manifest. A blob needs no media type.
type Doc struct {
	MediaType string
	Data      []byte
}

// An Image is everything that belongs to an image, or to an index of several.
type Image struct {
	Target ocispec.Descriptor
	Docs   map[digest.Digest]Doc
}

func isManifest(mediaType string) bool {
	return images.IsManifestType(mediaType) || images.IsIndexType(mediaType)
}

func (img *Image) add(mediaType string, data []byte) ocispec.Descriptor {
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	doc := Doc{Data: data}
	if isManifest(mediaType) {
		doc.MediaType = mediaType
	}
	img.Docs[d.Digest] = doc
	return d
}

func (img *Image) document(t testing.TB, mediaType string, v any) ocispec.Descriptor {
	t.Helper()
	p, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return img.add(mediaType, p)
}

// A File is an entry of a layer.
type File struct {
	Path string // without a slash in front; a directory's ends in one
	Data []byte
}

// Noise returns n bytes that do not compress, always the same for a seed.
func Noise(seed uint64, n int) []byte { return tartest.Noise(seed, n) }

// Tar returns a layer that is not packed.
func Tar(t testing.TB, files ...File) []byte {
	t.Helper()
	var members []tartest.Member
	for _, f := range files {
		m := tartest.Member{Header: tar.Header{Name: f.Path, Typeflag: tar.TypeReg, Mode: 0o755}, Body: f.Data}
		if f.Path[len(f.Path)-1] == '/' {
			m.Typeflag = tar.TypeDir
		}
		members = append(members, m)
	}
	return tartest.Archive(t, members...)
}

// Types are the media types of an image.
type Types struct{ Manifest, Config, Layer string }

// Media types of images as OCI and as Docker has them.
var (
	OCI    = Types{ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageConfig, ocispec.MediaTypeImageLayerGzip}
	Docker = Types{images.MediaTypeDockerSchema2Manifest, images.MediaTypeDockerSchema2Config, images.MediaTypeDockerSchema2LayerGzip}
)

// NewImage makes an image for this machine with one gzip layer of each list of files.
func NewImage(t testing.TB, types Types, layers ...[]File) *Image {
	t.Helper()
	return ImageFor(t, types, ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}, layers...)
}

// ImageFor is NewImage for another platform.
func ImageFor(t testing.TB, types Types, p ocispec.Platform, layers ...[]File) *Image {
	t.Helper()
	img := &Image{Docs: map[digest.Digest]Doc{}}
	config := ocispec.Image{Platform: p, Config: ocispec.ImageConfig{Cmd: []string{"/bin/sh"}}, RootFS: ocispec.RootFS{Type: "layers"}}
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: types.Manifest}
	for _, files := range layers {
		plain := Tar(t, files...)
		var b bytes.Buffer
		zw := gzip.NewWriter(&b)
		if _, err := zw.Write(plain); err != nil {
			t.Fatal(err)
		}
		if err := zw.Close(); err != nil {
			t.Fatal(err)
		}
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(plain))
		m.Layers = append(m.Layers, img.add(types.Layer, b.Bytes()))
	}
	m.Config = img.document(t, types.Config, config)
	img.Target = img.document(t, types.Manifest, m)
	img.Target.Platform = &p
	return img
}

// NewIndex makes an index of images.
func NewIndex(t testing.TB, mediaType string, all ...*Image) *Image {
	t.Helper()
	img := &Image{Docs: map[digest.Digest]Doc{}}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: mediaType}
	for _, one := range all {
		maps.Copy(img.Docs, one.Docs)
		index.Manifests = append(index.Manifests, one.Target)
	}
	img.Target = img.document(t, mediaType, index)
	return img
}

// Manifest returns the image's manifest.
func (img *Image) Manifest(t testing.TB) (m ocispec.Manifest) {
	t.Helper()
	img.Read(t, img.Target.Digest, &m)
	return m
}

// Config returns the image's configuration.
func (img *Image) Config(t testing.TB) (c ocispec.Image) {
	t.Helper()
	img.Read(t, img.Manifest(t).Config.Digest, &c)
	return c
}

// Read decodes a document of the image.
func (img *Image) Read(t testing.TB, d digest.Digest, into any) {
	t.Helper()
	doc, ok := img.Docs[d]
	if !ok {
		t.Fatalf("%s is not there", d)
	}
	if err := json.Unmarshal(doc.Data, into); err != nil {
		t.Fatal(err)
	}
}

// WriteLayout writes an OCI layout that holds the image under a tag.
func (img *Image) WriteLayout(t testing.TB, dir, tag string) {
	t.Helper()
	write := func(name string, data []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o755); err != nil {
		t.Fatal(err)
	}
	for d, doc := range img.Docs {
		write(filepath.Join("blobs", "sha256", d.Encoded()), doc.Data)
	}
	target := img.Target
	target.Annotations = map[string]string{ocispec.AnnotationRefName: tag}
	index, err := json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []ocispec.Descriptor{target}})
	if err != nil {
		t.Fatal(err)
	}
	write("index.json", index)
	write("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
}

// ReadLayout reads an image from an OCI layout.
func ReadLayout(dir, tag string) (*Image, error) {
	p, err := os.ReadFile(filepath.Join(dir, "index.json"))
	if err != nil {
		return nil, err
	}
	var index ocispec.Index
	if err := json.Unmarshal(p, &index); err != nil {
		return nil, err
	}
	img := &Image{Docs: map[digest.Digest]Doc{}}
	blobs, err := filepath.Glob(filepath.Join(dir, "blobs", "sha256", "*"))
	if err != nil {
		return nil, err
	}
	for _, b := range blobs {
		p, err := os.ReadFile(b)
		if err != nil {
			return nil, err
		}
		if got := digest.FromBytes(p); got.Encoded() != filepath.Base(b) {
			return nil, fmt.Errorf("%s holds %s", b, got)
		}
		img.Docs[digest.FromBytes(p)] = Doc{Data: p}
	}
	for _, d := range index.Manifests {
		if d.Annotations[ocispec.AnnotationRefName] == tag {
			img.Target = d
			return img, nil
		}
	}
	return nil, fmt.Errorf("no image %s in %s", tag, dir)
}

// WithManifest is an image with the blobs of another one and a manifest of its own.
func WithManifest(t testing.TB, of *Image, m ocispec.Manifest) *Image {
	t.Helper()
	img := &Image{Docs: maps.Clone(of.Docs)}
	img.Target = img.document(t, m.MediaType, m)
	return img
}
