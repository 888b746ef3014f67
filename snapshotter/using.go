package snapshotter

import (
	"context"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	maxDepth     = 4    // of indexes in indexes
	maxManifests = 1024 // of an index

	pinnedLabel = "io.cri-containerd.pinned" // of an image, as containerd's CRI plugin has it
)

// Using returns the images of a namespace that have a layer of a chainID, on whatever platform, and which of them must stay.
func (c *ContentImages) Using(ctx context.Context, namespace string, chainID digest.Digest) (using []ImageName, err error) {
	all, err := c.named.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list images of namespace %s: %w", namespace, err)
	}
	for i := range all {
		manifest, err := c.manifestWith(ctx, all[i].Target, chainID, 0)
		if err != nil {
			return nil, fmt.Errorf("image %s of namespace %s: %w", all[i].Name, namespace, err)
		}
		if manifest == "" {
			continue
		}
		name := ImageName{Namespace: namespace, Name: all[i].Name}
		info, err := c.store.Info(ctx, manifest)
		switch {
		case err != nil:
			return nil, err
		case all[i].Labels[pinnedLabel] != "":
			name.Stays = "it is pinned"
		case len(repositories(info.Labels)) == 0:
			name.Stays = "it came from no registry, so no pull brings it back"
		}
		using = append(using, name)
	}
	return using, nil
}

// manifestWith returns a manifest, at or below a descriptor, that has a layer of a chainID; "" if none that is here does.
func (c *ContentImages) manifestWith(ctx context.Context, at ocispec.Descriptor, chainID digest.Digest, depth int) (digest.Digest, error) {
	if !images.IsIndexType(at.MediaType) {
		m, err := c.load(ctx, at.Digest, true)
		if err != nil || !slices.Contains(m.chainIDs, chainID) {
			return "", nil // no image, not all of one, or another one
		}
		return at.Digest, nil
	}
	var index ocispec.Index
	err := c.readJSON(ctx, at, maxManifest, &index)
	if errdefs.IsNotFound(err) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	if depth == maxDepth || len(index.Manifests) > maxManifests {
		return "", fmt.Errorf("index %s has %d manifests at depth %d", at.Digest, len(index.Manifests), depth)
	}
	for _, child := range index.Manifests {
		if found, err := c.manifestWith(ctx, child, chainID, depth+1); found != "" || err != nil {
			return found, err
		}
	}
	return "", nil
}
