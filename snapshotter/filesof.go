package snapshotter

import (
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/snapshotter/layers"
)

// filesOf returns the images in the cache, of layers that have a snapshot, which an image's own layers may be read from.
func (s *Snapshotter) filesOf(img layers.Image) map[digest.Digest]*cache.File {
	keys := s.layers.KeysOf(&img)
	known := map[digest.Digest]*cache.File{}
	for _, b := range s.allBindings() {
		src := b.source()
		i := slices.IndexFunc(img.Layers, func(l layers.Source) bool { return l.Descriptor.Digest == src.Descriptor.Digest })
		if f := b.image(); f != nil && i >= 0 && (layers.Proven(f, &img.Layers[i]) || keys[s.keyOf(b)]) {
			known[src.Descriptor.Digest] = f
		}
	}
	return known
}
