package snapshotter

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/cache"
)

// A CachedLayer is a layer's image in the cache. Sizes are in bytes.
type CachedLayer struct {
	Digest          digest.Digest
	Images          []string
	Kept, Evictable bool
	cache.Stats
}

// Cached lists the layers that are in the cache.
func (x *reports) Cached() []CachedLayer {
	byFile := map[*cache.File]*CachedLayer{}
	for _, b := range x.bindings.all() {
		f, src := b.image(), b.source()
		if f == nil {
			continue
		}
		l := byFile[f]
		if l == nil {
			l = &CachedLayer{Digest: src.Descriptor.Digest, Stats: f.Stats()}
			l.Kept, l.Evictable = f.Kept()
			byFile[f] = l
		}
		if !slices.Contains(l.Images, src.Image) {
			l.Images = append(l.Images, src.Image)
		}
	}
	var all []CachedLayer
	for _, l := range byFile {
		all = append(all, *l)
	}
	slices.SortFunc(all, func(a, b CachedLayer) int {
		return cmp.Or(slices.Compare(a.Images, b.Images), cmp.Compare(a.Digest, b.Digest))
	})
	return all
}

// Keep pins the layers of an image in the cache, or no longer, and returns how many they are. The
// image is named as status names it.
func (x *reports) Keep(image string, keep bool) (layers int, err error) {
	for _, b := range x.bindings.all() {
		f := b.image()
		if f == nil || b.source().Image != image {
			continue
		}
		if err := f.Keep(keep); err != nil {
			return layers, err
		}
		layers++
	}
	if layers == 0 {
		return 0, noLazyLayer(image)
	}
	return layers, nil
}

func noLazyLayer(image string) error {
	return fmt.Errorf("no lazy layer was pulled for %s; snapctl status lists the images", image)
}

func (b *binding) image() *cache.File {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.file
}
