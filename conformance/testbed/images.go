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
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
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
		Args: []string{"sh", "-c",
			`redis-server --port 0 --unixsocket /tmp/r.sock --save "" >/dev/null & until redis-cli -s /tmp/r.sock ping ` +
				`2>/dev/null; do :; done; redis-cli -s /tmp/r.sock shutdown nosave`}, Want: "PONG"},
	{Name: "nginx", Packages: []string{"nginx"},
		Args: []string{"sh", "-c", `nginx && test -s /run/nginx.pid && echo ok && nginx -s stop`}, Want: "ok"},
}

// BenchPrograms are what cold starts are measured with: small and large, compiled and interpreted.
var BenchPrograms = append(slices.Clone(Programs),
	Program{Name: "node", Packages: []string{"nodejs"},
		Args: []string{"node", "-e", `require("http").createServer().listen(0, () => { console.log("ok"); process.exit(0) })`}, Want: "ok"},
	Program{Name: "java", Packages: []string{"openjdk-17-jre-headless"},
		Args: []string{"sh", "-c",
			`java -XshowSettings:properties -version 2>/dev/null; java -version 2>&1 | grep -q Runtime && echo ok`}, Want: "ok"},
	Program{Name: "scientific", Packages: []string{"python3-numpy", "python3-scipy"},
		Args: []string{"python3", "-c", `import numpy, scipy.linalg; scipy.linalg.lu(numpy.eye(3)); print("ok")`}, Want: "ok"},
)

// FilesList is the committed list of the files that a program opens.
func (p Program) FilesList() string {
	return filepath.Join(Repo(), "conformance", "testbed", "testdata", p.Name+".files")
}

// lockWork is held while something that is kept is made: callers that want it too wait, whichever process they are in.
func lockWork() (unlock func(), err error) {
	if err := os.MkdirAll(Work(), 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(Work(), "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return func() { f.Close() }, nil
}

// Layout returns the directory of an OCI layout that holds the program's image under the tag
// "src", making it if it is not there: a layer of Debian's base system, one of the packages, one
// of a configuration file. It is made once and kept.
func (p Program) Layout(ctx context.Context) (string, error) {
	unlock, err := lockWork()
	if err != nil {
		return "", err
	}
	defer unlock()
	return p.layout(ctx)
}

func (p Program) layout(ctx context.Context) (string, error) {
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
	unfinished := dir + ".new"
	if err := os.RemoveAll(unfinished); err != nil {
		return "", err
	}
	if err := WriteImage(ctx, unfinished, "src", []Diff{{"", base}, {base, full}, {"", own}}); err != nil {
		return "", err
	}
	return dir, os.Rename(unfinished, dir)
}

// BaseTree returns the directory that the first layer of every program's image is made of.
func BaseTree(ctx context.Context) (string, error) {
	unlock, err := lockWork()
	if err != nil {
		return "", err
	}
	defer unlock()
	return tree(ctx, "base", nil)
}

// Rebuild writes the program's image into a layout, under the tag "src", as a later build would make
// it: twenty files of what the program reads have changed, and one that comes before all others is new.
func (p Program) Rebuild(ctx context.Context, dir string) error {
	unlock, err := lockWork()
	if err != nil {
		return err
	}
	defer unlock()
	base, err := tree(ctx, "base", nil)
	if err != nil {
		return err
	}
	full, err := tree(ctx, p.Name, p.Packages)
	if err != nil {
		return err
	}
	work, err := os.MkdirTemp(Work(), "rebuild-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	next := filepath.Join(work, "tree")
	if _, err := Output(ctx, nil, "cp", "-al", full, next); err != nil {
		return err
	}
	list, err := os.ReadFile(p.FilesList())
	if err != nil {
		return err
	}
	changed := 0
	for _, name := range strings.Fields(string(list)) {
		path := filepath.Join(next, name)
		st, err := os.Lstat(path)
		if err != nil || !st.Mode().IsRegular() || !strings.HasSuffix(name, ".py") || changed == 20 {
			continue
		}
		if err := replace(path, "\n# changed\n", st); err != nil {
			return err
		}
		changed++
	}
	if changed == 0 {
		return fmt.Errorf("%s lists no file that can be changed", p.FilesList())
	}
	if err := os.WriteFile(filepath.Join(next, "bin", "AAA-first"), make([]byte, 100_000), 0o644); err != nil {
		return err
	}
	own, err := ownTree(p.Name)
	if err != nil {
		return err
	}
	defer os.RemoveAll(own)
	return WriteImage(ctx, dir, "src", []Diff{{"", base}, {base, next}, {"", own}})
}

// replace puts a file with more at its end in the place of one, without touching the old one's other
// names.
func replace(path, more string, like os.FileInfo) error {
	body, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil {
		return err
	}
	return os.WriteFile(path, append(body, more...), like.Mode().Perm())
}

// tree returns a directory with a Debian system of the packages.
func tree(ctx context.Context, name string, packages []string) (string, error) {
	dir := filepath.Join(Work(), "trees", name)
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	unfinished := dir + ".new"
	// A mmdebstrap that was killed leaves /proc and /sys mounted in it.
	if err := errors.Join(unmountUnder(unfinished), os.RemoveAll(unfinished)); err != nil {
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
	if _, err := Output(ctx, env, "mmdebstrap", append(args, Suite, unfinished)...); err != nil {
		return "", err
	}
	return dir, os.Rename(unfinished, dir)
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

// WritePlainTar writes an OCI layout with one image of one layer, a tar that is not packed.
func WritePlainTar(dir, tag string, write func(*tar.Writer) error) error {
	blobs := filepath.Join(dir, "blobs", "sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(blobs, "layer-")
	if err != nil {
		return err
	}
	defer f.Close()
	sum := digest.Canonical.Digester()
	tw := tar.NewWriter(io.MultiWriter(f, sum.Hash()))
	if err := errors.Join(write(tw), tw.Close()); err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if err := os.Rename(f.Name(), filepath.Join(blobs, sum.Digest().Encoded())); err != nil {
		return err
	}
	layer := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: sum.Digest(), Size: st.Size()}
	return WriteLayout(dir, tag, []ocispec.Descriptor{layer}, []digest.Digest{sum.Digest()})
}

// A Blob is a layer as it is in a registry.
type Blob struct {
	MediaType string
	Data      []byte
	DiffID    digest.Digest
	URLs      []string // where it may be had elsewhere

	Annotations map[string]string // of its descriptor
}

// WriteBlobs writes an OCI layout with one image of the given layers.
func WriteBlobs(dir, tag string, layers ...Blob) error {
	blobs := filepath.Join(dir, "blobs", "sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return err
	}
	var descs []ocispec.Descriptor
	var diffIDs []digest.Digest
	for _, l := range layers {
		d := ocispec.Descriptor{
			MediaType: l.MediaType, Digest: digest.FromBytes(l.Data), Size: int64(len(l.Data)), URLs: l.URLs, Annotations: l.Annotations,
		}
		if err := os.WriteFile(filepath.Join(blobs, d.Digest.Encoded()), l.Data, 0o644); err != nil {
			return err
		}
		descs, diffIDs = append(descs, d), append(diffIDs, l.DiffID)
	}
	return WriteLayout(dir, tag, descs, diffIDs)
}

// WriteGzipLayout writes an image of a gzip layer that is in the layout's blobs.
func WriteGzipLayout(dir, tag string, blob digest.Digest, size int64, diffID digest.Digest) error {
	layer := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: blob, Size: size}
	return WriteLayout(dir, tag, []ocispec.Descriptor{layer}, []digest.Digest{diffID})
}

// ManifestOf reads the manifest of an image in an OCI layout.
func ManifestOf(dir, tag string) (m ocispec.Manifest, err error) {
	read := func(path string, into any) {
		p, rerr := os.ReadFile(path)
		if rerr == nil {
			rerr = json.Unmarshal(p, into)
		}
		err = errors.Join(err, rerr)
	}
	var index ocispec.Index
	read(filepath.Join(dir, "index.json"), &index)
	for _, d := range index.Manifests {
		if d.Annotations[ocispec.AnnotationRefName] == tag {
			read(filepath.Join(dir, "blobs", "sha256", d.Digest.Encoded()), &m)
			return m, err
		}
	}
	return m, errors.Join(err, fmt.Errorf("no image %s in %s", tag, dir))
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
	return WriteLayoutCmd(dir, tag, layers, diffIDs, "/bin/sh")
}

// WriteLayoutCmd is WriteLayout of an image with a command of its own.
func WriteLayoutCmd(dir, tag string, layers []ocispec.Descriptor, diffIDs []digest.Digest, cmd ...string) error {
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
		Config:   ocispec.ImageConfig{Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, Cmd: cmd},
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

// TagIndex adds an index of manifests, which are in the layout already, under a tag.
func TagIndex(dir, tag string, manifests []ocispec.Descriptor) error {
	p, err := json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex, Manifests: manifests})
	if err != nil {
		return err
	}
	d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex, Digest: digest.FromBytes(p), Size: int64(len(p)),
		Annotations: map[string]string{ocispec.AnnotationRefName: tag}}
	if err := os.WriteFile(filepath.Join(dir, "blobs", "sha256", d.Digest.Encoded()), p, 0o644); err != nil {
		return err
	}
	path := filepath.Join(dir, "index.json")
	var index ocispec.Index
	old, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(old, &index)
	}
	if err != nil {
		return err
	}
	index.Manifests = append(index.Manifests, d)
	if p, err = json.Marshal(index); err != nil {
		return err
	}
	return os.WriteFile(path, p, 0o644)
}
