package snapshotter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	fsindex "github.com/remora-storage/remora/fs/index"
	"github.com/remora-storage/remora/fs/layout"
	"github.com/remora-storage/remora/remote/registry"
	"github.com/remora-storage/remora/snapshotter/layers"
)

// stored are the blobs of a content store.
type stored struct {
	store    content.Store
	labelled bool // blobs are from every repository
}

func (s stored) Blob(ctx context.Context, namespace string, d digest.Digest) (content.ReaderAt, error) {
	return s.store.ReaderAt(namespaces.WithNamespace(ctx, namespace), ocispec.Descriptor{Digest: d})
}

func (s stored) From(ctx context.Context, namespace string, d digest.Digest, repo registry.Repository) bool {
	info, err := s.store.Info(namespaces.WithNamespace(ctx, namespace), d)
	return s.labelled || err == nil && info.Labels[sourceLabelPrefix+repo.Hostname()] == repo.Path
}

func (s stored) KeepBlob(
	ctx context.Context, namespace string, desc ocispec.Descriptor, _ registry.Repository, _ digest.Digest, r io.Reader,
) error {
	err := content.WriteBlob(namespaces.WithNamespace(ctx, namespace), s.store, desc.Digest.String(), r, desc)
	if errdefs.IsAlreadyExists(err) {
		return nil
	}
	return err
}

func withBlobs(b *bed) { b.opts.Layers.Blobs = stored{store: b.store} }

// TestImportGoesOn: an import that broke off goes on where it was, for the next who asks, and after a restart.
func TestImportGoesOn(t *testing.T) {
	body := noise(1, 3<<20)
	for _, restart := range []bool{false, true} {
		im := newImage(t, "app", nil, tarLayer(t, file("a", body)))
		b := newBed(t, newOrigin(t, im), nil)
		half := int64(len(body) / 2)
		b.origin.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
			if _, kind, what := split(r.URL.Path); kind != "blobs" || what != im.Layers[0].Digest().String() {
				return false
			}
			if r.Method != http.MethodGet || !strings.HasPrefix(r.Header.Get("Range"), "bytes=0-") {
				panic(http.ErrAbortHandler) // nothing is answered, for which the host would be left alone
			}
			w.Header().Set("Content-Range", strings.Replace(strings.Replace(r.Header.Get("Range"), "=", " ", 1), "bytes=", "", 1)+"/*")
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(im.Layers[0].Blob[:half]) // the client may have left
			panic(http.ErrAbortHandler)
		})
		b.fetch(im)
		if reasons, err := b.Resolve(b.ctx, im.Target.Digest, b.ref(im), func([]Progress) {}); err != nil || len(reasons) != 1 {
			t.Fatalf("got %v, %v", reasons, err)
		}
		b.origin.SetFault(nil)
		if restart {
			b.restart()
		}
		b.origin.Forget()
		if reasons, err := b.Resolve(b.ctx, im.Target.Digest, b.ref(im), func([]Progress) {}); err != nil || len(reasons) != 0 {
			t.Fatalf("got %v, %v", reasons, err)
		}
		if b.origin.Wholly(im.Layers[0]) || b.origin.AskedFrom(im.Layers[0]) < half/2 {
			t.Errorf("restart %v: asked again from %d, of %d that had come", restart, b.origin.AskedFrom(im.Layers[0]), half)
		}
		b.sees(b.run("container", b.pull(im)), "a", body)
	}
}

// TestWithoutRanges: layers of a registry that serves no ranges are read whole, of whatever size, in one request each, the one that shows
// it among them, also if it does not say how much comes, or breaks off.
func TestWithoutRanges(t *testing.T) {
	published := format{"published index", gzipLayer, true}
	body := noise(5, 6<<20)
	for _, f := range append(slices.Clone(formats), published) {
		one, two := newImage(t, "one", nil, f.make(t, file("a", body))), newImage(t, "two", nil, f.make(t, file("b", body)))
		indexes := map[*image][]byte{}
		if f.name == published.name {
			for _, im := range []*image{one, two} {
				indexes[im] = fsindex.Join([][]byte{indexOf(t, im.Layers[0])})
			}
		}
		for name, spoil := range map[string]func(w http.ResponseWriter, p []byte){
			"plain":   func(w http.ResponseWriter, p []byte) { _, _ = w.Write(p) },
			"chunked": func(w http.ResponseWriter, p []byte) { w.(http.Flusher).Flush(); _, _ = w.Write(p) },
			"breaks": func() func(w http.ResponseWriter, p []byte) {
				var asked atomic.Int64
				return func(w http.ResponseWriter, p []byte) {
					if asked.Add(1)%2 == 0 {
						_, _ = w.Write(p)
						return
					}
					_, _ = w.Write(p[:len(p)*2/3])
					w.(http.Flusher).Flush()
					panic(http.ErrAbortHandler)
				}
			}(),
		} {
			t.Run(f.name+" "+name, func(t *testing.T) {
				o := newOrigin(t, one, two)
				for im, index := range indexes {
					publish(t, o, im, fsindex.Artifact, index)
				}
				o.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
					_, kind, what := split(r.URL.Path)
					p := o.Bytes(digest.Digest(what))
					if kind != "blobs" || r.Method != http.MethodGet || len(p) == 0 {
						return false
					}
					spoil(w, p)
					return true
				})
				b := newBed(t, o, trusting)
				b.fetch(one)
				b.resolve(one)
				b.sees(b.run("one", b.pull(one)), "a", body)
				b.fetch(two)
				b.resolve(two)
				b.sees(b.run("two", b.pull(two)), "b", body)
				for _, im := range []*image{one, two} {
					n := o.Requests("blobs", im.Layers[0].Digest().String())
					if name != "breaks" && n != 1 || n > 3 {
						t.Errorf("%d requests for the layer of image %s", n, im.Path)
					}
				}
			})
		}
	}
}

// TestRangesAgain: a registry that stops to serve ranges has new layers read whole until it serves one, whoever asks for that.
func TestRangesAgain(t *testing.T) {
	var all []*image
	for i, path := range []string{"used", "new", "later"} {
		all = append(all, newImage(t, path, nil, estargzLayer(t, file("a", noise(uint64(20+i), 3<<20)))))
	}
	used, whole, later := all[0], all[1], all[2]
	b := newBed(t, newOrigin(t, all...), nil)
	mounts := b.run("used", b.pull(used))
	for _, c := range []struct {
		im     *image
		ranges bool
		format string
	}{{whole, false, "import"}, {later, true, "estargz"}} {
		b.origin.SetFault(func(_ http.ResponseWriter, r *http.Request) bool {
			if !c.ranges {
				r.Header.Del("Range")
			}
			return false
		})
		if c.ranges {
			b.origin.Forget()
			b.sees(mounts, "a", noise(20, 3<<20))
			if b.origin.Requests("blobs", used.Layers[0].Digest().String()) == 0 {
				t.Fatal("nothing was left to be read of the image that is in use")
			}
		}
		b.run(c.im.Path, b.pull(c.im))
		if got := b.statusOf(c.im.Layers[0]).Format; got != c.format {
			t.Errorf("where the registry serves ranges: %v, a new layer is read by %q", c.ranges, got)
		}
	}
}

// A brief is a registry whose outages end with the first range that is not asked for since its host is left alone.
type brief struct {
	layers.Registry
	unasked atomic.Int64
}

func (r *brief) Blob(repo registry.Repository, desc ocispec.Descriptor) layers.Blob {
	return briefBlob{r.Registry.Blob(repo, desc), r}
}

type briefBlob struct {
	layers.Blob
	of *brief
}

func (b briefBlob) Open(ctx context.Context, off, n int64, try int) (io.ReadCloser, error) {
	r, err := b.Blob.Open(ctx, off, n, try)
	if registry.Unasked(err) {
		b.of.unasked.Add(1)
		b.of.Forgive()
	}
	return r, err
}

// TestUnaskedIsNotWhole: a request that is not made, since the registry is left alone, is no reason to ask for a whole layer: the registry
// has said nothing of ranges. The next import reads it by them.
func TestUnaskedIsNotWhole(t *testing.T) {
	body := noise(7, 3<<20)
	im := newImage(t, "app", nil, tarLayer(t, file("a", body)))
	o := newOrigin(t, im)
	var logins registry.Logins
	if _, err := logins.Set(o.Host(), registry.Login{PlainHTTP: true}); err != nil {
		t.Fatal(err)
	}
	client := registry.New(registry.Options{
		Logins: &logins, Retry: registry.Retry{Attempts: 1, First: time.Hour, Max: time.Hour}, Log: logOf(t),
	})
	reg := &brief{Registry: layers.Remote{Registry: client}}
	b := newBed(t, o, func(b *bed) {
		b.registry = reg
		b.opts.Layers.ImportOf = func(registry.Repository) layers.ImportPolicy { return layers.ImportPolicy{Mode: layers.ImportEager} }
	})
	o.Answer("/blobs/", http.StatusServiceUnavailable)
	for range 2 { // after which it is left alone
		if _, err := client.Blob(b.repo(im), im.Layers[0].Digest(), im.Layers[0].Desc.Size).Open(t.Context(), 0, 1, 0); err == nil {
			t.Fatal("a registry that is away has answered")
		}
	}
	o.SetFault(nil)
	o.Forget()
	b.fetch(im)
	if reasons := b.resolve(im); len(reasons) != 1 || reg.unasked.Load() != 1 {
		t.Errorf("got %v; %d requests were not made", reasons, reg.unasked.Load())
	}
	if reasons := b.resolve(im); len(reasons) != 0 {
		t.Errorf("when it is over: %v", reasons)
	}
	if o.Wholly(im.Layers[0]) {
		t.Error("the layer was asked for whole")
	}
	b.sees(b.run("container", b.pull(im)), "a", body)
}

// TestRangesFail: a registry that answers 5xx to ranges alone is asked for whole layers, though it is left alone for a while for that, the
// longer the more layers an image has.
func TestRangesFail(t *testing.T) {
	for i := range 8 {
		var all []layer
		for k := range 1 + i%4 {
			all = append(all, gzipLayer(t, file(fmt.Sprint(k), noise(uint64(10*i+k), 300_000))))
		}
		im := newImage(t, fmt.Sprint("app", i), nil, all...)
		o := newOrigin(t, im)
		o.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
			fails := r.Header.Get("Range") != ""
			if fails {
				w.WriteHeader(http.StatusInternalServerError)
			}
			return fails
		})
		b := newBed(t, o, nil)
		b.fetch(im)
		if reasons := b.resolve(im); len(reasons) > 0 {
			t.Errorf("of %d layers: %v", len(all), reasons)
		}
	}
}

// TestStoredOffline: what containerd has is used for layers of every kind while no registry answers.
func TestStoredOffline(t *testing.T) {
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) {
			l := f.make(t, file("a", honest))
			im := newImage(t, "app", nil, l)
			o := newOrigin(t, im)
			b := newBed(t, o, withBlobs)
			b.put(l.Desc, l.Blob, map[string]string{sourceLabelPrefix + b.repo(im).Hostname(): im.Path})
			o.SetFault(func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) })
			b.sees(b.run("container", b.pull(im)), "a", honest)
			if n := o.Requests("blobs", l.Digest().String()); n != 0 {
				t.Errorf("the registry was asked %d times", n)
			}
		})
	}
}

// TestImportAsksThrice: bytes that are not the blob's are asked for again, and then given up.
func TestImportAsksThrice(t *testing.T) {
	l := gzipLayer(t, file("a", noise(2, 10_000)))
	im := newImage(t, "app", nil, l)
	o := newOrigin(t, im)
	o.Serve(l.Digest(), gzipLayer(t, file("b", noise(3, 10_000))).Blob[:l.Desc.Size])
	b := newBed(t, o, nil)
	b.fetch(im)
	reasons, err := b.Resolve(b.ctx, im.Target.Digest, b.ref(im), func([]Progress) {})
	if err != nil || len(reasons) != 1 || reasons[l.Digest()] == "" {
		t.Errorf("got %v, %v", reasons, err)
	}
	if n := o.Requests("blobs", l.Digest().String()); n < 3 {
		t.Errorf("asked %d times", n)
	}
}

// TestImportBeyondLimits: a layer that asks for more than the limits is read once: the same bytes would ask for the same again.
func TestImportBeyondLimits(t *testing.T) {
	l := gzipLayer(t, file("a", honest), file("b", honest), file("c", honest), file("d", honest))
	im := newImage(t, "app", nil, l)
	o := newOrigin(t, im)
	b := newBed(t, o, func(b *bed) { b.opts.Layers.Limits.Nodes = 3 })
	b.fetch(im)
	reasons := b.resolve(im)
	if !strings.Contains(reasons[l.Digest()], "files and directories") {
		t.Errorf("got %v", reasons)
	}
	if n := o.Requests("blobs", l.Digest().String()); n > 2 { // one of them may only try whether there are ranges
		t.Errorf("asked %d times", n)
	}
}

// TestBeyondLimitsRemembered: of a layer that turned out to be beyond the limits after it was claimed, that is known at the next Prepare,
// without a request, also after a restart; another repository's is tried, and so is each under other limits.
func TestBeyondLimitsRemembered(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root unpacks layers")
	}
	l := gzipLayer(t, file("a", honest), file("b", honest), file("c", noise(1, 100_000)), file("d", honest))
	im, twin := newImage(t, "app", nil, l), newImage(t, "twin", []string{"twin"}, l)
	o := newOrigin(t, im, twin)
	b := newBed(t, o, func(b *bed) { b.opts.Layers.Limits.Nodes = 3 })
	top := refusedLate(b, im)
	b.sees(b.run("container", top), "a", honest)
	for _, key := range []string{"container", top} {
		if err := errors.Join(b.Remove(b.ctx, key), b.Cleanup(b.ctx)); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		b.restart()
		o.Forget()
		b.decline(im, 0, "")
		if reasons := b.resolve(im); !strings.Contains(reasons[l.Digest()], "files and directories") {
			t.Errorf("got %v", reasons)
		}
		if n := o.Requests("blobs", l.Digest().String()); n != 0 {
			t.Errorf("asked %d times for what is known", n)
		}
	}
	b.fetch(twin)
	b.resolve(twin)
	if n := o.Requests("blobs", l.Digest().String()); n == 0 {
		t.Error("another repository was not asked")
	}
	b.opts.Layers.Limits.Nodes = 100
	b.restart()
	b.sees(b.run("roomy", b.claim(im, 0, "")), "a", honest)
}

// TestImportRightAtLast: bytes that are right at the second try are taken.
func TestImportRightAtLast(t *testing.T) {
	body := noise(4, 10_000)
	l := gzipLayer(t, file("a", body))
	im := newImage(t, "app", nil, l)
	o := newOrigin(t, im)
	bad := bytes.Clone(l.Blob)
	bad[len(bad)/2] ^= 1
	var asked atomic.Int32
	o.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, l.Digest().String()) || r.Method != http.MethodGet || len(r.Header.Get("Range")) < len("bytes=0-100") {
			return false
		}
		if asked.Add(1) > 1 {
			return false
		}
		w.Header().Set("Content-Length", "")
		w.Header().Del("Content-Length")
		http.ServeContent(w, r, "", epoch, bytes.NewReader(bad))
		return true
	})
	b := newBed(t, o, nil)
	b.sees(b.run("container", b.pull(im)), "a", body)
}

// TestBomb: a layer that decodes to more than the limit is not imported.
func TestBomb(t *testing.T) {
	im := newImage(t, "app", nil, gzipLayer(t, file("zeros", make([]byte, 1<<20))))
	b := newBed(t, newOrigin(t, im), func(b *bed) { b.opts.Layers.Limits = layout.Limits{Plain: 100_000} })
	b.fetch(im)
	reasons, err := b.Resolve(b.ctx, im.Target.Digest, b.ref(im), func([]Progress) {})
	if err != nil || !strings.Contains(reasons[im.Layers[0].Digest()], "[limits] plain") {
		t.Errorf("got %v, %v", reasons, err)
	}
	b.decline(im, 0, "")
}

// TestEager: where layers are to be here whole, their index is of no interest.
func TestEager(t *testing.T) {
	body := noise(5, 100_000)
	im := newImage(t, "app", nil, estargzLayer(t, file("a", body)))
	b := newBed(t, newOrigin(t, im), func(b *bed) {
		b.opts.Layers.ImportOf = func(registry.Repository) layers.ImportPolicy { return layers.ImportPolicy{Mode: layers.ImportEager} }
	})
	mounts := b.run("container", b.pull(im))
	b.origin.Close()
	b.sees(mounts, "a", body)
	if st := b.statusOf(im.Layers[0]); st.Format != "import" || st.Present != st.Data || !st.Verified {
		t.Errorf("status: %+v", st)
	}
}

// TestKeepBlobs: what was imported is in containerd's content store afterwards, if that is wanted.
func TestKeepBlobs(t *testing.T) {
	l := gzipLayer(t, file("a", noise(6, 10_000)))
	im := newImage(t, "app", nil, l)
	b := newBed(t, newOrigin(t, im), func(b *bed) {
		withBlobs(b)
		b.opts.Layers.ImportOf = func(registry.Repository) layers.ImportPolicy { return layers.ImportPolicy{KeepBlobs: true} }
	})
	b.run("container", b.pull(im))
	if p, err := content.ReadBlob(b.ctx, b.store, l.Desc); err != nil || !bytes.Equal(p, l.Blob) {
		t.Errorf("got %d bytes, %v", len(p), err)
	}
}

// TestKeepBlobsLater: so is, in the background and in each namespace, what is read by an index, and what was unpacked.
func TestKeepBlobsLater(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root unpacks layers")
	}
	one := estargzLayer(t, file("a", noise(61, 10_000)), file("b", noise(62, 300_000)))
	two := zstdChunkedLayer(t, file("c", noise(63, 10_000)), file("d", noise(64, 300_000)))
	late := gzipLayer(t, file("e", noise(65, 300_000)), device("odd"))
	im := newImage(t, "app", nil, one, two, late)
	kept := &namespaced{all: map[string][]byte{}}
	b := newBed(t, newOrigin(t, im), func(b *bed) {
		b.opts.Layers.Blobs, b.opts.Metadata, b.opts.KeepBlobs = kept, kept, true
		b.opts.Layers.ImportOf = func(registry.Repository) layers.ImportPolicy { return layers.ImportPolicy{KeepBlobs: true} }
	})
	b.run("container", refusedLate(b, im))
	for _, namespace := range []string{"default", "other"} {
		for _, l := range im.Layers {
			eventually(t, "the blob is kept", func() bool { return kept.has(namespace, l.Digest()) != nil })
			if p := kept.has(namespace, l.Digest()); !bytes.Equal(p, l.Blob) {
				t.Errorf("got %d bytes", len(p))
			}
		}
	}
}

// namespaced are two namespaces, and the blobs of each.
type namespaced struct {
	mu  sync.Mutex // guards all
	all map[string][]byte
}

func (n *namespaced) Namespaces(context.Context) ([]string, error) {
	return []string{"default", "other"}, nil
}

func (n *namespaced) Walk(context.Context, snapshots.WalkFunc) error { return nil }

func (n *namespaced) has(namespace string, d digest.Digest) []byte {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.all[namespace+" "+d.String()]
}

func (n *namespaced) Blob(_ context.Context, namespace string, d digest.Digest) (content.ReaderAt, error) {
	p := n.has(namespace, d)
	if p == nil {
		return nil, errdefs.ErrNotFound
	}
	return struct {
		*bytes.Reader
		io.Closer
	}{bytes.NewReader(p), io.NopCloser(nil)}, nil
}

func (n *namespaced) From(context.Context, string, digest.Digest, registry.Repository) bool {
	return false
}

func (n *namespaced) KeepBlob(
	_ context.Context, namespace string, desc ocispec.Descriptor, _ registry.Repository, _ digest.Digest, r io.Reader,
) error {
	p, err := io.ReadAll(r)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.all[namespace+" "+desc.Digest.String()] = p
	return err
}

// TestKeepBlobFails: a blob that cannot be kept is no reason to fail.
func TestKeepBlobFails(t *testing.T) {
	body := noise(7, 10_000)
	im := newImage(t, "app", nil, gzipLayer(t, file("a", body)))
	b := newBed(t, newOrigin(t, im), func(b *bed) {
		b.opts.Layers.Blobs = noBlobs{}
		b.opts.Layers.ImportOf = func(registry.Repository) layers.ImportPolicy { return layers.ImportPolicy{KeepBlobs: true} }
	})
	b.sees(b.run("container", b.pull(im)), "a", body)
}

// noBlobs is a content store that cannot be reached.
type noBlobs struct{}

func (noBlobs) Blob(context.Context, string, digest.Digest) (content.ReaderAt, error) {
	return nil, os.ErrDeadlineExceeded
}

func (noBlobs) From(context.Context, string, digest.Digest, registry.Repository) bool { return false }

func (noBlobs) KeepBlob(context.Context, string, ocispec.Descriptor, registry.Repository, digest.Digest, io.Reader) error {
	return errors.New("containerd is away")
}

// from are the labels of a blob that containerd has downloaded for an image.
func (b *bed) from(im *image) map[string]string {
	return map[string]string{sourceLabelPrefix + b.repo(im).Hostname(): im.Path}
}

// TestStoredBlob: a layer whose blob containerd has is imported from there, and the registry is not asked for it.
func TestStoredBlob(t *testing.T) {
	body := noise(8, 100_000)
	for _, f := range formats[2:] {
		t.Run(f.name, func(t *testing.T) {
			l := f.make(t, file("a", body))
			im := newImage(t, "app", nil, l)
			b := newBed(t, newOrigin(t, im), withBlobs)
			b.put(l.Desc, l.Blob, b.from(im))
			mounts := b.run("container", b.pull(im))
			if n := b.origin.Requests("blobs", l.Digest().String()); n != 0 {
				t.Errorf("the registry was asked %d times", n)
			}
			b.sees(mounts, "a", body)
		})
	}
}

// TestImplicitDirectories: a directory that a layer does not list has the attributes that it has below.
func TestImplicitDirectories(t *testing.T) {
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) {
			below := gzipLayer(t, file("private/x", nil))
			below.Desc.MediaType = "application/vnd.example.layer"
			im := newImage(t, "app", nil, below, f.make(t, file("private/a", []byte("body")), file("new/a", nil)))
			b := newBed(t, newOrigin(t, im), nil)
			b.fetch(im)
			mounts, err := b.Prepare(b.ctx, "unpack", "")
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(dirs(mounts)[0]+"/private", 0o700); err != nil {
				t.Fatal(err)
			}
			b.unpack("unpack", "below", mounts)
			mounts = b.run("container", b.claim(im, 1, "below"))
			b.sees(mounts, "private/a", []byte("body"))
			for path, want := range map[string]uint32{"private": 0o700, "new": 0o755} {
				if mode := b.mode(mounts, path); mode&0o7777 != want {
					t.Errorf("%s has mode %#o, want %#o", path, mode, want)
				}
			}
		})
	}
}

// TestProgress: who waits for imports is told how far they are.
func TestProgress(t *testing.T) {
	im := newImage(t, "app", nil, gzipLayer(t, file("a", noise(9, 100_000))))
	b := newBed(t, newOrigin(t, im), nil)
	b.fetch(im)
	told := make(chan []Progress, 1)
	release := make(chan struct{})
	b.origin.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, im.Layers[0].Digest().String()) || !strings.HasPrefix(r.Header.Get("Range"), "bytes=0-") {
			return false
		}
		w.Header().Set("Content-Range", strings.Replace(r.Header.Get("Range"), "=", " ", 1)+"/*")
		w.WriteHeader(http.StatusPartialContent)
		_, _ = w.Write(im.Layers[0].Blob[:50_000])
		w.(http.Flusher).Flush()
		<-release
		_, _ = w.Write(im.Layers[0].Blob[50_000:])
		return true
	})
	reasons, err := b.Resolve(b.ctx, im.Target.Digest, b.ref(im), func(p []Progress) {
		select {
		case told <- p:
			if len(p) > 0 {
				close(release)
				return
			}
			<-told
		default:
		}
	})
	if err != nil || len(reasons) != 0 {
		t.Fatalf("got %v, %v", reasons, err)
	}
	p := <-told
	if len(p) != 1 || p[0].Digest != im.Layers[0].Digest() || p[0].Came <= 0 || p[0].Came > 50_000 || p[0].Total != im.Layers[0].Desc.Size {
		t.Errorf("got %+v", p)
	}
}
