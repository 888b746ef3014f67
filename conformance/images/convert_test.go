package images_test

import (
	"archive/tar"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/conformance/testbed"
)

// converted is what tests read of `snapctl convert --json`, by its documented names.
type converted struct {
	Digest   string
	Uploaded int64 `json:"bytes_uploaded"`
	Before   int64 `json:"bytes_before"`
	After    int64 `json:"bytes_after"`
	Layers   []struct{ From, To, How string }
}

func convert(t *testing.T, s *testbed.Stack, args ...string) (c converted) {
	t.Helper()
	out, err := s.Snapctl(t.Context(), append([]string{"convert", "--json"}, args...)...)
	testbed.Must(t, err)
	if err := json.Unmarshal([]byte(out), &c); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return c
}

// smallImage is an image of three layers, with a static program, that is converted in a second.
func smallImage(t *testing.T) (layout string, p testbed.Program) {
	t.Helper()
	body, err := os.ReadFile(filepath.Join(testbed.Repo(), "bin", "snapctl"))
	testbed.Must(t, err)
	program := func(tw *tar.Writer) error {
		err := tw.WriteHeader(&tar.Header{Name: "snapctl", Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(body))})
		if err == nil {
			_, err = tw.Write(body)
		}
		return err
	}
	layout = filepath.Join(t.TempDir(), "small")
	testbed.Must(t, testbed.WriteTars(layout, "src", program, randomLayer(1, 1<<20), randomLayer(2, 1<<20)))
	return layout, testbed.Program{Name: "snapctl", Args: []string{"/snapctl", "--version"}, Want: "snapctl version"}
}

func (c converted) how() (all []string) {
	for _, l := range c.Layers {
		all = append(all, l.How)
	}
	return all
}

// TestConvertFormats: an image converted to each format shows, lazily and unpacked by containerd itself,
// the files of its source, and its program runs.
func TestConvertFormats(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{})
	p := testbed.Programs[1]
	layout, err := p.Layout(t.Context())
	testbed.Must(t, err)
	src := s.Ref("redis:src")
	testbed.Must(t, s.Push(t.Context(), layout, "src", "redis:src"))
	// What a node without Remora unpacks has the files that make the format, too.
	own := func(p string) bool {
		return p == ".prefetch.landmark" || p == ".no.prefetch.landmark" || p == "stargz.index.json"
	}
	for _, format := range []string{"estargz", "zstdchunked"} {
		t.Run(format, func(t *testing.T) {
			lazy, ordinary := s.Ref("redis-"+format+":lazy"), s.Ref("redis-"+format+":ordinary")
			c := convert(t, s, "--format", format, "--prioritize", p.FilesList(), "oci:"+layout+":src", lazy)
			again := convert(t, s, "--format", format, "--prioritize", p.FilesList(), "--jobs", "1", "oci:"+layout+":src", ordinary)
			if again.Digest != c.Digest || again.Uploaded != 0 {
				t.Errorf("converted again: %s with %d bytes uploaded, want %s and 0", again.Digest, again.Uploaded, c.Digest)
			}
			_, err := s.Snapctl(t.Context(), "pull", lazy)
			testbed.Must(t, err)
			sameTree(t, s, lazy, src, func(string) bool { return false })
			testbed.RunImage(t, s, lazy, "redis-"+format, "remora", p)
			onlyFormat(t, s, lazy, format)
			_, err = s.Snapctl(t.Context(), "fetch", "--cache-only", lazy) // the diffID
			testbed.Must(t, err)
			testbed.Must(t, s.PullOrdinary(t.Context(), ordinary, "overlayfs"))
			got, err := testbed.Tree(testbed.MountImage(t, s, ordinary, "overlayfs"))
			testbed.Must(t, err)
			want := ordinaryTree(t, s, src)
			for path := range got {
				if own(path) {
					delete(got, path)
				}
			}
			if err := testbed.CompareTrees(got, want, func(p string) bool { return p == "." || own(p) }); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestConvertPlaces converts from and to everything that an image can be in.
func TestConvertPlaces(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{})
	dir := t.TempDir()
	layout, p := smallImage(t)
	want := convert(t, s, "oci:"+layout+":src", "oci:"+filepath.Join(dir, "layout")+":lazy")
	archive := filepath.Join(dir, "image.tar")
	ref := s.Ref("places:src")
	testbed.Must(t, s.Push(t.Context(), layout, "src", "places:src"))
	testbed.Must(t, s.PullOrdinary(t.Context(), ref, "overlayfs"))
	for _, c := range []struct{ name, from, to string }{
		{"registry to registry", ref, s.Ref("places/other:lazy")},
		{"containerd to containerd", "containerd:" + ref, "containerd:" + s.Ref("places:from-containerd")},
		{"containerd to archive", "containerd:" + ref, "docker-archive:" + archive + ":" + s.Ref("places:archived")},
		{"registry to archive without a name", ref, "docker-archive:" + filepath.Join(dir, "plain.tar")},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := convert(t, s, c.from, c.to); got.Digest != want.Digest {
				t.Errorf("got %s, want %s", got.Digest, want.Digest)
			}
		})
	}
	t.Run("archive is imported by others", func(t *testing.T) {
		_, err := s.Ctr(t.Context(), "images", "import", "--snapshotter", "overlayfs", archive)
		testbed.Must(t, err)
		testbed.RunImage(t, s, s.Ref("places:archived"), "imported", "overlayfs", p)
	})
	t.Run("archive of others is read", func(t *testing.T) {
		file := filepath.Join(dir, "saved.tar")
		if out, err := testbed.Output(t.Context(), nil, "skopeo", "copy", "--quiet", "oci:"+layout+":src",
			"docker-archive:"+file+":saved:1"); err != nil {
			t.Fatal(err, out)
		}
		for _, from := range []string{"docker-archive:" + file, "docker-archive:" + file + ":saved:1"} {
			c := convert(t, s, "--oci", from, s.Ref("places/saved:lazy"))
			if len(c.Layers) != len(want.Layers) {
				t.Errorf("%d layers, want %d", len(c.Layers), len(want.Layers))
			}
		}
		if _, err := s.Snapctl(t.Context(), "convert", "docker-archive:"+file+":other:1",
			s.Ref("places/saved:lazy")); err == nil || !strings.Contains(err.Error(), "saved:1") {
			t.Errorf("a name that is not there: %v", err)
		}
	})
	t.Run("what containerd got runs", func(t *testing.T) {
		testbed.RunImage(t, s, s.Ref("places:from-containerd"), "from-containerd", "overlayfs", p)
	})
}

// TestConvertSparing: what the destination has is not sent again, what another repository of the
// registry has is taken over from there, what is in the format stays, and --dry-run does nothing.
func TestConvertSparing(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{})
	layout, _ := smallImage(t)
	first := convert(t, s, "oci:"+layout+":src", s.Ref("sparing/a:1"))
	if first.Uploaded < first.After || !slices.Equal(first.how(), []string{"converted", "converted", "converted"}) {
		t.Fatalf("%+v", first)
	}
	small := int64(64 << 10) // a configuration and a manifest
	if c := convert(t, s, "oci:"+layout+":src", s.Ref("sparing/a:2")); c.Uploaded != 0 || !slices.Equal(c.how(),
		[]string{"known", "known", "known"}) {
		t.Errorf("to the same repository: %+v", c)
	}
	if c := convert(t, s, "oci:"+layout+":src", s.Ref("sparing/b:1")); c.Uploaded > small || c.Digest != first.Digest {
		t.Errorf("to another repository: %+v", c)
	}
	if c := convert(t, s, "--reuse", s.Ref("sparing/a:1"), s.Ref("sparing/c:1")); c.Uploaded > small ||
		!slices.Equal(c.how(), []string{"reused", "reused", "reused"}) {
		t.Errorf("what is eStargz already: %+v", c)
	}
	if c := convert(t, s, "--dry-run", "--format", "zstdchunked", "oci:"+layout+":src",
		s.Ref("sparing/d:1")); c.Uploaded != 0 || c.Digest != "" || len(c.Layers) != 3 {
		t.Errorf("dry run: %+v", c)
	}
	if _, err := s.Snapctl(t.Context(), "pull", s.Ref("sparing/d:1")); err == nil {
		t.Error("a dry run has made an image")
	}
	dry := filepath.Join(t.TempDir(), "none")
	convert(t, s, "--dry-run", "oci:"+layout+":src", "oci:"+dry+":1")
	if _, err := os.Stat(dry); err == nil {
		t.Error("a dry run has made a directory")
	}
	c := convert(t, s, "--annotation", "org.example.team=storage", "oci:"+layout+":src", "oci:"+filepath.Join(t.TempDir(), "o")+":1")
	if c.Digest == first.Digest {
		t.Error("an annotation changes nothing")
	}
}

// TestConvertPlatforms converts all, some and one of an image's platforms.
func TestConvertPlatforms(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{})
	layout, _ := smallImage(t)
	var index ocispec.Index
	testbed.Must(t, readJSON(filepath.Join(layout, "index.json"), &index))
	one := index.Manifests[0]
	var all []ocispec.Descriptor
	for _, arch := range []string{"amd64", "arm64", "riscv64"} {
		m := one
		m.Annotations = nil
		m.Platform = &ocispec.Platform{OS: "linux", Architecture: arch}
		all = append(all, m)
	}
	all = append(all, ocispec.Descriptor{MediaType: one.MediaType, Digest: one.Digest, Size: one.Size,
		Platform: &ocispec.Platform{OS: "unknown", Architecture: "unknown"}})
	testbed.Must(t, testbed.TagIndex(layout, "multi", all))
	count := func(args ...string) int {
		out := filepath.Join(t.TempDir(), "out")
		c := convert(t, s, append(args, "oci:"+layout+":multi", "oci:"+out+":1")...)
		var made ocispec.Index
		testbed.Must(t, readJSON(filepath.Join(out, "blobs", "sha256", strings.TrimPrefix(c.Digest, "sha256:")), &made))
		return len(made.Manifests)
	}
	if n := count(); n != 3 {
		t.Errorf("all: %d manifests, want 3", n)
	}
	if n := count("--platform", "linux/amd64,linux/arm64"); n != 2 {
		t.Errorf("two: %d manifests", n)
	}
	if n := count("--platform", "linux/arm64"); n != 0 {
		t.Errorf("one: an index of %d manifests, want none", n)
	}
	if _, err := s.Snapctl(t.Context(), "convert", "--platform", "windows/amd64", "oci:"+layout+":multi",
		"oci:"+t.TempDir()+":1"); err == nil || !strings.Contains(err.Error(), "linux/arm64") {
		t.Errorf("a platform that it does not have: %v", err)
	}
}

// TestConvertKilled kills conversions at random moments, some of them at once. No half-made image is
// visible, nothing of the killed is left once another has run, and the last one finishes the work.
func TestConvertKilled(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{})
	layout, p := smallImage(t)
	began := time.Now()
	want := convert(t, s, "oci:"+layout+":src", s.Ref("whole:1"))
	whole := time.Since(began)
	cache := filepath.Join(s.Dir, "snapctl-cache", "remora", "convert")
	testbed.Must(t, os.RemoveAll(cache))
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d, a whole conversion takes %s", seed, whole)
	r := rand.New(rand.NewPCG(seed, 0))
	dst := s.Ref("killed:1")
	for range testbed.Rounds(8, 200) {
		var procs []*testbed.Process
		for k := range 2 { // to the same place at once
			log := filepath.Join(t.TempDir(), fmt.Sprint("convert-", k))
			proc, err := testbed.Start(log, func() bool { return true }, s.SnapctlEnv(), "snapctl", "convert", "oci:"+layout+":src", dst)
			testbed.Must(t, err)
			procs = append(procs, proc)
		}
		time.Sleep(time.Duration(r.Int64N(int64(whole))))
		for _, proc := range procs {
			_ = proc.Stop(syscall.SIGKILL) // it may have finished
		}
		if _, err := s.Snapctl(context.Background(), "pull", dst); err == nil {
			continue // one had the time
		}
	}
	got := convert(t, s, "oci:"+layout+":src", dst)
	if got.Digest != want.Digest {
		t.Errorf("got %s, want %s", got.Digest, want.Digest)
	}
	_, err := s.Snapctl(t.Context(), "pull", dst)
	testbed.Must(t, err)
	testbed.RunImage(t, s, dst, "killed", "remora", p)
	// Files of the killed are removed when they are a minute old.
	old := time.Now().Add(-time.Hour)
	runs, err := filepath.Glob(filepath.Join(cache, "run-*"))
	testbed.Must(t, err)
	for _, dir := range runs {
		testbed.Must(t, os.Chtimes(dir, old, old))
	}
	convert(t, s, "oci:"+layout+":src", dst)
	if left, _ := filepath.Glob(filepath.Join(cache, "run-*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}
