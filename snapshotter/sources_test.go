package snapshotter

import (
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/remote/registry"
)

// Sources is a registry as a Snapshotter wants it.
type Sources struct{ *registry.Registry }

// Blob implements Registry.
func (s Sources) Blob(repo registry.Repository, desc ocispec.Descriptor) Blob {
	return s.Registry.Blob(repo, desc.Digest, desc.Size).WithURLs(registry.ForeignURLs(desc))
}
