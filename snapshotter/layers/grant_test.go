package layers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/fs/erofs"
	"github.com/remora-storage/remora/fs/layout"
	"github.com/remora-storage/remora/remote/registry"
	"github.com/remora-storage/remora/snapshotter/internal/imagetest"
)

// possession is a layer of a private repository, and another registry whose image names it.
type possession struct {
	t            *testing.T
	layer        imagetest.Layer
	secret       []byte // of the file "a"
	owner, other *imagetest.Origin
	ours, theirs Source
	l            *Layers
	asked, bytes atomic.Int64 // of the other registry, for the layer
}

var possessed = map[string]func(testing.TB, ...imagetest.Member) imagetest.Layer{
	"gzip": imagetest.GzipLayer, "tar": imagetest.TarLayer, "zstd": imagetest.ZstdLayer,
	"estargz": imagetest.EstargzLayer, "zstdchunked": imagetest.ZstdChunkedLayer,
}

// newPossession makes both. answer is how the other registry answers requests for the layer; nil as one that has it.
func newPossession(t *testing.T, layer imagetest.Layer, secret []byte, answer func(http.ResponseWriter, *http.Request)) *possession {
	t.Helper()
	im := imagetest.NewImage(t, "app", nil, layer)
	p := &possession{t: t, layer: layer, secret: secret, owner: imagetest.NewOrigin(t, im), other: imagetest.NewOrigin(t, im)}
	p.other.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, layer.Digest().String()) {
			return false
		}
		p.asked.Add(1)
		if answer != nil {
			answer(w, r)
			return true
		}
		var from, to int64
		if n, _ := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &from, &to); n != 2 {
			to = int64(len(layer.Blob)) - 1
		}
		p.bytes.Add(to + 1 - from)
		return false
	})
	p.ours, p.theirs = sourceOf(p.owner, im), sourceOf(p.other, im)
	p.l = newOf(t, p.owner, Options{})
	return p
}

// open opens a layer, on nothing.
func (p *possession) open(s *Source) (*cache.File, error) {
	f, tree, err := p.l.Image(p.t.Context(), s)
	if err != nil || f != nil {
		return f, err
	}
	return p.l.BuildOn(p.t.Context(), s, tree, func(string) (layout.Attributes, bool, error) { return layout.Attributes{}, false, nil })
}

// read returns a file of a layer's image.
func (p *possession) read(f *cache.File, name string) ([]byte, error) {
	p.t.Helper()
	files, err := erofs.NewReader(f.Image(), f.MetaSize())
	if err != nil {
		p.t.Fatal(err)
	}
	n, found, _, _, err := files.Find(name)
	if err != nil || !found {
		p.t.Fatalf("found %v, %v", found, err)
	}
	got := make([]byte, n.Size)
	_, err = f.ReadAt(p.t.Context(), got, n.Data)
	return got, err
}

// has reads the owner's layer.
func (p *possession) has(name string) {
	p.t.Helper()
	f, err := p.open(&p.ours)
	if err != nil {
		p.t.Fatal(err)
	}
	if got, err := p.read(f, name); err != nil || !bytes.Equal(got, p.secret) {
		p.t.Fatalf("the owner has other bytes, or %v", err)
	}
}

// keeps fails the test if the other registry's image shows the owner's bytes.
func (p *possession) keeps(name string) {
	p.t.Helper()
	f, err := p.open(&p.theirs)
	if err != nil {
		return
	}
	got, err := p.read(f, name)
	if err == nil || bytes.Contains(got, p.secret[:100]) {
		p.t.Errorf("it reads what its registry has not: %d bytes, %v", len(got), err)
	}
}

// liars are how a registry answers for a layer that it has not.
var liars = map[string]func(l imagetest.Layer) func(http.ResponseWriter, *http.Request){
	"garbage": func(l imagetest.Layer) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, r *http.Request) {
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(imagetest.Noise(99, len(l.Blob))))
		}
	},
	"garbage whole": func(l imagetest.Layer) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write(imagetest.Noise(99, len(l.Blob))) }
	},
	"to HEAD alone": func(l imagetest.Layer) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodHead {
				w.WriteHeader(http.StatusForbidden)
				return
			}
			w.Header().Set("Content-Length", fmt.Sprint(len(l.Blob)))
		}
	},
	// It has all but the data: the head, and the table, too, if there is one.
	"the ends": func(l imagetest.Layer) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, r *http.Request) {
			p := bytes.Clone(l.Blob)
			clear(p[2000 : len(p)-5000])
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(p))
		}
	},
}

// TestPossession: that another registry answers for a layer's digest opens nobody's layer to its images: neither in the cache, whichever
// came first, nor by what this node knows of it.
func TestPossession(t *testing.T) {
	secret := imagetest.Noise(1, 300_000)
	for format, make := range possessed {
		plain := make(t, imagetest.File("a", secret))
		unlisted := make(t, imagetest.File("unlisted/a", secret)) // its directory has the attributes that it has below
		for name, lies := range liars {
			for _, order := range []string{"after", "before", "removed", "on others"} {
				t.Run(format+"/"+name+"/"+order, func(t *testing.T) {
					file, layer := "a", plain
					if order == "on others" {
						file, layer = "unlisted/a", unlisted
					}
					p := newPossession(t, layer, secret, lies(layer))
					if order == "before" {
						_, _ = p.open(&p.theirs)
					}
					p.has(file)
					if order == "removed" { // but for the index that was made of it
						if n, err := p.l.Indexes.made(t.Context(), layer.Digest()); (err == nil) != p.l.Whole(&p.ours) {
							t.Fatalf("an index of %d bytes, %v", n, err)
						}
						p.l.Forget(&p.ours)
						for _, f := range p.l.cache.Opened(p.ours.BlobName()) {
							p.l.Sources.Forget(f.ID())
							if err := p.l.cache.Remove(f.ID()); err != nil {
								t.Fatal(err)
							}
						}
					}
					p.keeps(file)
					p.has(file)
					p.keeps(file)
				})
			}
		}
	}
}

// TestPossessionOnOthers: who has the table of a layer is not given the image that this node made of the whole layer, on others below it.
func TestPossessionOnOthers(t *testing.T) {
	secret := imagetest.Noise(1, 300_000)
	nothing := func(string) (layout.Attributes, bool, error) { return layout.Attributes{}, false, nil }
	for _, format := range []string{"estargz", "zstdchunked"} {
		t.Run(format, func(t *testing.T) {
			layer := possessed[format](t, imagetest.File("unlisted/a", secret))
			p := newPossession(t, layer, secret, liars["the ends"](layer))
			_, tree, err := p.l.WholeImage(t.Context(), &p.ours)
			if err != nil || tree == nil {
				t.Fatalf("got %v, %v", tree, err)
			}
			if _, err := p.l.BuildOn(t.Context(), &p.ours, tree, nothing); err != nil {
				t.Fatal(err)
			}
			p.keeps("unlisted/a")
			if p.asked.Load() == 0 {
				t.Error("its own registry was not asked")
			}
		})
	}
}

// TestPossessionIsShown: a registry that has a layer, too, shows it by a handful of requests, and its image is not downloaded again. What
// is asked for beyond that are tables.
func TestPossessionIsShown(t *testing.T) {
	for format, make := range possessed {
		t.Run(format, func(t *testing.T) {
			secret := imagetest.Noise(1, 8<<20)
			p := newPossession(t, make(t, imagetest.File("a", secret)), secret, nil)
			p.has("a")
			f, err := p.open(&p.theirs)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := p.read(f, "a"); err != nil || !bytes.Equal(got, secret) {
				t.Fatalf("other bytes, or %v", err)
			}
			most := int64(len(p.layer.Blob)) / 8
			t.Logf("%d requests for %d bytes of %d", p.asked.Load(), p.bytes.Load(), len(p.layer.Blob))
			if n := p.asked.Load(); n > 8 || p.bytes.Load() > most {
				t.Errorf("it was asked %d times, for %d bytes of %d", n, p.bytes.Load(), len(p.layer.Blob))
			}
			n := p.asked.Load()
			p.l.Forget(&p.theirs)
			if _, err := p.open(&p.theirs); err != nil || p.asked.Load() != n {
				t.Errorf("again, it was asked %d times more: %v", p.asked.Load()-n, err)
			}
		})
	}
}

// TestMadeIndexIsShown: an index that was made here of another registry's layer serves a registry that shows that it has the layer: its
// image is read by parts.
func TestMadeIndexIsShown(t *testing.T) {
	secret := imagetest.Noise(1, 8<<20)
	p := newPossession(t, imagetest.GzipLayer(t, imagetest.File("a", secret)), secret, nil)
	if err := p.l.Indexes.put(p.layer.Digest(), imagetest.IndexOf(t, p.layer)); err != nil {
		t.Fatal(err)
	}
	f, err := p.open(&p.theirs)
	if err != nil || f.Imported() {
		t.Fatalf("it was read whole, or %v", err)
	}
	if got, err := p.read(f, "a"); err != nil || !bytes.Equal(got, secret) {
		t.Fatalf("other bytes, or %v", err)
	}
}

// TestShownWhole: where parts show nothing, as of a layer of names alone, or from a registry that serves no ranges, all of it does.
func TestShownWhole(t *testing.T) {
	names := func(t testing.TB, _ ...imagetest.Member) imagetest.Layer {
		return imagetest.GzipLayer(t, imagetest.Dir("private", 0o700), imagetest.Link("private/a", "b"))
	}
	data := func(t testing.TB, _ ...imagetest.Member) imagetest.Layer {
		return imagetest.GzipLayer(t, imagetest.File("a", imagetest.Noise(1, 300_000)))
	}
	// The converter adds a landmark, which is the same in all layers, and all of what whoever reads the layer whole can compare.
	converted := func(convert func(testing.TB, ...imagetest.Member) imagetest.Layer) func(testing.TB, ...imagetest.Member) imagetest.Layer {
		return func(t testing.TB, _ ...imagetest.Member) imagetest.Layer {
			return convert(t, imagetest.Link("a-name-that-nobody-knows", "b"))
		}
	}
	for name, c := range map[string]struct {
		make   func(testing.TB, ...imagetest.Member) imagetest.Layer
		spoilt bool
		ranges bool
	}{
		"names": {names, false, true}, "names, spoilt": {names, true, true},
		"without ranges": {data, false, false}, "without ranges, spoilt": {data, true, false},
		"estargz": {converted(imagetest.EstargzLayer), false, true}, "estargz, spoilt": {converted(imagetest.EstargzLayer), true, true},
		"zstdchunked":         {converted(imagetest.ZstdChunkedLayer), false, true},
		"zstdchunked, spoilt": {converted(imagetest.ZstdChunkedLayer), true, true},
	} {
		t.Run(name, func(t *testing.T) {
			layer := c.make(t)
			p := newPossession(t, layer, nil, func(w http.ResponseWriter, r *http.Request) {
				b := bytes.Clone(layer.Blob)
				if c.spoilt {
					b[len(b)/2] ^= 1
				}
				if c.ranges {
					http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
				} else {
					_, _ = w.Write(b)
				}
			})
			if _, _, err := p.l.WholeImage(t.Context(), &p.ours); err != nil {
				t.Fatal(err)
			}
			if _, err := p.open(&p.theirs); (err != nil) != c.spoilt {
				t.Errorf("got %v", err)
			}
		})
	}
}

// storeOf is a content store. Nobody knows where it has its blobs from.
type storeOf map[digest.Digest][]byte

type storedBytes struct{ *bytes.Reader }

func (storedBytes) Close() error { return nil }

func (b storeOf) Blob(_ context.Context, _ string, d digest.Digest) (content.ReaderAt, error) {
	if p := b[d]; p != nil {
		return storedBytes{bytes.NewReader(p)}, nil
	}
	return nil, os.ErrNotExist
}

func (storeOf) From(context.Context, string, digest.Digest, registry.Repository) bool { return false }

func (b storeOf) KeepBlob(
	_ context.Context, _ string, desc ocispec.Descriptor, _ registry.Repository, _ digest.Digest, r io.Reader,
) error {
	p, err := io.ReadAll(r)
	if err == nil && digest.FromBytes(p) != desc.Digest {
		err = errWrongBlob
	}
	if err == nil {
		b[desc.Digest] = p
	}
	return err
}

// TestShownWholeElsewhere: so it is of an image on other layers, of what containerd has, and of what it is to keep.
func TestShownWholeElsewhere(t *testing.T) {
	secret := imagetest.Noise(1, 300_000)
	onOthers := imagetest.EstargzLayer(t, imagetest.File("unlisted/a", secret))
	nothing := func(string) (layout.Attributes, bool, error) { return layout.Attributes{}, false, nil }
	for name, c := range map[string]struct {
		layer imagetest.Layer
		open  func(p *possession, stored storeOf, noRanges *atomic.Bool) error
	}{
		"on others": {onOthers, func(p *possession, _ storeOf, noRanges *atomic.Bool) error {
			_, tree, err := p.l.WholeImage(t.Context(), &p.ours)
			if err == nil {
				_, err = p.l.BuildOn(t.Context(), &p.ours, tree, nothing)
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, tree, err = p.l.Image(t.Context(), &p.theirs); err != nil || tree == nil {
				t.Fatalf("got %v, %v", tree, err)
			}
			noRanges.Store(true)
			_, err = p.l.BuildOn(t.Context(), &p.theirs, tree, nothing)
			return err
		}},
		"stored": {imagetest.GzipLayer(t, imagetest.File("a", secret)), func(p *possession, stored storeOf, noRanges *atomic.Bool) error {
			stored[p.layer.Digest()] = p.layer.Blob
			noRanges.Store(true)
			_, err := p.open(&p.theirs)
			return err
		}},
		"to be kept": {imagetest.GzipLayer(t, imagetest.Link("a", "b")), func(p *possession, stored storeOf, _ *atomic.Bool) error {
			f, err := p.open(&p.ours)
			if err != nil {
				t.Fatal(err)
			}
			err = p.l.Imports.FileBlob(t.Context(), f, &p.theirs)
			if kept := stored[p.layer.Digest()] != nil; kept != (err == nil) {
				t.Errorf("kept: %v, though %v", kept, err)
			}
			return err
		}},
	} {
		for _, spoilt := range []bool{false, true} {
			t.Run(fmt.Sprint(name, ", spoilt: ", spoilt), func(t *testing.T) {
				var noRanges atomic.Bool
				p := newPossession(t, c.layer, nil, func(w http.ResponseWriter, r *http.Request) {
					b := bytes.Clone(c.layer.Blob)
					if spoilt {
						b[15] ^= 1 // before any table
					}
					if noRanges.Load() {
						_, _ = w.Write(b)
					} else {
						http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
					}
				})
				stored := storeOf{}
				p.l.opts.Blobs, p.l.Places.blobs, p.theirs.Namespace = stored, stored, "theirs"
				if err := c.open(p, stored, &noRanges); (err != nil) != spoilt {
					t.Errorf("got %v", err)
				}
			})
		}
	}
}

// TestMadeIndexIsAskedFor: what an index says that was made here is for no repository of the registry that does not serve the layer,
// though containerd has it.
func TestMadeIndexIsAskedFor(t *testing.T) {
	secret := imagetest.Noise(1, 300_000)
	p := newPossession(t, imagetest.GzipLayer(t, imagetest.File("a", secret)), secret, nil)
	p.has("a")
	if _, err := p.l.Indexes.made(t.Context(), p.layer.Digest()); err != nil {
		t.Fatal(err)
	}
	p.owner.Answer("/v2/thief/blobs/", http.StatusNotFound)
	p.theirs = p.ours
	p.theirs.Repo.Path, p.theirs.Namespace = "thief", "thieves"
	p.l.Places.blobs = storeOf{p.layer.Digest(): p.layer.Blob}
	x, err := p.l.Indexes.byMadeIndex(t.Context(), &Opening{src: p.theirs, proof: newProof()})
	if x != nil || !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("got %v, %v", x, err)
	}
}

// watchedRegistry notes how long what is asked of it may take, once it is to.
type watchedRegistry struct {
	Registry
	watch atomic.Bool
	left  chan time.Duration
}

func (r *watchedRegistry) Blob(repo registry.Repository, desc ocispec.Descriptor) Blob {
	return &watchedBlob{r.Registry.Blob(repo, desc), r}
}

type watchedBlob struct {
	Blob
	of *watchedRegistry
}

func (b *watchedBlob) Open(ctx context.Context, off, n int64, try int) (io.ReadCloser, error) {
	if b.of.watch.Load() {
		left := time.Duration(math.MaxInt64)
		if at, ok := ctx.Deadline(); ok {
			left = time.Until(at)
		}
		b.of.left <- left
	}
	return b.Blob.Open(ctx, off, n, try)
}

// TestComparingHoldsUpNobody: whether a registry has what another one's image shows is found out once the image is there and known, and
// whoever mounts it waits for that no longer than for a proof.
func TestComparingHoldsUpNobody(t *testing.T) {
	const patience = 5 * time.Second
	secret := imagetest.Noise(1, 300_000)
	p := newPossession(t, imagetest.EstargzLayer(t, imagetest.File("a", secret)), secret, nil)
	p.has("a")
	reg := &watchedRegistry{Registry: p.l.Places.registry, left: make(chan time.Duration, 100)}
	p.l.Places.registry, p.l.Proofs.wait = reg, patience
	p.l.hooks.Built = func(*Source, *cache.File, []uint32) { reg.watch.Store(true) }
	if _, err := p.open(&p.theirs); err != nil {
		t.Fatal(err)
	}
	if len(reg.left) == 0 {
		t.Error("nothing was compared after the image was there")
	}
	for range len(reg.left) {
		if left := <-reg.left; left > patience {
			t.Errorf("a comparison may take %s more", left)
		}
	}
}

// TestWordOfURLs: a registry's word counts for what it serves itself, and not for a place that a manifest names.
func TestWordOfURLs(t *testing.T) {
	secret := imagetest.Noise(1, 300_000)
	layer := imagetest.GzipLayer(t, imagetest.File("a", secret))
	layer.Desc.MediaType = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
	p := newPossession(t, layer, secret, liars["garbage"](layer))
	p.has("a")
	p.owner.Answer("/v2/thief/blobs/", http.StatusNotFound)
	p.theirs = p.ours
	p.theirs.Repo.Path = "thief"
	p.theirs.Descriptor.URLs = []string{p.other.URL + "/" + layer.Digest().String()}
	p.l.Places.registry = Remote{registry.New(registry.Options{PrivatePlaces: true, Log: imagetest.LogOf(t)})}
	p.keeps("a")
	if p.asked.Load() == 0 {
		t.Error("the place was not asked")
	}
}

// TestCopiesNeedAll: what several repositories share gets another layer's bytes only if each of them has that one, too.
func TestCopiesNeedAll(t *testing.T) {
	o := imagetest.NewOrigin(t)
	l := newOf(t, o, Options{})
	src := func(path, of string) *Source {
		return &Source{
			Repo:       registry.Repository{Host: o.Host(), Path: path},
			Descriptor: ocispec.Descriptor{MediaType: toyMedia, Digest: digest.FromString(of), Size: 1},
		}
	}
	image := func(of string) string { return wholeOf(src("", of)).String() }
	base, private := image("base"), image("private")
	all := &repositories{}
	l.Sources.all[base] = all
	all.add(repositorySource{repo: src("victim", "base").Repo})
	if l.Granted.MayCopy(base, private) {
		t.Error("nobody has let us have it")
	}
	l.Granted.Note(src("victim", "private"), private)
	if !l.Granted.MayCopy(base, private) {
		t.Error("the only repository has both")
	}
	all.add(repositorySource{repo: src("evil", "base").Repo})
	if l.Granted.MayCopy(base, private) {
		t.Error("one of two repositories lacks it")
	}
	if l.Granted.MayCopy(image("nobody's"), private) {
		t.Error("nobody reads the image")
	}
}

// TestNotPublished: the index of a layer is published beside no image whose repository has not let us have the layer.
func TestNotPublished(t *testing.T) {
	secret := imagetest.Noise(1, 3<<20)
	layer := imagetest.GzipLayer(t, imagetest.File("a", secret))
	for name, lies := range map[string]bool{"who has it": false, "who has not": true} {
		t.Run(name, func(t *testing.T) {
			answer := func(func(http.ResponseWriter, *http.Request)) func(http.ResponseWriter, *http.Request) { return nil }
			if lies {
				answer = func(f func(http.ResponseWriter, *http.Request)) func(http.ResponseWriter, *http.Request) { return f }
			}
			p := newPossession(t, layer, secret, answer(liars["garbage"](layer)))
			p.l.opts.IndexOf = func(registry.Repository) IndexPolicy { return IndexPolicy{Publish: true} }
			p.has("a")
			if _, err := p.l.Indexes.made(t.Context(), layer.Digest()); err != nil {
				t.Fatal(err)
			}
			_, _ = p.open(&p.theirs)
			im := imagetest.NewImage(t, "app", nil, layer)
			img := imageOf(p.other, im)
			img.Layers = []Source{p.theirs}
			var pushed atomic.Bool
			p.other.SetFault(func(_ http.ResponseWriter, r *http.Request) bool {
				if r.Method != http.MethodGet && r.Method != http.MethodHead {
					pushed.Store(true)
				}
				return false
			})
			p.l.Indexes.Publish(img)
			if pushed.Load() == lies {
				t.Errorf("it was published: %v", pushed.Load())
			}
		})
	}
}
