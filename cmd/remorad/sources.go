package main

import (
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/remote/registry"
	"github.com/remora-storage/remora/snapshotter"
)

// sources is a registry as the snapshotter wants it.
type sources struct{ *registry.Registry }

// Blob implements snapshotter.Registry.
func (s sources) Blob(repo registry.Repository, desc ocispec.Descriptor) snapshotter.Blob {
	return s.Registry.Blob(repo, desc.Digest, desc.Size).WithURLs(registry.ForeignURLs(desc))
}
