package snapshotter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/fs/annotation"
	"github.com/remora-storage/remora/remote/registry"
	"github.com/remora-storage/remora/snapshotter/layers"
)

// A format is a way in which layers come.
type format struct {
	name  string
	make  func(testing.TB, ...member) layer
	whole bool // the layer is read whole, since it has no index
}

var formats = []format{
	{"estargz", estargzLayer, false},
	{"zstdchunked", zstdChunkedLayer, false},
	{"gzip", gzipLayer, true},
	{"zstd", zstdLayer, true},
	{"tar", tarLayer, true},
}

// TestPull: containerd need not download a layer of any format, and a container reads its files.
func TestPull(t *testing.T) {
	large, small := noise(1, 300_000), []byte("hello\n")
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) {
			l := f.make(t, dir("etc", 0o755), file("etc/large", large), file("etc/small", small))
			o := newOrigin(t, newImage(t, "app", nil, l))
			im := newImage(t, "app", nil, l)
			b := newBed(t, o, nil)
			mounts := b.run("container", b.pull(im))
			if !f.whole && o.Wholly(l) {
				t.Error("all of the layer was fetched though it has an index")
			}
			b.sees(mounts, "etc/small", small)
			b.sees(mounts, "etc/large", large)
			if _, err := b.look(mounts, "etc/none"); err == nil {
				t.Error("a file that is not in the image was found")
			}
			st := b.statusOf(l)
			if st.State != "mounted" || st.Image != b.ref(im) || st.Present == 0 || st.Reason != "" {
				t.Errorf("status: %+v", st)
			}
			want := f.name
			if f.whole {
				want = "import"
			}
			if st.Format != want {
				t.Errorf("status: format %s, want %s", st.Format, want)
			}
		})
	}
}

// TestLayersInOrder: the mounts of a container name its own directory first and the image's layers after it,
// the topmost first, so that a file of several layers is the topmost's.
func TestLayersInOrder(t *testing.T) {
	low := estargzLayer(t, dir("d", 0o755), file("d/both", []byte("low")), file("d/low", []byte("low")))
	top := zstdChunkedLayer(t, dir("d", 0o755), file("d/both", []byte("top")))
	im := newImage(t, "app", nil, low, top)
	b := newBed(t, newOrigin(t, im), nil)
	name := b.pull(im)
	mounts := b.run("container", name)
	if len(mounts) != 1 || mounts[0].Type != "overlay" || len(dirs(mounts)) != 3 {
		t.Fatalf("got %v", mounts)
	}
	b.sees(mounts, "d/both", []byte("top"))
	b.sees(mounts, "d/low", []byte("low"))
	view, err := b.View(b.ctx, "view", name)
	if err != nil || len(view) != 1 || view[0].Type != "overlay" || strings.Contains(strings.Join(view[0].Options, ","), "upperdir") {
		t.Errorf("view: %v, %v", view, err)
	}
	one, err := b.View(b.ctx, "view of one", b.named(im.ChainIDs[0], ""))
	if err != nil || len(one) != 1 || one[0].Type != "bind" || one[0].Options[0] != "ro" {
		t.Errorf("view of one layer: %v, %v", one, err)
	}
}

// TestDeclined: layers that cannot be supplied here are containerd's to unpack, whatever the reason.
func TestDeclined(t *testing.T) {
	good := estargzLayer(t, file("a", noise(2, 1000)))
	foreign := good
	foreign.Desc.MediaType = "application/vnd.example.layer"
	for name, c := range map[string]struct {
		layer  layer
		change func(*bed)
		ahead  func(*bed) // once it is open
	}{
		"a media type that is not known": {layer: foreign},
		"the configuration wants it": {layer: good, change: func(b *bed) {
			b.opts.Layers.ImportOf = func(registry.Repository) layers.ImportPolicy { return layers.ImportPolicy{Mode: layers.ImportOrdinary} }
		}},
		"a kernel that cannot mount incomplete images": {layer: good, change: func(b *bed) { clear(b.kernel.found.Ways) }},
		"no such blob":            {layer: good, ahead: func(b *bed) { b.origin.Answer("/blobs/", http.StatusNotFound) }},
		"no access":               {layer: good, ahead: func(b *bed) { b.origin.Answer("/blobs/", http.StatusUnauthorized) }},
		"forbidden":               {layer: good, ahead: func(b *bed) { b.origin.Answer("/blobs/", http.StatusForbidden) }},
		"a registry that fails":   {layer: good, ahead: func(b *bed) { b.origin.Answer("/blobs/", http.StatusInternalServerError) }},
		"a registry that is gone": {layer: good, ahead: func(b *bed) { b.origin.Close() }},
	} {
		t.Run(name, func(t *testing.T) {
			im := newImage(t, "app", nil, c.layer)
			b := newBed(t, newOrigin(t, im), c.change)
			if c.ahead != nil {
				c.ahead(b)
			}
			b.fetch(im)
			b.resolve(im) // else a Prepare on a busy machine may not wait for what is wrong
			mounts := b.decline(im, 0, "")
			if len(mounts) != 1 || mounts[0].Type != "bind" || mounts[0].Options[0] != "rw" {
				t.Errorf("got %v", mounts)
			}
			if st := b.Status(); len(st.Layers) != 0 {
				t.Errorf("status lists %+v", st.Layers)
			}
		})
	}
}

// TestUnknownImage: a layer of which containerd has no manifest is not claimed, and nothing is asked of any registry.
func TestUnknownImage(t *testing.T) {
	im := newImage(t, "app", nil, estargzLayer(t, file("a", noise(3, 1000))))
	b := newBed(t, newOrigin(t, im), nil)
	b.decline(im, 0, "")
	if n := b.origin.Requests("blobs", im.Layers[0].Digest().String()); n != 0 {
		t.Errorf("%d requests", n)
	}
}

// TestFailedLayerIsNotAskedAgain: while containerd unpacks a layer that could not be opened, its Prepare is not
// held up by a second try.
func TestFailedLayerIsNotAskedAgain(t *testing.T) {
	im := newImage(t, "app", nil, estargzLayer(t, file("a", noise(4, 1000))))
	b := newBed(t, newOrigin(t, im), nil)
	b.origin.Answer("/blobs/", http.StatusNotFound)
	b.fetch(im)
	b.resolve(im)
	d := im.Layers[0].Digest().String()
	asked := b.origin.Requests("blobs", d)
	b.decline(im, 0, "")
	if again := b.origin.Requests("blobs", d); asked == 0 || again != asked {
		t.Errorf("%d requests, then %d", asked, again)
	}
}

// TestWithoutItsParent: containerd must not prepare layers out of order, which its option "rebase" would allow.
func TestWithoutItsParent(t *testing.T) {
	im := newImage(t, "app", nil, estargzLayer(t, file("a", noise(5, 1000))))
	b := newBed(t, newOrigin(t, im), nil)
	_, err := b.Prepare(b.ctx, "k", "", snapshots.WithLabels(map[string]string{
		snapshots.LabelSnapshotRef: im.ChainIDs[0].String(), parentChainLabel: "sha256:abc",
	}))
	if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "rebase") {
		t.Errorf("got %v", err)
	}
}

// TestClaimedByMany: however many ask for a layer, there is one snapshot of it, its index is read once, and
// whoever is told that the layer exists can use it.
func TestClaimedByMany(t *testing.T) {
	body := noise(6, 1000)
	im := newImage(t, "app", nil, estargzLayer(t, file("a", body)))
	b := newBed(t, newOrigin(t, im), nil)
	b.fetch(im)
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			if _, err := b.prepare(im, 0, ""); !errdefs.IsAlreadyExists(err) {
				t.Errorf("got %v", err)
				return
			}
			key := fmt.Sprint("container ", i)
			_, err := b.Prepare(b.ctx, key, b.named(im.ChainIDs[0], ""))
			if err != nil {
				t.Errorf("got %v", err)
				return
			}
			mounts, err := b.Mounts(b.ctx, key)
			if err != nil {
				t.Errorf("got %v", err)
				return
			}
			b.sees(mounts, "a", body)
		})
	}
	all.Wait()
	if n := len(b.Status().Layers); n != 1 {
		t.Errorf("%d snapshots", n)
	}
	if n := b.origin.Requests("blobs", im.Layers[0].Digest().String()); n > 2 { // the index, and what a start needs
		t.Errorf("%d requests for one small layer", n)
	}
}

// crowd adds so many files that the layer's index is more than Origin.Hold lets through.
func crowd(all ...member) []member {
	for i := range uint64(50) {
		all = append(all, file(fmt.Sprintf("%x", noise(i, 20)), nil))
	}
	return all
}

// TestSlowIndex: Prepare does not wait for an index that takes long, once it has begun to come; Mounts does.
func TestSlowIndex(t *testing.T) {
	body := noise(7, 1000)
	im := newImage(t, "app", nil, estargzLayer(t, crowd(file("a", body))...))
	b := newBed(t, newOrigin(t, im), nil)
	release := b.origin.Hold("/blobs/")
	name := b.pull(im)
	if st := b.statusOf(im.Layers[0]); st.State != "opening" || st.Backend != "" {
		t.Errorf("status: %+v", st)
	}
	if _, err := b.Prepare(b.ctx, "container", name); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(b.ctx)
	cancel(errors.New("the client has left"))
	if _, err := b.Mounts(ctx, "container"); err == nil || !strings.Contains(err.Error(), "the client has left") {
		t.Errorf("Mounts with a context that has ended: %v", err)
	}
	release()
	mounts, err := b.Mounts(b.ctx, "container")
	if err != nil {
		t.Fatal(err)
	}
	b.sees(mounts, "a", body)
}

// TestPrepareCancelled: a Prepare whose client leaves makes no snapshot.
func TestPrepareCancelled(t *testing.T) {
	im := newImage(t, "app", nil, gzipLayer(t, file("a", noise(8, 1000))))
	b := newBed(t, newOrigin(t, im), func(b *bed) { b.opts.ImportWait = time.Hour })
	release := b.origin.Silence("/blobs/")
	defer release()
	b.fetch(im)
	ctx, cancel := context.WithCancel(b.ctx)
	b.ctx = ctx
	go func() {
		b.origin.Await(im.Layers[0])
		cancel()
	}()
	if _, err := b.prepare(im, 0, ""); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if n := len(b.Status().Layers); n != 0 {
		t.Errorf("%d snapshots", n)
	}
}

// TestMountFails: Mounts says why a layer cannot be mounted, status too, and the next Mounts tries again.
func TestMountFails(t *testing.T) {
	body := noise(9, 1000)
	im := newImage(t, "app", nil, estargzLayer(t, file("a", body)))
	b := newBed(t, newOrigin(t, im), nil)
	b.kernel.fail("mount", errors.New("no such device"))
	name := b.pull(im)
	if _, err := b.Prepare(b.ctx, "container", name); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Mounts(b.ctx, "container"); err == nil || !strings.Contains(err.Error(), "no such device") {
		t.Errorf("got %v", err)
	}
	if st := b.statusOf(im.Layers[0]); st.State != "failed" || !strings.Contains(st.Reason, "no such device") {
		t.Errorf("status: %+v", st)
	}
	b.kernel.fail("mount", nil)
	mounts, err := b.Mounts(b.ctx, "container")
	if err != nil {
		t.Fatal(err)
	}
	b.sees(mounts, "a", body)
}

// TestUnpackedOnSupplied: containerd unpacks a layer on top of one that is supplied here, whose files it sees.
func TestUnpackedOnSupplied(t *testing.T) {
	lazy := estargzLayer(t, dir("d", 0o755), file("d/lazy", []byte("lazy")))
	odd := gzipLayer(t, file("d/odd", []byte("odd")))
	odd.Desc.MediaType = "application/vnd.example.layer"
	im := newImage(t, "app", nil, lazy, odd)
	b := newBed(t, newOrigin(t, im), nil)
	b.fetch(im)
	below := b.claim(im, 0, "")
	mounts, err := b.Prepare(b.ctx, "unpack", below, snapshots.WithLabels(map[string]string{
		snapshots.LabelSnapshotRef: im.ChainIDs[1].String(),
	}))
	if err != nil {
		t.Fatal(err)
	}
	b.sees(mounts, "d/lazy", []byte("lazy"))
	b.unpack("unpack", im.ChainIDs[1].String(), mounts, file("d/odd", []byte("odd")))
	mounts = b.run("container", im.ChainIDs[1].String())
	b.sees(mounts, "d/lazy", []byte("lazy"))
	b.sees(mounts, "d/odd", []byte("odd"))
}

// TestUnpackedOnSlow: containerd unpacks a layer on top of one that takes long without its Prepare waiting for that: who looks at
// what lies below waits.
func TestUnpackedOnSlow(t *testing.T) {
	lazy := gzipLayer(t, dir("d", 0o755), file("d/lazy", []byte("lazy")), file("large", noise(1, 100_000)))
	odd := gzipLayer(t, file("d/odd", []byte("odd")))
	odd.Desc.MediaType = "application/vnd.example.layer"
	im := newImage(t, "app", nil, lazy, odd)
	b := newBed(t, newOrigin(t, im), nil)
	release := b.origin.Hold("/blobs/" + lazy.Digest().String())
	defer release()
	b.fetch(im)
	below := b.claim(im, 0, "")
	mounts := b.decline(im, 1, below)
	if st := b.statusOf(lazy); st.State != "opening" {
		t.Errorf("state %s", st.State)
	}
	ended := b.begin(mounts, "d/lazy", []byte("lazy"))
	select {
	case err := <-ended:
		t.Errorf("seen before the layer is there: %v", err)
	default:
	}
	release()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestIndexIsNotWhatTheManifestSays: the table of contents is not believed, and the layer is read whole instead.
func TestIndexIsNotWhatTheManifestSays(t *testing.T) {
	body := noise(10, 50_000)
	l := estargzLayer(t, file("a", body))
	other := estargzLayer(t, file("b", body))
	l.Desc.Annotations = map[string]string{annotation.TOCDigest: other.Desc.Annotations[annotation.TOCDigest]}
	im := newImage(t, "app", nil, l)
	b := newBed(t, newOrigin(t, im), nil)
	mounts := b.run("container", b.pull(im))
	b.sees(mounts, "a", body)
	if st := b.statusOf(l); st.Format != "import" || !st.Verified {
		t.Errorf("status: %+v", st)
	}
}

// TestDamagedLayer: a layer of which any part is not what its digest says is never shown: its index is refused, or
// the read fails.
func TestDamagedLayer(t *testing.T) {
	body := noise(11, 200_000)
	for _, f := range formats {
		for name, at := range map[string]float64{"data": 0.3, "end": 0.999} {
			t.Run(f.name+", "+name, func(t *testing.T) {
				l := f.make(t, file("a", body), file("z", noise(12, 1000)))
				im := newImage(t, "app", nil, l)
				o := newOrigin(t, im)
				bad := bytes.Clone(l.Blob)
				for i := range 16 {
					bad[min(int(at*float64(len(bad)))+i, len(bad)-1)] ^= 0x5a
				}
				o.Serve(l.Digest(), bad)
				b := newBed(t, o, nil)
				b.fetch(im)
				mounts, err := b.prepare(im, 0, "")
				if !errdefs.IsAlreadyExists(err) {
					if err != nil || len(mounts) == 0 {
						t.Errorf("got %v, %v", mounts, err)
					}
					return // containerd finds it out itself
				}
				if _, err := b.Prepare(b.ctx, "container", b.named(im.ChainIDs[0], "")); err != nil {
					t.Fatal(err)
				}
				if mounts, err = b.Mounts(b.ctx, "container"); err != nil {
					return
				}
				if p, err := b.look(mounts, "a"); err == nil && !bytes.Equal(p, body) {
					t.Error("wrong bytes were shown")
				} else if err == nil && at < 0.9 {
					t.Error("bytes that the registry does not have were shown")
				}
			})
		}
	}
}

// TestTruncatedIndex: a blob whose second half is missing is no layer.
func TestTruncatedIndex(t *testing.T) {
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) {
			l := f.make(t, file("a", noise(13, 50_000)))
			short := l.Blob[:len(l.Blob)/2]
			l.Desc.Size = int64(len(short))
			im := newImage(t, "app", nil, l)
			o := newOrigin(t, im)
			o.Serve(l.Digest(), short)
			b := newBed(t, o, nil)
			b.fetch(im)
			if _, err := b.prepare(im, 0, ""); errdefs.IsAlreadyExists(err) { // what is wrong was not known in time
				name := b.named(im.ChainIDs[0], "")
				if _, err := b.Prepare(b.ctx, "container", name); err != nil {
					t.Fatal(err)
				}
				if _, err := b.Mounts(b.ctx, "container"); err == nil {
					t.Error("it was mounted")
				}
			} else if err != nil {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestForeignLayer: a layer with places of its own is imported from the registry, if that has it.
func TestForeignLayer(t *testing.T) {
	body := noise(14, 20_000)
	l := estargzLayer(t, file("a", body))
	l.Desc.URLs = []string{"ftp://elsewhere.test/layer"}
	l.Desc.MediaType = ocispec.MediaTypeImageLayerGzip
	im := newImage(t, "app", nil, l)
	b := newBed(t, newOrigin(t, im), nil)
	mounts := b.run("container", b.pull(im))
	b.sees(mounts, "a", body)
	if st := b.statusOf(l); st.Format != "import" {
		t.Errorf("format %s", st.Format)
	}
}
