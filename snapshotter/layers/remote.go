package layers

import (
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/remote/registry"
)

// Remote is a registry as layers are read from it.
type Remote struct{ *registry.Registry }

// Blob implements Registry.
func (r Remote) Blob(repo registry.Repository, desc ocispec.Descriptor) Blob {
	return r.Registry.Blob(repo, desc.Digest, desc.Size).WithURLs(registry.ForeignURLs(desc))
}
