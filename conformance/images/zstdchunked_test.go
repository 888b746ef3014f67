package images_test

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	stargz "github.com/containerd/stargz-snapshotter/estargz"
	stargzzstd "github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/conformance/testbed"
)

// makers make zstd:chunked of a tar, each by another project's code.
var makers = map[string]func(t *testing.T, plain []byte) (blob []byte, annotations map[string]string, diffID digest.Digest){
	"second generation, by Podman's library": func(t *testing.T, plain []byte) ([]byte, map[string]string, digest.Digest) {
		dir := t.TempDir()
		tar, blob := filepath.Join(dir, "tar"), filepath.Join(dir, "blob")
		testbed.Must(t, os.WriteFile(tar, plain, 0o600))
		out, err := testbed.Output(t.Context(), nil, "podman-chunked", "write", tar, blob)
		testbed.Must(t, err)
		annotations := map[string]string{}
		testbed.Must(t, json.Unmarshal([]byte(out), &annotations))
		p, err := os.ReadFile(blob)
		testbed.Must(t, err)
		return p, annotations, digest.FromBytes(plain)
	},
	"first generation, by stargz-snapshotter's library": func(t *testing.T, plain []byte) ([]byte, map[string]string, digest.Digest) {
		annotations := map[string]string{}
		type compression struct {
			*stargzzstd.Compressor
			*stargzzstd.Decompressor
		}
		b, err := stargz.Build(io.NewSectionReader(bytes.NewReader(plain), 0, int64(len(plain))),
			stargz.WithCompression(compression{&stargzzstd.Compressor{CompressionLevel: zstd.SpeedDefault,
				Metadata: annotations}, &stargzzstd.Decompressor{}}))
		testbed.Must(t, err)
		p, err := io.ReadAll(b)
		testbed.Must(t, err)
		testbed.Must(t, b.Close())
		annotations[stargz.TOCJSONDigestAnnotation] = b.TOCDigest().String()
		return p, annotations, b.DiffID()
	},
}

// TestZstdChunkedOfOthers pulls images of zstd:chunked that other programs made, of both generations.
func TestZstdChunkedOfOthers(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{})
	p := testbed.Programs[2]
	layout, err := p.Layout(t.Context())
	testbed.Must(t, err)
	src := s.Ref("nginx:src")
	testbed.Must(t, s.Push(t.Context(), layout, "src", "nginx:src"))
	for name, make := range makers {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "layout")
			testbed.Must(t, os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o755))
			var layers []ocispec.Descriptor
			var diffIDs []digest.Digest
			for _, plain := range plainLayers(t, layout) {
				blob, annotations, diffID := make(t, plain)
				d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerZstd, Digest: digest.FromBytes(blob),
					Size: int64(len(blob)), Annotations: annotations}
				testbed.Must(t, os.WriteFile(filepath.Join(dir, "blobs", "sha256", d.Digest.Encoded()), blob, 0o644))
				layers, diffIDs = append(layers, d), append(diffIDs, diffID)
			}
			testbed.Must(t, testbed.WriteLayout(dir, "src", layers, diffIDs))
			repo := strings.ReplaceAll(strings.ToLower(strings.SplitN(name, ",", 2)[0]), " ", "-")
			testbed.Must(t, s.Push(t.Context(), dir, "src", repo+":1"))
			out, err := s.Snapctl(t.Context(), "pull", s.Ref(repo+":1"))
			testbed.Must(t, err)
			if strings.Count(out, " lazy") != len(layers) {
				t.Errorf("not all layers are lazy:\n%s", out)
			}
			testbed.RunImage(t, s, s.Ref(repo+":1"), repo, "remora", p)
			// These have a chunk for each file, so that the rest would be five thousand requests.
			_, err = s.Snapctl(t.Context(), "fetch", "--cache-only", s.Ref(repo+":1")) // the diffIDs
			testbed.Must(t, err)
			sameTree(t, s, s.Ref(repo+":1"), src, func(string) bool { return false })
		})
	}
}

// plainLayers returns the tars of an image's layers.
func plainLayers(t *testing.T, layout string) (all [][]byte) {
	t.Helper()
	for _, l := range manifestOf(t, layout, "src").Layers {
		f, err := os.Open(filepath.Join(layout, "blobs", "sha256", l.Digest.Encoded()))
		testbed.Must(t, err)
		zr, err := gzip.NewReader(f)
		testbed.Must(t, err)
		plain, err := io.ReadAll(zr)
		testbed.Must(t, err)
		testbed.Must(t, f.Close())
		all = append(all, plain)
	}
	return all
}

func manifestOf(t *testing.T, layout, tag string) ocispec.Manifest {
	t.Helper()
	m, err := testbed.ManifestOf(layout, tag)
	testbed.Must(t, err)
	return m
}

// TestPodmanReads has the library that Podman pulls by take a converted layer chunk by chunk, and
// compares what it makes of it with the tree that the layer is of.
func TestPodmanReads(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{})
	p := testbed.Programs[2]
	layout, err := p.Layout(t.Context())
	testbed.Must(t, err)
	dir := t.TempDir()
	convert(t, s, "--format", "zstdchunked", "oci:"+layout+":src", "oci:"+dir+":lazy")
	base := manifestOf(t, dir, "lazy").Layers[0]
	annotations, err := json.Marshal(base.Annotations)
	testbed.Must(t, err)
	root := t.TempDir()
	out, err := testbed.Output(t.Context(), nil, "podman-chunked", "apply", filepath.Join(dir, "blobs", "sha256",
		base.Digest.Encoded()), string(annotations), root)
	testbed.Must(t, err)
	got, err := testbed.Tree(strings.TrimSpace(out))
	testbed.Must(t, err)
	tree, err := testbed.BaseTree(t.Context())
	testbed.Must(t, err)
	want, err := testbed.Tree(tree)
	testbed.Must(t, err)
	// The library leaves devices out and gives symbolic links the time of now: files are compared.
	files := func(all map[string]testbed.Entry) map[string]testbed.Entry {
		for path, e := range all {
			if e.Mode&unix.S_IFMT != unix.S_IFREG || strings.HasSuffix(path, "prefetch.landmark") {
				delete(all, path)
			}
		}
		return all
	}
	if err := testbed.CompareTrees(files(got), files(want), func(string) bool { return false }); err != nil {
		t.Error(err)
	}
	if len(want) < 5000 {
		t.Errorf("only %d files", len(want))
	}
}
