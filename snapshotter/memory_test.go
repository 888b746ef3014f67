package snapshotter

import (
	"fmt"
	"strings"
	"testing"

	"github.com/remora-storage/remora/internal/memory"
	"github.com/remora-storage/remora/internal/memorytest"
)

// allBack waits until a budget is nobody's.
func allBack(b *bed, m *memory.Budget) {
	b.t.Helper()
	b.close() // what waits for layers below has its memory until then
	giveBack, err := memorytest.Spend(b.ctx, m)
	if err != nil {
		b.t.Errorf("memory is still in use: %v", err)
	}
	giveBack()
	b.open()
}

// TestMemoryIsShared: many layers of all kinds are opened, imported and read in memory that has room for few at a time.
func TestMemoryIsShared(t *testing.T) {
	var layers []layer
	bodies := map[string][]byte{}
	kinds := []func(testing.TB, ...member) layer{estargzLayer, zstdChunkedLayer, gzipLayer, zstdLayer, tarLayer}
	for i := range 25 {
		name := fmt.Sprintf("dir%d/f", i) // in a directory that is not listed
		bodies[name] = noise(uint64(i), 200_000)
		layers = append(layers, kinds[i%len(kinds)](t, file(name, bodies[name])))
	}
	im := newImage(t, "app", nil, layers...)
	m := memory.New(64 << 20)
	b := newBed(t, newOrigin(t, im), func(b *bed) { b.opts.Layers.Memory = m })
	top := b.run("container", b.pull(im))
	for name, body := range bodies {
		b.sees(top, name, body)
	}
	allBack(b, m)
}

// TestMemoryIsBounded: a layer whose tree takes more than all memory is containerd's, and the reason says so.
func TestMemoryIsBounded(t *testing.T) {
	members := func(n int) (all []member) {
		for i := range n {
			all = append(all, file(fmt.Sprint(i), nil))
		}
		return all
	}
	few, many := members(500), members(50_000)
	for name, c := range map[string]struct {
		layer  layer
		memory int64
	}{
		"estargz": {estargzLayer(t, few...), 12 << 20}, "zstd:chunked": {zstdChunkedLayer(t, few...), 12 << 20},
		"gzip": {gzipLayer(t, many...), 48 << 20}, "zstd": {zstdLayer(t, many...), 48 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			im := newImage(t, "app", nil, c.layer)
			m := memory.New(c.memory)
			b := newBed(t, newOrigin(t, im), func(b *bed) { b.opts.Layers.Memory = m })
			b.fetch(im)
			why := b.resolve(im)[c.layer.Digest()]
			if !strings.Contains(why, "[limits] memory") {
				t.Errorf("got %q", why)
			}
			t.Log(why)
			b.decline(im, 0, "")
			allBack(b, m)
		})
	}
}
