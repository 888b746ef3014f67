package main

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	orascontent "oras.land/oras-go/v2/content"

	"github.com/remora-storage/remora/remote/registry"
)

// manifestDigest returns the digest of the manifest that an image of containerd's has for this
// machine.
func manifestDigest(ctx context.Context, store content.Provider, img images.Image) (digest.Digest, error) {
	if images.IsManifestType(img.Target.MediaType) {
		return img.Target.Digest, nil
	}
	p, err := content.ReadBlob(ctx, store, img.Target)
	if err == nil {
		var m ocispec.Descriptor
		if m, err = registry.ForThisPlatform(p); err == nil {
			return m.Digest, nil
		}
	}
	return "", fmt.Errorf("image %s: %w", img.Name, err)
}

// forThisPlatform returns the manifest that an image somewhere else has for this machine.
func forThisPlatform(ctx context.Context, from orascontent.Fetcher, desc ocispec.Descriptor) (ocispec.Descriptor, error) {
	if !images.IsIndexType(desc.MediaType) {
		return desc, nil
	}
	if desc.Size > maxDocument {
		return desc, fmt.Errorf("index %s of %d bytes", desc.Digest, desc.Size)
	}
	p, err := orascontent.FetchAll(ctx, from, desc)
	if err != nil {
		return desc, err
	}
	return registry.ForThisPlatform(p)
}
