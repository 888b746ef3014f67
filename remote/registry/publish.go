package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/errdef"
	oras "oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/errcode"
)

// maxEmbedded is up to which size an artifact's content is repeated in its manifest, so that one request
// brings it: registries commonly take manifests of 4 MiB, and it becomes a third larger there.
const maxEmbedded = 5 << 19

// Published is an artifact that was pushed.
type Published struct {
	Digest digest.Digest // of its manifest
	Tag    string
}

// PushArtifact publishes an artifact that refers to an image. It takes the place of an earlier one of its
// kind.
func (r *Registry) PushArtifact(
	ctx context.Context, repo Repository, image ocispec.Descriptor, kind ArtifactKind, content []byte,
) (Published, error) {
	w, err := r.Writable(ctx, repo)
	if err != nil {
		return Published{}, err
	}
	layer := ocispec.Descriptor{MediaType: kind.MediaType, Digest: digest.FromBytes(content), Size: int64(len(content))}
	if err := pushIfAbsent(ctx, w, ocispec.DescriptorEmptyJSON, ocispec.DescriptorEmptyJSON.Data); err != nil {
		return Published{}, err
	}
	if err := pushIfAbsent(ctx, w, layer, content); err != nil {
		return Published{}, err
	}
	if len(content) <= maxEmbedded {
		layer.Data = content
	}
	subject := ocispec.Descriptor{MediaType: image.MediaType, Digest: image.Digest, Size: image.Size}
	doc, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, ArtifactType: kind.Type,
		Config: ocispec.DescriptorEmptyJSON, Layers: []ocispec.Descriptor{layer}, Subject: &subject,
		Annotations: map[string]string{ocispec.AnnotationCreated: time.Now().UTC().Format(time.RFC3339)},
	})
	if err != nil {
		return Published{}, err
	}
	desc := ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(doc), Size: int64(len(doc)), ArtifactType: kind.Type,
	}
	tag := ArtifactTag(image.Digest, kind.Tag)
	// oras-go keeps the list of referrers under a tag where the registry has no Referrers API.
	if err := w.PushReference(ctx, desc, bytes.NewReader(doc), tag); err != nil {
		return Published{}, err
	}
	return Published{desc.Digest, tag}, nil
}

func pushIfAbsent(ctx context.Context, repo *oras.Repository, desc ocispec.Descriptor, data []byte) error {
	has, err := repo.Exists(ctx, desc)
	if err != nil || has {
		return err
	}
	return repo.Push(ctx, desc, bytes.NewReader(data))
}

// removedMost is how many manifests RemoveArtifact looks at.
const removedMost = 256

// RemoveArtifact deletes an image's artifacts of a kind: the one under the tag, and earlier ones, which are found by the list of what
// refers to the image. One that is not there is no error. Whoever may push decides where the tag leads and, where a registry has no
// Referrers API, what is listed: a manifest that is not such an artifact stays, and is an error.
func (r *Registry) RemoveArtifact(ctx context.Context, repo Repository, image digest.Digest, kind ArtifactKind) error {
	w, err := r.Writable(ctx, repo)
	if err != nil {
		return err
	}
	var all []digest.Digest
	desc, err := w.Resolve(ctx, ArtifactTag(image, kind.Tag))
	if err == nil {
		all = append(all, desc.Digest)
	} else if !errors.Is(err, errdef.ErrNotFound) {
		return err
	}
	listed, err := r.referrers(ctx, repo, image, kind, removedMost+1)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	var errs []error
	if len(listed) > removedMost {
		listed = listed[:removedMost]
		errs = append(errs, fmt.Errorf("%s lists more than %d artifacts of %s: the others stay", repo, removedMost, image))
	}
	for _, desc := range listed {
		if !slices.Contains(all, desc.Digest) {
			all = append(all, desc.Digest)
		}
	}
	for _, d := range all {
		desc, err := artifactOf(ctx, r, repo, d, image, kind)
		if err == nil {
			err = w.Delete(ctx, desc)
		}
		var answer *errcode.ErrorResponse
		switch {
		case err == nil, errors.Is(err, ErrNotFound), errors.Is(err, errdef.ErrNotFound):
		case errors.Is(err, errOther):
			errs = append(errs, fmt.Errorf("%s stays: %w", d, err))
		case errors.As(err, &answer) && answer.StatusCode == http.StatusMethodNotAllowed:
			return fmt.Errorf("%s does not allow deletion: %w", repo.Host, err)
		default:
			return err
		}
	}
	return errors.Join(errs...)
}

// errOther is of what is no artifact of an image.
var errOther = errors.New("it is something else")

// artifactOf returns the descriptor of an image's artifact of a kind, as its own bytes have it, or an error that wraps errOther.
func artifactOf(
	ctx context.Context, r *Registry, repo Repository, d, image digest.Digest, kind ArtifactKind,
) (desc ocispec.Descriptor, err error) {
	if err := d.Validate(); err != nil {
		return desc, fmt.Errorf("%w than an artifact: %w", errOther, err)
	}
	p, _, err := r.document(ctx, repo, docker.HostCapabilityPull, "manifests/"+d.String(), ocispec.MediaTypeImageManifest)
	if err != nil {
		return desc, err
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(p, &m); err != nil || !isArtifact(&m, image, kind) {
		return desc, fmt.Errorf("%w than an artifact %s of %s", errOther, kind.Type, image)
	}
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: d, Size: int64(len(p))}, nil
}
