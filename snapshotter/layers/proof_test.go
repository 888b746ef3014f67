package layers

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/remote/registry"
	"github.com/remora-storage/remora/snapshotter/internal/imagetest"
)

// hanging is a registry that answers nothing before it serves.
type hanging struct {
	way
	serves, asked, most atomic.Int64
}

func (h *hanging) Blob(registry.Repository, ocispec.Descriptor) Blob { return &hangingBlob{of: h} }

type hangingBlob struct {
	linked
	of *hanging
}

func (b *hangingBlob) Open(ctx context.Context, _, _ int64, _ int) (io.ReadCloser, error) {
	b.of.most.Store(max(b.of.most.Load(), b.of.asked.Add(1)))
	defer b.of.asked.Add(-1)
	if b.of.serves.Load() == 0 {
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}
	return io.NopCloser(strings.NewReader("x")), nil
}

// TestKnownToHang: nobody waits for a registry that is known to hang, however long it does; one request at a time finds out when it
// serves again. What opens without it is waited for.
func TestKnownToHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var started sync.WaitGroup
		reg := &hanging{}
		p := &Proofs{places: &Places{registry: reg}, life: t.Context(), started: &started}
		src := Source{Repo: registry.Repository{Host: "reg.test", Path: "app"}, Descriptor: ocispec.Descriptor{
			Digest: digest.FromString("a layer"), Size: 100}}
		opening := func() *Opening { return &Opening{src: src, done: make(chan struct{}), proof: newProof()} }
		await := func(o *Opening) (time.Duration, error) {
			began := time.Now()
			err := p.Await(t.Context(), o, time.Second)
			return time.Since(began), err
		}
		first := opening()
		first.proof.ask()
		if took, err := await(first); took != proofMost || !errors.Is(err, ErrUnproven) {
			t.Errorf("the first waits %s: %v", took, err)
		}
		for range 100 {
			time.Sleep(slowHolds / 5)
			for range 2 {
				o := opening()
				o.proof.ask()
				if took, err := await(o); took != 0 || !errors.Is(err, ErrUnproven) || !errors.Is(err, ErrNotLazy) {
					t.Fatalf("waits %s: %v", took, err)
				}
			}
		}
		here := opening()
		time.AfterFunc(proofKnown/2, func() { close(here.done) })
		if took, err := await(here); took != proofKnown/2 || err != nil {
			t.Errorf("what is here waits %s: %v", took, err)
		}
		started.Wait()
		reg.serves.Store(1)
		o := opening()
		o.proof.ask()
		if took, _ := await(o); took != 0 {
			t.Errorf("waits %s", took)
		}
		started.Wait()
		if err := p.Failing(src.Repo); err != nil {
			t.Errorf("it serves again, but of it is known: %v", err)
		}
		if n := reg.most.Load(); n != 1 {
			t.Errorf("%d requests together", n)
		}
	})
}

// TestAsksARegistry: an opening that needs a registry says so before it waits for one, and one of a layer that is here does not.
func TestAsksARegistry(t *testing.T) {
	for name, make := range map[string]func(testing.TB, ...imagetest.Member) imagetest.Layer{
		"indexed": imagetest.EstargzLayer, "imported": imagetest.GzipLayer,
	} {
		t.Run(name, func(t *testing.T) {
			im := imagetest.NewImage(t, "app", nil, make(t, imagetest.File("a", imagetest.Noise(1, 5000))))
			o := imagetest.NewOrigin(t, im)
			l := newOf(t, o, Options{})
			src := sourceOf(o, im)
			known := func() (*Opening, error) {
				l.Proofs.failures.slow(src.Repo, ErrUnproven)
				opening := l.Open(src)
				select {
				case <-opening.proof.asks:
				case <-opening.done:
				}
				return opening, l.Proofs.Await(t.Context(), opening, 0)
			}
			release := o.Silence("/blobs/")
			opening, err := known()
			if !errors.Is(err, ErrUnproven) || !strings.Contains(err.Error(), "not waited for") {
				t.Errorf("a layer that is not here: %v", err)
			}
			release()
			l.Abandon(&src)
			<-opening.done
			if _, _, err := l.Image(t.Context(), &src); err != nil {
				t.Fatal(err)
			}
			l.Forget(&src)
			defer o.Silence("/blobs/")()
			if opening, err = known(); err != nil {
				t.Errorf("a layer that is here: %v", err)
			}
			select {
			case <-opening.proof.asks:
				t.Error("a layer that is here asks a registry")
			default:
			}
		})
	}
}

// TestMissingInAFullPool: a blob that the registry does not have is declined for that, however many layers of its repository wait to be
// read, and nobody takes the registry for one that hangs.
func TestMissingInAFullPool(t *testing.T) {
	all := make([]imagetest.Layer, importAtOnceWithin+1)
	for i := range all {
		all[i] = imagetest.GzipLayer(t, imagetest.File("a", imagetest.Noise(uint64(i), 5000)))
	}
	im := imagetest.NewImage(t, "app", nil, all...)
	o := imagetest.NewOrigin(t, im)
	held := make(chan struct{})
	defer close(held)
	missing := all[importAtOnceWithin].Digest()
	o.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
		_, kind, what := imagetest.SplitPath(r.URL.Path)
		switch {
		case kind != "blobs":
			return false
		case what == missing.String():
			w.WriteHeader(http.StatusNotFound)
		default:
			o.Blob(&imagetest.StoppedAnswer{ResponseWriter: w, R: r, Left: 512, Held: held}, r, digest.Digest(what))
		}
		return true
	})
	l := newOf(t, o, Options{ProofWait: time.Minute})
	src := sourceOf(o, im)
	for i, layer := range all {
		src.Descriptor, src.DiffID = layer.Desc, layer.DiffID
		err := l.Proofs.Await(t.Context(), l.Open(src), 0)
		if i < importAtOnceWithin && err != nil || i == importAtOnceWithin && !errors.Is(err, registry.ErrNotFound) {
			t.Errorf("layer %d: %v", i, err)
		}
	}
	if err := l.Proofs.Failing(src.Repo); err != nil {
		t.Errorf("of the registry is known: %v", err)
	}
}
