package layers

import (
	"context"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/internal/memory"
	"github.com/remora-storage/remora/remote/registry"
)

// Artifacts are what is published beside an image. A Registry may offer them.
type Artifacts interface {
	// Artifact returns the content of the newest artifact of a kind that refers to an image. An
	// error that wraps registry.ErrNotFound says that there is none. take is asked for the memory that reading it takes, in
	// bytes: it may wait, and its error ends the call.
	Artifact(ctx context.Context, repo registry.Repository, image digest.Digest, kind registry.ArtifactKind,
		take func(context.Context, int64) error) ([]byte, error)
	// PushArtifact publishes one.
	PushArtifact(ctx context.Context, repo registry.Repository, image ocispec.Descriptor, kind registry.ArtifactKind,
		content []byte) (registry.Published, error)
}

// Artifact returns what is published beside an image, with the memory that it takes and more(n) of its n bytes. It waits for that
// before it reads them.
func (p *Places) Artifact(
	ctx context.Context, reg Artifacts, img Image, kind registry.ArtifactKind, more func(int64) int64,
) (data []byte, share *memory.Share, err error) {
	take := func(ctx context.Context, n int64) (err error) {
		share.Release() // of what was wrong
		share, err = p.memory.Acquire(ctx, userOf(img.Repo), n+more(n))
		return err
	}
	data, err = reg.Artifact(ctx, img.Repo, img.Target.Digest, kind, take)
	if err == nil && share == nil { // its manifest had it
		err = take(ctx, int64(len(data)))
	}
	if err != nil {
		share.Release()
		return nil, nil, err
	}
	return data, share, nil
}
