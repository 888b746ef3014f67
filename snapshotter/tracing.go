package snapshotter

import (
	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/snapshotter/layers"
)

// Trace calls fn with everything that is done from now on until stop is called. fn must return soon
// and may be called by several goroutines at once.
func (s *Snapshotter) Trace(fn func(layers.Span)) (stop func()) {
	end := s.layers.Tracer.Listen(fn)
	unobserve := s.cache.Observe(func(e cache.Event) {
		span := layers.Span{
			Kind: "fetch", Digest: layerOf(e.ID), For: e.For, Off: e.Off, Len: e.Len, PID: e.PID, Began: e.Began, Took: e.Took, Err: e.Err,
		}
		if e.Kind == cache.Waited {
			span.Kind = "wait"
			span.What, _ = processOf(e.PID)
		}
		fn(span)
	})
	return func() { unobserve(); end() }
}

// layerOf returns the digest of a cached image's layer.
func layerOf(id string) digest.Digest {
	return digest.NewDigestFromEncoded(digest.SHA256, cache.ParseName(id).Blob)
}
