package layers

import (
	"errors"
	"fmt"
	"strings"

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

// MaxConfig is how large an image's configuration may be, in bytes.
const MaxConfig = 8 << 20

// ID tells images apart: two repositories may have the same manifest.
func (img *Image) ID() string { return img.Repo.String() + "@" + img.Target.Digest.String() }

// FromRegistry reports whether the layer came from a registry, rather than from an archive or a build on this node.
func (s *Source) FromRegistry() bool { return s.Repo != registry.Repository{} }

// A Source is where one layer's bytes are. It is kept with the snapshot.
type Source struct {
	Image      string              `json:"image"`
	Repo       registry.Repository `json:"repository"`
	Descriptor ocispec.Descriptor  `json:"descriptor"`
	DiffID     digest.Digest       `json:"diff_id,omitempty"`
	Namespace  string              `json:"namespace,omitempty"` // of containerd, that of the first request
	// Whole says that the layer is only to be read whole: a table of it has lied, or may have.
	Whole bool `json:"whole,omitempty"`
}

// ErrNotLazy says that a layer takes containerd's ordinary path. Its text is the reason.
var ErrNotLazy = errors.New("layer cannot be lazy")

// NotLazy returns an error that wraps ErrNotLazy, with a reason.
func NotLazy(format string, args ...any) error {
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

// Describe names the layer in errors.
func (s *Source) Describe() string {
	return fmt.Sprintf("layer %s of %s", s.Descriptor.Digest, s.Image)
}

// BlobName is cache.Name.Blob of a layer; "" where the record of a snapshot is damaged.
func (s *Source) BlobName() string {
	_, hex, _ := strings.Cut(string(s.Descriptor.Digest), ":")
	return hex
}
