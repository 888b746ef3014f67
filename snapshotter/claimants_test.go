package snapshotter

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/internal/fair"
	"github.com/remora-storage/remora/internal/memory"
	"github.com/remora-storage/remora/snapshotter/layers"
)

// countedReads is a content store that counts what is read.
type countedReads struct {
	content.Store
	n atomic.Int32
}

func (c *countedReads) ReaderAt(ctx context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	c.n.Add(1)
	return c.Store.ReaderAt(ctx, desc)
}

// TestClaimsReadOnce: however many manifests a namespace has, images or not, which one of them claims a chainID is found out by reading
// those that are new; and by more of them than are remembered, those that are of use are not forgotten.
func TestClaimsReadOnce(t *testing.T) {
	b := newBed(t, nil, nil)
	own := newImage(t, "app", nil, tarLayer(t, file("a", []byte("own"))))
	b.fetch(own)
	put := func(name string, config, manifest []byte) {
		c := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(config), Size: int64(len(config))}
		if config != nil {
			b.put(c, config, nil)
		}
		m := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(manifest), Size: int64(len(manifest))}
		b.put(m, manifest, map[string]string{sourceLabelPrefix + "evil.test": name, configRefLabel: c.Digest.String()})
	}
	const others = 100
	large := strings.Repeat("x", 250<<10) // all together are more than is remembered
	for i := range others {
		im := newImage(t, fmt.Sprint("evil", i), nil, tarLayer(t, file("a", fmt.Append(nil, i))))
		im.Manifest = []byte(strings.Replace(string(im.Manifest), `"layers":[{`, `"layers":[{"annotations":{"a":"`+large+`"},`, 1))
		put(im.Path, im.Config, im.Manifest)
	}
	put("none", nil, []byte(`{"mediaType":"none"}`))
	put("no JSON", nil, []byte(`no JSON`))
	put("no configuration", nil, newImage(t, "x", nil, tarLayer(t, file("a", []byte("x")))).Manifest)
	store := &countedReads{Store: b.store}
	images := NewContentImages(store, nil, nil, nil)
	wanted := map[digest.Digest]bool{own.ChainIDs[0]: true}
	for try := range 3 {
		store.n.Store(0)
		claims, err := images.Claims(b.ctx, wanted)
		if err != nil || len(claims[own.ChainIDs[0]]) != 1 {
			t.Fatalf("%v, %v", claims, err)
		}
		if n := store.n.Load(); try > 0 && n > 0 || try == 0 && n < others {
			t.Errorf("try %d: %d documents were read", try, n)
		}
	}
	late := newImage(t, "x", nil, tarLayer(t, file("a", []byte("x"))))
	b.put(late.ConfigDesc, late.Config, nil) // what was not there yet
	claims, err := images.Claims(b.ctx, map[digest.Digest]bool{late.ChainIDs[0]: true})
	if err != nil || len(claims) != 1 {
		t.Errorf("%v, %v", claims, err)
	}
	if images.known.bytes > maxRemembered || images.outlines.bytes > maxOutlines {
		t.Errorf("%d bytes of manifests and %d of outlines are remembered", images.known.bytes, images.outlines.bytes)
	}
}

// TestClaimsWaitForNobody: whose images are being imported does not matter for who claims a chainID.
func TestClaimsWaitForNobody(t *testing.T) {
	m := memory.New(64 << 20)
	b := newBed(t, nil, nil)
	im := newImage(t, "app", []string{strings.Repeat("x", 1<<20)}, tarLayer(t, file("a", []byte("a"))))
	b.put(im.ConfigDesc, im.Config, b.from(im))
	b.fetch(im)
	for taken := true; taken; { // as one that imports all that it may have
		_, taken = m.Try(fair.User(b.repo(im).Hostname()), 1<<20)
	}
	images := NewContentImages(b.store, nil, nil, m)
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	if claims, err := images.Claims(ctx, map[digest.Digest]bool{im.ChainIDs[0]: true}); err != nil || len(claims) != 1 {
		t.Errorf("%v, %v", claims, err)
	}
}

// TestClaimantsAreBounded: of claimants whose registries never answer, provedAtOnce are read at a time and no more. All have their turn,
// and the last one's layer is found.
func TestClaimantsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const silent = 300
		var claimants []layers.Source
		for i := range silent + 1 {
			claimants = append(claimants, layers.Source{Image: fmt.Sprint(i)})
		}
		var now, most, begun atomic.Int32
		x := (&mending{base: &base{}}).newProvings(claimants, func(ctx context.Context, src *layers.Source) (*cache.File, error) {
			begun.Add(1)
			n := now.Add(1)
			defer now.Add(-1)
			for seen := most.Load(); n > seen && !most.CompareAndSwap(seen, n); seen = most.Load() {
			}
			if src.Image == fmt.Sprint(silent) {
				return nil, nil
			}
			<-ctx.Done()
			return nil, context.Cause(ctx)
		})
		began := time.Now()
		_, src, err := x.first(t.Context())
		if err != nil || src.Image != fmt.Sprint(silent) {
			t.Errorf("found %q, %v", src.Image, err)
		}
		// The last one is reached after this many turns.
		if took, turns := time.Since(began), time.Duration(silent/provedAtOnce); took < turns*proveTurn || took > (turns+1)*proveTurn {
			t.Errorf("it took %s, a turn is %s", took, proveTurn)
		}
		if most.Load() != provedAtOnce || begun.Load() <= silent || now.Load() != 0 {
			t.Errorf("%d were read at a time, %d in all, %d still are", most.Load(), begun.Load(), now.Load())
		}
	})
}

// TestClaimantsTakeTurns: an image of very many repositories that claims another one's chainID does not keep that one waiting until all
// were asked.
func TestClaimantsTakeTurns(t *testing.T) {
	victim := newImage(t, "app", nil, gzipLayer(t, file("a", honest)))
	o := newOrigin(t)
	evil := forge(t, o, victim, true, false)
	release := make(chan struct{})
	defer close(release)
	var held atomic.Int32
	b := newBed(t, o, nil)
	name := b.pull(evil.image)
	b.sees(b.run("evil", name), "a", forged)
	names := []string{"evil"}
	for i := range 300 {
		names = append(names, fmt.Sprint("evil", i))
	}
	_, err := b.store.Update(b.ctx, content.Info{Digest: evil.Target.Digest, Labels: map[string]string{
		sourceLabelPrefix + b.repo(victim).Hostname(): strings.Join(names, ","), configRefLabel: evil.ConfigDesc.Digest.String(),
	}})
	if err != nil {
		t.Fatal(err)
	}
	o.SetFault(func(_ http.ResponseWriter, r *http.Request) bool {
		if repo, kind, _ := split(r.URL.Path); kind != "blobs" || !strings.HasPrefix(repo, "evil") {
			return false
		}
		held.Add(1)
		<-release
		return true
	})
	b.fetch(victim)
	b.sees(b.run("victim", name), "a", honest)
	if held.Load() == 0 {
		t.Error("no repository of the attacker's was asked")
	}
}
