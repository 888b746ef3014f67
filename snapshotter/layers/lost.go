package layers

import (
	"context"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/remote/registry"
)

// A Claim is a layer of an image as one repository has it.
type Claim struct {
	Source
	Manifest digest.Digest      // of the image
	Config   ocispec.Descriptor // likewise
}

// Errors of Lost.
var (
	// ErrThere says that a layer is where it was.
	ErrThere = errors.New("the layer is there")
	// ErrStorage says that a registry lacks more than an image's layer, as one does whose storage is away.
	ErrStorage = errors.New("its registry may have lost its storage for a while")
)

// Lost returns nil if a repository has lost a layer for good, as far as one can know. A registry whose storage is away answers 404 for
// each blob, and most still say that they are registries. So one is believed where it lacks the layer alone, and still has the image's
// manifest and configuration; or where it lacks the manifest, too, as it does for a repository that was deleted. In the second case
// repository is true: the registry's other repositories can tell a deletion from a loss. The error wraps ErrThere or ErrStorage, or it
// says why the registry cannot be asked.
func (p *Places) Lost(ctx context.Context, c *Claim) (repository bool, err error) {
	if p.Stored(ctx, &c.Source) {
		return false, fmt.Errorf("%w: containerd has it", ErrThere)
	}
	switch err := p.TryRange(ctx, &c.Source); {
	case err == nil, errors.Is(err, registry.ErrRange): // it serves all of it
		return false, fmt.Errorf("%w: %s has it", ErrThere, c.Repo)
	case !IsGone(err):
		return false, err
	}
	if err := p.registry.Present(ctx, c.Repo.Host); err != nil {
		return false, err
	}
	_, _, err = p.registry.Manifest(ctx, c.Repo, c.Manifest.String())
	switch {
	case IsGone(err):
		return true, nil
	case err != nil:
		return false, err
	}
	config := Source{Image: c.Image, Repo: c.Repo, Descriptor: c.Config, Namespace: c.Namespace}
	err = p.TryRange(ctx, &config)
	switch {
	case err == nil, errors.Is(err, registry.ErrRange):
		return false, nil
	case IsGone(err):
		return false, fmt.Errorf("%s has the manifest of %s, but neither the layer nor the configuration: %w", c.Repo, c.Image, ErrStorage)
	}
	return false, err
}
