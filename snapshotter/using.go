package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/snapshotter/layers"
)

const (
	maxDepth     = 4    // of indexes in indexes
	maxManifests = 1024 // of an index

	pinnedLabel = "io.cri-containerd.pinned" // of an image, as containerd's CRI plugin has it
)

// A Use is an image of containerd that has a layer, or may have it.
type Use struct {
	ImageName
	Target ocispec.Descriptor // what the name stands for
	// Unread says why nobody knows whether the image has the layer; "" where it has.
	Unread string
	From   []layers.Claim // the layer in each repository that containerd had the image from
}

// errUnread is of documents that can never be read.
var errUnread = errors.New("its index cannot be read")

// Using returns the images of a namespace that have a layer of a chainID, on whatever platform, and those that may.
func (c *ContentImages) Using(ctx context.Context, namespace string, chainID digest.Digest) (using []Use, err error) {
	all, err := c.named.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list images of namespace %s: %w", namespace, err)
	}
	for i := range all {
		use := Use{ImageName: ImageName{Namespace: namespace, Name: all[i].Name}, Target: all[i].Target}
		manifest, err := c.manifestWith(ctx, all[i].Target, chainID, 0)
		switch {
		case errors.Is(err, errUnread):
			use.Unread = err.Error()
			using = append(using, use)
			continue
		case err != nil:
			return nil, fmt.Errorf("image %s of namespace %s: %w", all[i].Name, namespace, err)
		case manifest == "":
			continue
		}
		if use.From, err = c.claimsOf(ctx, &use, manifest, chainID); err != nil {
			return nil, fmt.Errorf("image %s of namespace %s: %w", all[i].Name, namespace, err)
		}
		switch {
		case all[i].Labels[pinnedLabel] != "":
			use.Stays = "it is pinned"
		case len(use.From) == 0:
			use.Stays = "it came from no registry, so no pull brings it back"
		}
		using = append(using, use)
	}
	return using, nil
}

// claimsOf returns the layer of a chainID as a manifest has it, in each repository that containerd had the manifest from.
func (c *ContentImages) claimsOf(ctx context.Context, use *Use, manifest, chainID digest.Digest) (all []layers.Claim, err error) {
	m, err := c.load(ctx, manifest, true)
	if err != nil {
		return nil, err
	}
	info, err := c.store.Info(ctx, manifest)
	if err != nil {
		return nil, err
	}
	names, err := c.names(ctx)
	if err != nil {
		return nil, err
	}
	i := slices.Index(m.chainIDs, chainID)
	for _, bare := range repositories(info.Labels) {
		for _, repo := range c.withPorts(bare, hostsOf(names[bare])...) {
			all = append(all, layers.Claim{Manifest: manifest, Config: m.config, Source: layers.Source{
				Image: use.Name, Repo: repo, Descriptor: m.layers[i], DiffID: m.diffIDs[i], Namespace: use.Namespace,
			}})
		}
	}
	return all, nil
}

// manifestWith returns a manifest, at or below a descriptor, that has a layer of a chainID; "" if none that is here does. An error that
// wraps errUnread says that nobody can know.
func (c *ContentImages) manifestWith(ctx context.Context, at ocispec.Descriptor, chainID digest.Digest, depth int) (digest.Digest, error) {
	if !images.IsIndexType(at.MediaType) {
		m, err := c.load(ctx, at.Digest, true)
		if ctx.Err() != nil || errdefs.IsUnavailable(err) {
			return "", err
		}
		if err != nil || !slices.Contains(m.chainIDs, chainID) {
			return "", nil // no image, not all of one, or another one
		}
		return at.Digest, nil
	}
	index, err := c.indexAt(ctx, at)
	if errdefs.IsNotFound(err) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	if depth == maxDepth || len(index.Manifests) > maxManifests {
		return "", fmt.Errorf("%w: %s has %d manifests at depth %d", errUnread, at.Digest, len(index.Manifests), depth)
	}
	var unread error
	for _, child := range index.Manifests {
		found, err := c.manifestWith(ctx, child, chainID, depth+1)
		switch {
		case errors.Is(err, errUnread):
			unread = err
		case found != "" || err != nil:
			return found, err
		}
	}
	return "", unread
}

// indexAt reads an index.
func (c *ContentImages) indexAt(ctx context.Context, at ocispec.Descriptor) (index ocispec.Index, err error) {
	if err = c.readJSON(ctx, at, maxManifest, &index); errors.Is(err, errUnreadable) {
		err = fmt.Errorf("%w: %w", errUnread, err)
	}
	return index, err
}
