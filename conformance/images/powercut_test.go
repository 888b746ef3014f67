package images_test

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/conformance/faultdev"
	"github.com/remora-storage/remora/conformance/testbed"
)

// How many layers each image of this test has, and how many files each layer.
const cutLayers, cutFiles = 3, 40

// cutRegistry is what images call the registry of the test, whatever its address: a recording that is kept names them.
const cutRegistry = "registry.test"

// A cutImage is an image of the test, and since when a power cut must leave what of it. Times are counts of flushes.
type cutImage struct {
	Ref, Name string
	Pulled    int // its layers' snapshots are committed
	Removed   int // containerd no longer wants it; 0 for never
	Whole     int // all its bytes are on stable storage; 0 for never
}

func (i *cutImage) isWhole(at int) bool { return i.Whole > 0 && i.Whole <= at }

// A cutHistory is what the test knows of its recording.
type cutHistory struct {
	Namespace   string // containerd's
	First, Last int    // flushes before remorad's life and after it
	Images      []*cutImage
}

// powerCut is a remorad whose root is on a disk that records, and images that it has pulled.
type powerCut struct {
	cutHistory
	stack *testbed.Stack
	proxy *faultyProxy // between it and the registry
	rec   *faultdev.Recorder
	sums  map[string][32]byte // of all images' files, by path in their layer; no two layers have a directory in common
}

// TestPowerCut: remorad's root is on a disk whose power is cut at any flush; of what the disk was sent since whatever may be
// lost, torn and out of order. No committed snapshot is damaged, what was whole needs no registry, and pulls go on.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	testbed.NeedRoot(t)
	rec, _, dir, umount := testbed.RecordedExt4(t, 256<<20)
	s := testbed.New(t, testbed.Options{Root: filepath.Join(dir, "remora"), LogLevel: "info"})
	var kept cutHistory
	again, seed := testbed.Replay(t, &kept)
	if again != nil { // the registry and containerd come to where they were by the same life of another remorad
		s.Namespace = kept.Namespace
	} else {
		seed = uint64(time.Now().UnixNano())
	}
	c := &powerCut{stack: s, proxy: newFaultyProxy(t, s), rec: rec, sums: map[string][32]byte{}}
	testbed.Must(t, s.PlainHTTP(cutRegistry, c.proxy.Listener.Addr().String()))
	c.Namespace = s.Namespace
	testbed.SyncFS(t, dir)
	c.First = rec.Flushes()
	c.live(t)
	c.Last = rec.Flushes()
	c.endRemorad(t)
	umount()
	if again != nil {
		c.rec, c.cutHistory = again, kept
	}
	testbed.KeepIfFailed(t, c.rec, seed, c.cutHistory)
	c.cut(t, seed)
}

// cut cuts the power at flushes that seed chooses.
func (c *powerCut) cut(t *testing.T, seed uint64) {
	t.Helper()
	rnd := rand.New(rand.NewPCG(seed, 0))
	cuts := testbed.Rounds(8, 300)
	t.Logf("seed %d, %d flushes, %d cuts", seed, c.Last-c.First, cuts)
	for i := range cuts {
		at := c.First + rnd.IntN(c.Last-c.First+1)
		again := c.Images[rnd.IntN(len(c.Images))]
		c.stack.Namespace = fmt.Sprintf("%s-%d", c.Namespace, i)
		testbed.CutAndLook(t, c.rec, at, rnd, func(dir string) { c.look(t, filepath.Join(dir, "remora"), at, again) })
		if t.Failed() {
			t.Fatalf("cut %d, after flush %d of %d to %d", i, at, c.First, c.Last)
		}
	}
}

// live has remorad do what it does: lazy images and imports come, are read, become whole, and go.
func (c *powerCut) live(t *testing.T) {
	t.Helper()
	lazy, plain, gone, last := c.push(t, "lazy", true), c.push(t, "plain", false), c.push(t, "gone", true), c.push(t, "last", true)
	c.pull(t, gone)
	c.pull(t, lazy)
	c.read(t, lazy, func(path string) bool { return strings.HasSuffix(path, "7") })
	c.pull(t, plain)
	gone.Removed = c.rec.Flushes()
	removeAll(t, c.stack, gone.Ref)
	c.waitMounted(t, 0, gone.Ref)
	_, err := c.stack.Snapctl(t.Context(), "fetch", "--cache-only", lazy.Ref)
	testbed.Must(t, err)
	testbed.Must(t, c.stack.StopRemorad(syscall.SIGTERM)) // which syncs what it has
	lazy.Whole, plain.Whole = c.rec.Flushes(), c.rec.Flushes()
	testbed.Must(t, c.stack.StartRemorad())
	c.pull(t, last)
	c.read(t, last, all)
}

func all(string) bool { return true }

// push makes an image and puts it into the registry: converted, or as it is.
func (c *powerCut) push(t *testing.T, name string, lazy bool) *cutImage {
	t.Helper()
	var tars []func(*tar.Writer) error
	for layer := range cutLayers {
		dir := fmt.Sprintf("%s-%d", name, layer)
		rnd := rand.NewChaCha8(sha256.Sum256([]byte(dir)))
		files := map[string][]byte{}
		for i := range cutFiles {
			body := make([]byte, 1+int(rnd.Uint64()%80_000))
			_, _ = rnd.Read(body) // never fails
			path := fmt.Sprintf("%s/%d", dir, i)
			files[path], c.sums[path] = body, sha256.Sum256(body)
		}
		tars = append(tars, func(w *tar.Writer) error {
			err := w.WriteHeader(&tar.Header{Name: dir + "/", Typeflag: tar.TypeDir, Mode: 0o755})
			for _, path := range slices.Sorted(maps.Keys(files)) {
				if err == nil {
					err = w.WriteHeader(&tar.Header{Name: path, Mode: 0o644, Size: int64(len(files[path]))})
				}
				if err == nil {
					_, err = w.Write(files[path])
				}
			}
			return err
		})
	}
	work := t.TempDir()
	layout, tag := filepath.Join(work, "src"), "src"
	testbed.Must(t, testbed.WriteTars(layout, tag, tars...))
	if lazy {
		_, err := c.stack.Snapctl(t.Context(), "convert", "oci:"+layout+":src", "oci:"+filepath.Join(work, "lazy")+":lazy")
		testbed.Must(t, err)
		layout, tag = filepath.Join(work, "lazy"), "lazy"
	}
	testbed.Must(t, c.stack.Push(t.Context(), layout, tag, name+":it"))
	image := &cutImage{Name: name, Ref: cutRegistry + "/" + name + ":it"}
	c.Images = append(c.Images, image)
	return image
}

func (c *powerCut) pull(t *testing.T, image *cutImage) {
	t.Helper()
	_, err := c.stack.Snapctl(t.Context(), "pull", image.Ref)
	testbed.Must(t, err)
	image.Pulled = c.rec.Flushes()
	c.waitMounted(t, cutLayers, image.Ref)
}

// waitMounted waits until remorad has n layers of the image mounted. Each namespace that has the image may have them once more: mounted,
// or idle where they were lost and nobody uses them. None may be quarantined, of any image.
func (c *powerCut) waitMounted(t *testing.T, n int, image string) {
	t.Helper()
	testbed.WaitFor(t, "all layers to be mounted", func() bool {
		st, err := c.stack.Status(t.Context())
		testbed.Must(t, err)
		mounted, others := map[string]bool{}, false
		for _, l := range st.Layers {
			switch {
			case l.State == "quarantined" || l.State == "failed":
				t.Fatalf("layer %s of %s is %s: %s", l.Digest, l.Image, l.State, l.Reason)
			case l.Image != image:
			case l.State == "mounted":
				mounted[l.Digest] = true
			case n == 0 || l.State != "idle":
				others = true
			}
		}
		return len(mounted) == n && !others
	})
}

// record is what a layer.json says.
type record struct {
	Name   string
	Source struct {
		Image      string
		Descriptor ocispec.Descriptor
	}
	Quarantined string
}

// layers reads the records of the layers under a root that nobody uses: of every committed snapshot whose name says that it is
// remorad's own. It returns them by the snapshots' ids.
func (c *powerCut) layers(t *testing.T, root string) map[string]record {
	t.Helper()
	copied := filepath.Join(t.TempDir(), "metadata.db")
	p, err := os.ReadFile(filepath.Join(root, "metadata.db"))
	testbed.Must(t, err)
	testbed.Must(t, os.WriteFile(copied, p, 0o600))
	store, err := storage.NewMetaStore(copied)
	testbed.Must(t, err)
	defer store.Close()
	var names map[string]string
	testbed.Must(t, store.WithTransaction(t.Context(), false, func(ctx context.Context) (err error) {
		names, err = storage.IDMap(ctx)
		if errdefs.IsNotFound(err) {
			return nil // it is new and empty
		}
		return err
	}))
	all := map[string]record{}
	for id, name := range names {
		if !strings.HasPrefix(name, "remora-") || strings.Contains(name, "/") {
			continue // a key of containerd's is NAMESPACE/ID/KEY, and the namespace may begin so, too
		}
		var r record
		p, err := os.ReadFile(filepath.Join(root, "snapshots", id, "layer.json"))
		if err == nil {
			err = json.Unmarshal(p, &r)
		}
		if err != nil || r.Name != name || r.Quarantined != "" {
			t.Errorf("committed snapshot %s, %s, has the record %q: %v", id, name, p, err)
		}
		if _, err := os.Stat(filepath.Join(root, "snapshots", id, "fs")); err != nil {
			t.Error(err)
		}
		all[id] = r
	}
	return all
}

// read compares those of an image's files that remorad has mounted and want names. It returns how many files that were.
func (c *powerCut) read(t *testing.T, image *cutImage, want func(path string) bool) (n int) {
	t.Helper()
	records, err := filepath.Glob(filepath.Join(c.stack.Root, "snapshots", "*", "layer.json"))
	testbed.Must(t, err)
	for _, r := range records {
		layer := filepath.Join(filepath.Dir(r), "fs")
		testbed.Must(t, filepath.WalkDir(layer, func(path string, e fs.DirEntry, err error) error {
			if err != nil || !e.Type().IsRegular() {
				return err
			}
			name, err := filepath.Rel(layer, path)
			if err != nil || !strings.HasPrefix(name, image.Name+"-") || !want(name) {
				return err
			}
			body, err := os.ReadFile(path)
			if sum, ok := c.sums[name]; err != nil || !ok || sha256.Sum256(body) != sum {
				t.Errorf("%s in %s is not what it was: %d bytes, %v", name, layer, len(body), err)
			}
			n++
			return nil
		}))
	}
	return n
}

// look starts remorad on what a cut left, and has it pull all images that containerd has, and one of all.
func (c *powerCut) look(t *testing.T, root string, at int, again *cutImage) {
	t.Helper()
	found := map[string]int{} // layers by image
	for _, r := range c.layers(t, root) {
		found[r.Source.Image]++
	}
	for _, image := range c.Images {
		if image.Pulled <= at && (image.Removed == 0 || at < image.Removed) && found[image.Ref] != cutLayers {
			t.Errorf("%s was pulled before flush %d and has %d layers", image.Ref, image.Pulled, found[image.Ref])
		}
	}
	if t.Failed() {
		return
	}
	s := c.stack
	s.Root = root
	alone := 0
	if slices.ContainsFunc(c.Images, func(i *cutImage) bool { return i.isWhole(at) }) {
		away := status(500)
		c.proxy.fault.Store(&away)
		testbed.Must(t, s.StartRemorad())
		for _, image := range c.Images {
			if image.isWhole(at) {
				c.waitMounted(t, cutLayers, image.Ref)
				alone += c.read(t, image, all)
			}
		}
		c.proxy.fault.Store(nil)
		testbed.Must(t, s.StopRemorad(syscall.SIGKILL))
	}
	testbed.Must(t, s.StartRemorad())
	// containerd has not lost power: what it knows of the others, and the root has lost, is made anew, and comes once it is pulled.
	for _, image := range c.Images {
		if image == again || image.Removed == 0 {
			_, err := s.Snapctl(t.Context(), "pull", image.Ref)
			testbed.Must(t, err)
			found[image.Ref] = cutLayers
		}
	}
	files := 0
	for _, image := range c.Images {
		if image != again && image.Removed > 0 {
			continue // containerd has had these layers removed
		}
		c.waitMounted(t, found[image.Ref], image.Ref)
		n := c.read(t, image, all)
		if n < found[image.Ref]*cutFiles || n%cutFiles != 0 {
			t.Errorf("%s has %d layers with %d files", image.Ref, found[image.Ref], n)
		}
		files += n
	}
	t.Logf("cut after flush %d: %d files read without the registry, %d with it", at, alone, files)
	c.endRemorad(t)
}

// endRemorad ends remorad, its holder and their mounts.
func (c *powerCut) endRemorad(t *testing.T) {
	t.Helper()
	s := c.stack
	_, err := s.Snapctl(t.Context(), "detach", "--all")
	testbed.Must(t, err)
	testbed.Must(t, s.StopRemorad(syscall.SIGTERM))
	testbed.WaitFor(t, "the holder to end", func() bool { return s.HolderPID() == 0 })
}
