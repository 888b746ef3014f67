package snapshotter

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	fsindex "github.com/remora-storage/remora/fs/index"
	"github.com/remora-storage/remora/internal/fair"
	"github.com/remora-storage/remora/remote/registry"
	"github.com/remora-storage/remora/snapshotter/layers"
)

// restless makes an image of a layer of which checking the diffID fetches what a reader has fetched already: behind its only extent
// lies more than the cache keeps.
func restless(t *testing.T, o *origin, path string) *image {
	t.Helper()
	small, l := tarLayer(t, file("a", []byte(path))), tarLayer(t, file("a", []byte(path)), file("rest", noise(1, 20<<20)))
	im := newImage(t, path, nil, l)
	data, err := fsindex.Split(indexAs(t, small, l.Digest()))
	if err != nil {
		t.Fatal(err)
	}
	const sizeAt, plainSizeAt = 80, 88
	for _, at := range []int{sizeAt, plainSizeAt} {
		binary.LittleEndian.PutUint64(data[0][at:], uint64(len(l.Blob)))
	}
	o.Add(im)
	publish(t, o, im, fsindex.Artifact, fsindex.Join(data))
	return im
}

// hang has an origin never answer the second request for most of an image's layer, until release is closed.
func hang(o *origin, im *image, release chan struct{}) (stuck *atomic.Int32) {
	stuck = new(atomic.Int32)
	asked := atomic.Int32{}
	o.SetFault(func(_ http.ResponseWriter, r *http.Request) bool {
		_, kind, what := split(r.URL.Path)
		var from, to int
		n, _ := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &from, &to)
		if kind != "blobs" || digest.Digest(what) != im.Layers[0].Digest() || n < 2 || to-from < 1<<20 || asked.Add(1) == 1 {
			return false
		}
		stuck.Add(1)
		<-release
		return true
	})
	return stuck
}

// trustEvil has the indexes used that the repository "evil" publishes.
func trustEvil(b *bed) {
	b.opts.Layers.IndexOf = func(r registry.Repository) layers.IndexPolicy { return layers.IndexPolicy{Trust: r.Path == "evil"} }
}

// besideHanging returns a bed with a registry of two images: what reads the second again waits until the test ends. stuck counts that.
func besideHanging(t *testing.T) (b *bed, victim, evil *image, stuck *atomic.Int32) {
	t.Helper()
	victim = newImage(t, "app", nil, estargzLayer(t, file("a", honest)))
	o := newOrigin(t, victim)
	evil = restless(t, o, "evil")
	release := make(chan struct{})
	stuck = hang(o, evil, release)
	b = newBed(t, o, trustEvil)
	t.Cleanup(func() { close(release) })
	return b, victim, evil, stuck
}

// TestChecksAreShared: a layer of which the checking of the diffID never ends keeps no other layer from being checked, and handed to the
// kernel.
func TestChecksAreShared(t *testing.T) {
	b, victim, evil, stuck := besideHanging(t)
	l := victim.Layers[0]
	b.sees(b.run("evil", b.pull(evil)), "a", []byte("evil"))
	b.complete(evil.Layers[0], b.named(evil.ChainIDs[0], ""))
	eventually(t, "its check to hang", func() bool { return stuck.Load() > 0 })
	name := b.pull(victim)
	b.sees(b.run("victim", name), "a", honest)
	b.complete(l, name)
	eventually(t, "another layer to be checked", func() bool { return b.statusOf(l).Verified && b.statusOf(l).Backend == "direct" })
	if st := b.statusOf(evil.Layers[0]); st.Verified || st.Format != "index" {
		t.Errorf("status of what hangs: %+v", st)
	}
}

// TestChecksTakeTurns: where as many checks hang as there are places, those that wait have their turn.
func TestChecksTakeTurns(t *testing.T) {
	b, victim, evil, stuck := besideHanging(t)
	for _, im := range []*image{evil, victim} {
		name := b.pull(im)
		b.run(im.Path, name)
		b.complete(im.Layers[0], name)
	}
	eventually(t, "the check to hang", func() bool { return stuck.Load() > 0 })
	x := newChecks(b.chores)
	x.pool, x.turn = fair.NewTieredPool(1, 1, 1), time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var ended []*check
	for _, im := range []*image{evil, victim} {
		one := b.bindings.get(b.id(b.named(im.ChainIDs[0], "")))
		x.start(ctx, &check{b: one, f: one.image(), src: one.source()})
		eventually(t, "it to begin or wait", func() bool {
			waiting, _ := x.pool.Waiting()
			return waiting > 0 || x.running[one.image()].began.Load() > 0
		})
	}
	for tick := time.NewTicker(time.Millisecond); len(ended) < 2; {
		select {
		case one := <-x.ended:
			x.note(one)
			ended = append(ended, one)
		case <-tick.C:
			x.pass()
		case <-time.After(patience):
			t.Fatalf("%d checks have ended", len(ended))
		}
	}
	if first := ended[0]; !errors.Is(first.err, errTurn) || x.turns[first.f] != 2*time.Millisecond || ended[1].err != nil {
		t.Errorf("ended: %v, then %v", first.err, ended[1].err)
	}
}

// TestChecksLeaveRoom: checks of as many repositories of one registry as there are keep no layer of another registry from being checked.
func TestChecksLeaveRoom(t *testing.T) {
	victim := newImage(t, "app", nil, estargzLayer(t, file("a", honest)))
	b := newBed(t, newOrigin(t, victim), nil)
	name := b.pull(victim)
	b.run("victim", name)
	b.complete(victim.Layers[0], name)
	x := newChecks(b.chores)
	for n := range 100 {
		if release, ok := x.pool.Try(fair.User(fmt.Sprint("evil.test/", n))); ok {
			defer release()
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	one := b.bindings.get(b.id(b.named(victim.ChainIDs[0], "")))
	x.start(ctx, &check{b: one, f: one.image(), src: one.source()})
	select {
	case ended := <-x.ended:
		if x.note(ended); ended.err != nil {
			t.Error(ended.err)
		}
	case <-time.After(patience):
		t.Error("it waits for those of the other registry")
	}
}
