package snapshotter

import (
	"context"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/remote/registry"
)

// An Image is what containerd's content store says of an image, and where it came from.
type Image struct {
	Ref    string             // for people; "" if unknown
	Target ocispec.Descriptor // of the manifest
	Repo   registry.Repository
	Layers []Source // lowest first
}

// id tells images apart: two repositories may have the same manifest.
func (img *Image) id() string { return img.Repo.String() + "@" + img.Target.Digest.String() }

// A Source is where one layer's bytes are. It is kept with the snapshot.
type Source struct {
	Image      string              `json:"image"`
	Repo       registry.Repository `json:"repository"`
	Descriptor ocispec.Descriptor  `json:"descriptor"`
	DiffID     digest.Digest       `json:"diff_id,omitempty"`
	Namespace  string              `json:"namespace,omitempty"` // of containerd, that of the first request
}

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
	Find(ctx context.Context, q Query) (Image, int, error)

	// Manifest returns the image with the given manifest, without diffIDs if the
	// configuration is not in the store yet.
	Manifest(ctx context.Context, manifest digest.Digest, ref string) (Image, error)

	// Known returns the images of a namespace whose configurations are in the store, in every repository that they came from.
	Known(ctx context.Context) ([]Image, error)

	// Claims returns the layers by which the images of a namespace claim chainIDs, in every repository that they came from.
	Claims(ctx context.Context, chainIDs map[digest.Digest]bool) (map[digest.Digest][]Source, error)
}

// ErrNotLazy says that a layer takes containerd's ordinary path. Its text is the reason.
var ErrNotLazy = errors.New("layer cannot be lazy")

func notLazy(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrNotLazy, fmt.Errorf(format, args...))
}

// Trust is what an operator allows.
type Trust struct {
	// Unverified lists registry hosts whose layers are used by a table of contents that the
	// manifest does not vouch for.
	Unverified []string
}

// TrustPolicy is what holds for a repository. The zero value asks the repository before it is given what the cache has
// from another one, and checks diffIDs in the background.
type TrustPolicy struct {
	// BeforeUse makes a layer complete and checks its diffID before its first mount.
	BeforeUse bool
	// Shared gives layers in the cache to the repository's images without asking it.
	Shared bool
}
