package images_test

import (
	"archive/tar"
	"bytes"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/conformance/falsify"
	"github.com/remora-storage/remora/conformance/testbed"
	"github.com/remora-storage/remora/fs/index"
)

// twoFiles is a layer of two files of one size. The names and the seeds of what is in them are given in the order of the archive.
func twoFiles(names [2]string, seeds [2]uint64) func(*tar.Writer) error {
	return func(w *tar.Writer) error {
		for i, name := range names {
			body := randomBytes(seeds[i], 300_000)
			if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(body)),
				ModTime: time.Unix(1700000000, 0)}); err != nil {
				return err
			}
			if _, err := w.Write(body); err != nil {
				return err
			}
		}
		return nil
	}
}

// lies are what is done to a table that is true of files a and b. The digest that the second one makes up is nobody's: what another
// file of the layer has may be in the cache, and would be shown as what the table says.
var lies = map[string]func([]byte) ([]byte, error){
	"names":   falsify.Swap("a", "b", "name"),
	"digests": falsify.Replace("a", map[string]any{"digest": nobodys, "chunkDigest": nobodys}),
	"offsets": falsify.Swap("a", "b", "offset"),
}

const nobodys = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// A tableLiar is an image of a layer that is right, and of which a table lies.
type tableLiar struct {
	kind, lie string
	seed      uint64 // of file a
	ref       string
	honest    string // an image of the same plain layer, and no table
}

// newLiar pushes both images to repositories of their own.
func newLiar(t *testing.T, s *testbed.Stack, kind, lie string, seed uint64) *tableLiar {
	t.Helper()
	dir, names, seeds := t.TempDir(), [2]string{"a", "b"}, [2]uint64{seed, seed + 1}
	own, plain := filepath.Join(dir, "own"), filepath.Join(dir, "plain")
	where := "untrusted"
	if strings.HasPrefix(kind, "index, trusted") {
		where = "trusted"
	}
	path := fmt.Sprintf("%s/liar%d", where, seed)
	x := &tableLiar{kind: kind, lie: lie, seed: seed, ref: s.Ref(path + ":lie"), honest: s.Ref(fmt.Sprintf("honest/app%d:plain", seed))}
	push := func(layout, tag, name string) { testbed.Must(t, s.Push(t.Context(), layout, tag, name)) }
	if strings.HasPrefix(kind, "index") {
		testbed.Must(t, testbed.WritePlainTar(plain, "src", twoFiles(names, seeds)))
		push(plain, "src", path+":lie")
		switch lie {
		case "names":
			names = [2]string{"b", "a"}
		default:
			seeds = [2]uint64{seed + 1000, seed + 1}
		}
		testbed.Must(t, testbed.WritePlainTar(own, "src", twoFiles(names, seeds)))
		push(own, "src", fmt.Sprintf("falsified%d:src", seed))
		file := filepath.Join(dir, "index")
		_, err := s.Snapctl(t.Context(), "index", "create", "-o", file, s.Ref(fmt.Sprintf("falsified%d:src", seed)))
		testbed.Must(t, err)
		data, err := os.ReadFile(file)
		testbed.Must(t, err)
		pushArtifact(t, s, path, "lie", index.Artifact, indexAs(t, data, manifestOf(t, plain, "src").Layers[0].Digest))
	} else {
		testbed.Must(t, testbed.WriteTars(own, "src", twoFiles(names, seeds)))
		convert(t, s, "--format", kind, "oci:"+own+":src", "oci:"+own+":lazy")
		l := manifestOf(t, own, "lazy").Layers[0]
		blob, err := os.ReadFile(blobPath(own, l.Digest))
		testbed.Must(t, err)
		blob, l, err = falsify.Table(blob, l, lies[lie])
		testbed.Must(t, err)
		testbed.Must(t, os.WriteFile(blobPath(own, l.Digest), blob, 0o644))
		bare, err := falsify.Plain(blob)
		testbed.Must(t, err)
		id := digest.FromBytes(bare)
		testbed.Must(t, testbed.WriteLayout(own, "lie", []ocispec.Descriptor{l}, []digest.Digest{id}))
		push(own, "lie", path+":lie")
		testbed.Must(t, testbed.WriteBlobs(plain, "src", testbed.Blob{MediaType: ocispec.MediaTypeImageLayer, Data: bare, DiffID: id}))
	}
	push(plain, "src", fmt.Sprintf("honest/app%d:plain", seed))
	return x
}

// indexAs is an index of one layer, under the digest of another one.
func indexAs(t *testing.T, data []byte, d digest.Digest) []byte {
	t.Helper()
	layers, err := index.Split(data)
	testbed.Must(t, err)
	const digestAt = 16
	one := bytes.Clone(layers[0])
	_, err = hex.Decode(one[digestAt:digestAt+32], []byte(d.Encoded()))
	testbed.Must(t, err)
	if h, err := index.ReadHead(one); err != nil || h.Digest != d {
		t.Fatalf("got the index of %s, %v", h.Digest, err)
	}
	return index.Join([][]byte{one})
}

// TestTablesThatLie: of a layer that is right, and whose table of contents or published index says otherwise, each file can be read, and
// is what containerd's unpacking makes of it: wrong digests and places are found out and the layer is read whole; wrong names show in
// the author's own image, and in no other one of the same layer, and no longer in his once there is another one. An index of a repository
// that is not trusted decides nothing. It stays so over a restart, and nothing is quarantined.
//
// It runs alone: remorad cannot tell whose layers an overlay without an upper directory has, if containerd has shortened their paths, and
// waits for those of all snapshots with the same numbers, other tests' included.
func TestTablesThatLie(t *testing.T) {
	s := testbed.New(t, testbed.Options{LogLevel: "info"})
	s.Configure(fmt.Sprintf("[index]\ntrust = [\"%s/trusted\"]\n", s.Addr))
	testbed.Must(t, s.RestartRemorad(syscall.SIGTERM))
	var all []*tableLiar
	kinds := []string{"estargz", "zstdchunked", "index, trusted", "index, untrusted"}
	for i, c := range testbed.Covering(t, testbed.Combinations(kinds, sortedKeys(lies))) {
		all = append(all, newLiar(t, s, c[0], c[1], uint64(100+2*i)))
	}
	formatOf := map[string]string{"estargz": "estargz", "zstdchunked": "zstdchunked", "index, trusted": "index", "index, untrusted": "import"}
	var mended []*tableLiar
	for _, x := range all {
		_, err := s.Snapctl(t.Context(), "pull", x.ref)
		testbed.Must(t, err)
		a, err := readIn(t, s, x.ref, "a")
		switch wrong := err != nil; {
		case x.lie != "names" && x.kind != "index, untrusted":
			mended = append(mended, x)
			if err == nil && !x.isRight(a) {
				t.Errorf("%s, %s: wrong bytes were read", x.kind, x.lie)
			}
		case wrong:
			t.Errorf("%s, %s: %v", x.kind, x.lie, err)
		default:
			onlyFormat(t, s, x.ref, formatOf[x.kind])
			if lies := !x.isRight(a); lies != (x.kind != "index, untrusted") {
				t.Errorf("%s, %s: his own image shows what he says: %v", x.kind, x.lie, lies)
			}
		}
	}
	for _, x := range mended {
		testbed.WaitFor(t, "the layer to be read whole, "+x.kind+", "+x.lie, func() bool {
			l := layerOf(t, s, x.ref)
			return l.Format == "import" && l.State != "opening" && l.Reason == ""
		})
	}
	right := func(when string) {
		t.Run(when, func(t *testing.T) {
			for _, x := range all {
				if x.lie != "names" || x.kind == "index, untrusted" {
					sameTree(t, s, x.ref, x.ref, notListed)
				}
			}
		})
	}
	right("read whole")
	testbed.Must(t, s.RestartRemorad(syscall.SIGKILL))
	right("after a restart")
	for _, x := range all {
		t.Run("beside an honest image, "+x.kind+", "+x.lie, func(t *testing.T) {
			_, err := s.Snapctl(t.Context(), "pull", x.honest)
			testbed.Must(t, err)
			sameTree(t, s, x.honest, x.honest, notListed)
			sameTree(t, s, x.ref, x.ref, notListed)
		})
	}
	st, err := s.Status(t.Context())
	testbed.Must(t, err)
	for _, l := range st.Layers {
		if l.State != "mounted" || l.Reason != "" {
			t.Errorf("layer %s of %s is %s: %s", l.Digest, l.Image, l.State, l.Reason)
		}
	}
}

// layerOf is the state of the only layer of an image.
func layerOf(t *testing.T, s *testbed.Stack, ref string) testbed.LayerStatus {
	t.Helper()
	st, err := s.Status(t.Context())
	testbed.Must(t, err)
	for _, l := range st.Layers {
		if l.Image == ref {
			return l
		}
	}
	t.Fatalf("no layer of %s", ref)
	return testbed.LayerStatus{}
}

// isRight reports whether these are the bytes that the archive has as file a.
func (x *tableLiar) isRight(a []byte) bool { return bytes.Equal(a, randomBytes(x.seed, 300_000)) }

// readIn reads a file of an image, which is mounted for that alone.
func readIn(t *testing.T, s *testbed.Stack, ref, name string) ([]byte, error) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "root")
	testbed.Must(t, os.Mkdir(dir, 0o755))
	_, err := s.Ctr(t.Context(), "images", "mount", "--snapshotter", "remora", ref, dir)
	testbed.Must(t, err)
	p, err := os.ReadFile(filepath.Join(dir, name))
	_, uerr := s.Ctr(t.Context(), "images", "unmount", "--rm", "--snapshotter", "remora", dir)
	testbed.Must(t, uerr)
	return p, err
}
