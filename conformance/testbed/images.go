package testbed

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Suite is the Debian release that images are made of.
const Suite = "bookworm"

// A Program is a real image and what is run in it.
type Program struct {
	Name     string
	Packages []string
	Args     []string
	Want     string // a line of the output that says the program works
}

// Programs are the images of the benchmarks and of most tests.
var Programs = []Program{
	{Name: "python", Packages: []string{"python3", "ca-certificates"},
		Args: []string{"python3", "-c", `import json,ssl,http.server; print("ok")`}, Want: "ok"},
	{Name: "redis", Packages: []string{"redis-server"},
		Args: []string{"sh", "-c", `redis-server --port 0 --unixsocket /tmp/r.sock --save "" >/dev/null & until redis-cli -s /tmp/r.sock ping 2>/dev/null; do :; done; redis-cli -s /tmp/r.sock shutdown nosave`}, Want: "PONG"},
	{Name: "nginx", Packages: []string{"nginx"},
		Args: []string{"sh", "-c", `nginx && test -s /run/nginx.pid && echo ok && nginx -s stop`}, Want: "ok"},
}

// FilesList is the committed list of the files that a program opens.
func (p Program) FilesList() string {
	return filepath.Join(Repo(), "conformance", "testdata", p.Name+".files")
}

// Layout returns the directory of an OCI layout that holds the program's image under the tag
// "src", making it if it is not there: a layer of Debian's base system, one of the packages, one
// of a configuration file. It is made once and kept.
func (p Program) Layout(ctx context.Context) (string, error) {
	dir := filepath.Join(Work(), "images", p.Name)
	if _, err := os.Stat(filepath.Join(dir, "index.json")); err == nil {
		return dir, nil
	}
	base, err := tree(ctx, "base", nil)
	if err != nil {
		return "", err
	}
	full, err := tree(ctx, p.Name, p.Packages)
	if err != nil {
		return "", err
	}
	own, err := ownTree(p.Name)
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(own)
	making := dir + ".new"
	if err := os.RemoveAll(making); err != nil {
		return "", err
	}
	if err := WriteImage(ctx, making, "src", []Diff{{"", base}, {base, full}, {"", own}}); err != nil {
		return "", err
	}
	return dir, os.Rename(making, dir)
}

// tree returns a directory with a Debian system of the packages.
func tree(ctx context.Context, name string, packages []string) (string, error) {
	dir := filepath.Join(Work(), "trees", name)
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	making := dir + ".new"
	if err := os.RemoveAll(making); err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return "", err
	}
	args := []string{"--variant=minbase", "--quiet", "--format=directory", "--skip=output/dev"}
	if len(packages) > 0 {
		args = append(args, "--include="+strings.Join(packages, ","))
	}
	// One moment for all trees, so that what they share is equal.
	env := []string{"SOURCE_DATE_EPOCH=1760000000"}
	if _, err := Output(ctx, env, "mmdebstrap", append(args, Suite, making)...); err != nil {
		return "", err
	}
	return dir, os.Rename(making, dir)
}

// ownTree is what an image's author adds on top.
func ownTree(name string) (string, error) {
	dir, err := os.MkdirTemp("", "own-")
	if err != nil {
		return "", err
	}
	app := filepath.Join(dir, "app")
	err = errors.Join(os.Mkdir(app, 0o755), os.WriteFile(filepath.Join(app, "config.json"), []byte(`{"name":"`+name+`"}`), 0o644))
	when := time.Unix(1760000000, 0)
	for _, p := range []string{filepath.Join(app, "config.json"), app, dir} {
		err = errors.Join(err, os.Chmod(dir, 0o755), os.Chtimes(p, when, when))
	}
	return dir, err
}

// A Diff is a layer: what To has that From, if there is one, has not.
type Diff struct{ From, To string }

// WriteImage writes an OCI layout with one image of gzip layers.
func WriteImage(ctx context.Context, dir, tag string, diffs []Diff) error {
	var layers []func(io.Writer) error
	for _, d := range diffs {
		layers = append(layers, func(w io.Writer) error { return archive.WriteDiff(ctx, w, d.From, d.To) })
	}
	return writeImage(dir, tag, layers)
}

// WriteTars writes an OCI layout with one image of gzip layers, each a tar that a function writes.
func WriteTars(dir, tag string, tars ...func(*tar.Writer) error) error {
	var layers []func(io.Writer) error
	for _, write := range tars {
		layers = append(layers, func(w io.Writer) error {
			tw := tar.NewWriter(w)
			return errors.Join(write(tw), tw.Close())
		})
	}
	return writeImage(dir, tag, layers)
}

// writeImage writes an OCI layout with one image of gzip layers, each a stream that a function
// writes.
func writeImage(dir, tag string, layers []func(io.Writer) error) error {
	blobs := filepath.Join(dir, "blobs", "sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return err
	}
	var descs []ocispec.Descriptor
	var diffIDs []digest.Digest
	for _, write := range layers {
		desc, diffID, err := writeLayer(blobs, write)
		if err != nil {
			return err
		}
		descs, diffIDs = append(descs, desc), append(diffIDs, diffID)
	}
	return WriteLayout(dir, tag, descs, diffIDs)
}

// writeLayer stores a gzip layer of the tar that write makes.
func writeLayer(blobs string, write func(io.Writer) error) (desc ocispec.Descriptor, diffID digest.Digest, err error) {
	f, err := os.CreateTemp(blobs, "layer-")
	if err != nil {
		return desc, "", err
	}
	defer f.Close()
	packed, plain := digest.Canonical.Digester(), digest.Canonical.Digester()
	zw, err := gzip.NewWriterLevel(io.MultiWriter(f, packed.Hash()), 6)
	if err != nil {
		return desc, "", err
	}
	if err := write(io.MultiWriter(zw, plain.Hash())); err != nil {
		return desc, "", err
	}
	if err := zw.Close(); err != nil {
		return desc, "", err
	}
	st, err := f.Stat()
	if err != nil {
		return desc, "", err
	}
	desc = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: packed.Digest(), Size: st.Size()}
	return desc, plain.Digest(), os.Rename(f.Name(), filepath.Join(blobs, desc.Digest.Encoded()))
}

// WriteLayout writes an image's configuration, manifest and index over layers that are in the
// layout's blobs.
func WriteLayout(dir, tag string, layers []ocispec.Descriptor, diffIDs []digest.Digest) error {
	blobs := filepath.Join(dir, "blobs", "sha256")
	put := func(mediaType string, v any) (ocispec.Descriptor, error) {
		p, err := json.Marshal(v)
		if err != nil {
			return ocispec.Descriptor{}, err
		}
		d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(p), Size: int64(len(p))}
		return d, os.WriteFile(filepath.Join(blobs, d.Digest.Encoded()), p, 0o644)
	}
	config, err := put(ocispec.MediaTypeImageConfig, ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH},
		Config:   ocispec.ImageConfig{Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, Cmd: []string{"/bin/sh"}},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: diffIDs},
	})
	if err != nil {
		return err
	}
	manifest, err := put(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: config, Layers: layers,
	})
	if err != nil {
		return err
	}
	manifest.Annotations = map[string]string{ocispec.AnnotationRefName: tag}
	index, err := json.Marshal(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{manifest},
	})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "index.json"), index, 0o644); err != nil {
		return fmt.Errorf("write layout %s: %w", dir, err)
	}
	return nil
}
