package snapshotter

import (
	"context"

	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/snapshotter/layers"
)

// A Query asks for the image that a layer belongs to. Empty fields are unknown.
type Query struct {
	ChainID  digest.Digest
	Manifest digest.Digest // as a label says; a hint
	Ref      string        // likewise
}

// Images finds images in containerd's content store.
type Images interface {
	// Find returns the image that has a layer with the chainID, and the layer's index. The
	// image's repository is one that containerd fetched its manifest from. An error that
	// wraps ErrNotLazy says why there is no such image, or none that is certain.
	Find(ctx context.Context, q Query) (layers.Image, int, error)

	// Manifest returns the image with the given manifest, without diffIDs if the
	// configuration is not in the store yet.
	Manifest(ctx context.Context, manifest digest.Digest, ref string) (layers.Image, error)

	// Known returns the images of a namespace whose configurations are in the store, in every repository that they came from; those that
	// came from no registry without one.
	Known(ctx context.Context) ([]layers.Image, error)

	// Claims returns the layers by which the images of a namespace claim chainIDs, in every repository that they came from.
	// Those of an image that came from no registry are in the content store or nowhere.
	Claims(ctx context.Context, chainIDs map[digest.Digest]bool) (map[digest.Digest][]layers.Source, error)
}
