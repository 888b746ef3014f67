package snapshotter

import (
	"bytes"
	"encoding/hex"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/conformance/falsify"
	fsindex "github.com/remora-storage/remora/fs/index"
	"github.com/remora-storage/remora/remote/registry"
	"github.com/remora-storage/remora/snapshotter/layers"
)

// A claimant is how an attacker in the repository "evil" has file a of a layer show what is not in it. He claims the layer's diffID.
type claimant struct {
	make func(testing.TB, ...member) layer // the victim's layer
	// image adds an attacker's image to an origin that has the victim's layer.
	image func(t *testing.T, o *origin, victim layer) *image
	// true says that he serves the layer's true bytes: its diffID is right, and only the tree is not.
	true bool
}

var claimants = map[string]claimant{
	"published index of other bytes": {make: gzipLayer, image: func(t *testing.T, o *origin, victim layer) *image {
		l := gzipLayer(t, file("a", forged), file("b", honest))
		data := indexAs(t, l, victim.Digest())
		l.Desc.Digest = victim.Digest()
		im := claiming(t, o, l, victim)
		publish(t, o, im, fsindex.Artifact, data)
		evilServes(o, victim.Digest(), l.Blob)
		return im
	}},
	"published index with another tree": {true: true, make: tarLayer, image: func(t *testing.T, o *origin, victim layer) *image {
		im := claiming(t, o, victim, victim)
		publish(t, o, im, fsindex.Artifact, indexAs(t, tarLayer(t, file("b", honest), file("a", forged)), victim.Digest()))
		return im
	}},
	"table with another tree": {true: true, make: zstdChunkedLayer, image: func(t *testing.T, o *origin, victim layer) *image {
		l := swappedTable(t, victim)
		im := claiming(t, o, l, victim)
		evilServes(o, victim.Digest(), l.Blob)
		return im
	}},
}

// indexAs is the published index of a layer, under the digest of another one.
func indexAs(t *testing.T, l layer, d digest.Digest) []byte {
	t.Helper()
	const digestAt = 16
	data := indexOf(t, l)
	if _, err := hex.Decode(data[digestAt:digestAt+32], []byte(d.Encoded())); err != nil {
		t.Fatal(err)
	}
	if h, err := fsindex.ReadHead(data); err != nil || h.Digest != d {
		t.Fatalf("got the index of %s, %v", h.Digest, err)
	}
	return fsindex.Join([][]byte{data})
}

// claiming adds an image with a layer that claims another one's diffID.
func claiming(t *testing.T, o *origin, l, victim layer) *image {
	t.Helper()
	var config ocispec.Image
	config.RootFS.DiffIDs = []digest.Digest{victim.DiffID}
	im := imageOf(t, "evil", config, l)
	o.Add(im)
	o.Serve(victim.Digest(), victim.Blob)
	return im
}

// evilServes has the repository "evil" serve a blob under a digest.
func evilServes(o *origin, d digest.Digest, p []byte) {
	o.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
		repo, kind, what := split(r.URL.Path)
		if repo != "evil" || kind != "blobs" || digest.Digest(what) != d {
			return false
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(p))
		return true
	})
}

// swappedTable is a zstd:chunked layer with a table in which files a and b have each other's names. Its data are the same, and so is its
// digest, as its author says.
func swappedTable(t *testing.T, l layer) layer {
	t.Helper()
	was := l.Digest()
	var err error
	if l.Blob, l.Desc, err = falsify.Table(l.Blob, l.Desc, falsify.Swap("a", "b", "name")); err != nil {
		t.Fatal(err)
	}
	l.Desc.Digest = was
	return l
}

// TestForgedTree: who decides what is read of a layer, by a table or by an index that he publishes, decides it for his own images alone:
// neither in the namespace, where another image claims the same chainID, nor in another one, though all bytes that he serves are
// the layer's own and its diffID is right.
func TestForgedTree(t *testing.T) {
	for name, c := range claimants {
		for _, how := range []string{"incomplete", "proven", "proven, restart", "other namespace"} {
			if strings.HasPrefix(how, "proven") && !c.true {
				continue
			}
			t.Run(name+"/"+how, func(t *testing.T) {
				l := c.make(t, file("a", honest), file("b", forged))
				victim := newImage(t, "app", nil, l)
				o := newOrigin(t, victim)
				evil := c.image(t, o, l)
				b := newBed(t, o, func(b *bed) {
					b.opts.Layers.IndexOf = func(r registry.Repository) layers.IndexPolicy { return layers.IndexPolicy{Trust: r.Path == "evil"} }
				})
				name := b.pull(evil)
				b.sees(b.run("evil", name), "a", forged) // nobody else has claimed it yet
				if how != "incomplete" && c.true {
					b.complete(l, name)
					eventually(t, "its diffID to be checked", func() bool { return b.Status().Layers[0].Verified })
				}
				if how == "proven, restart" {
					b.restart()
				}
				if how == "other namespace" {
					b.ctx = namespaces.WithNamespace(t.Context(), "other")
					name = b.pull(victim)
				} else {
					b.fetch(victim)
				}
				b.sees(b.run("victim", name), "a", honest)
				b.sees(b.run("again", name), "a", honest)
				b.notBlamed(victim)
			})
		}
	}
}

// TestPublishedBeforeUse: where layers are proven before they are used, nobody publishes what decides their tree.
func TestPublishedBeforeUse(t *testing.T) {
	l := tarLayer(t, file("a", honest), file("b", forged))
	o := newOrigin(t)
	im := claimants["published index with another tree"].image(t, o, l)
	b := newBed(t, o, func(b *bed) { trusting(b); beforeUse(b) })
	b.sees(b.run("container", b.pull(im)), "a", honest)
	if st := b.statusOf(l); st.Format != "import" || !st.Verified {
		t.Errorf("status: %+v", st)
	}
}
