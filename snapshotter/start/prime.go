package start

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/remote/registry"
	"github.com/remora-storage/remora/snapshotter/layers"
)

// Manifests are what images are made of. A Registry may offer them.
type Manifests interface {
	// Manifest returns a manifest or an index, that a tag or a digest names, with its descriptor.
	Manifest(ctx context.Context, repo registry.Repository, reference string) (ocispec.Descriptor, []byte, error)
	// Warm opens connections that are soon to be needed.
	Warm(ctx context.Context, reg string, connections int)
}

// A Document is a manifest, an index or a configuration.
type Document struct {
	Descriptor ocispec.Descriptor
	Data       []byte
}

const warmConnections = 8 // for the layers' indexes, the configuration, the profile, and then the data

// Prime makes an image's start begin before containerd knows of the image: it reads the manifest and
// has the layers opened, for a namespace of containerd. It returns what containerd will ask the registry for, the document that the
// reference names first.
func (s *Starts) Prime(ctx context.Context, namespace, ref string) ([]Document, error) {
	reg, ok := s.registry.(Manifests)
	if !ok {
		return nil, errors.New("this registry gives no manifests")
	}
	spec, err := reference.Parse(ref)
	if err != nil {
		return nil, err
	}
	repo, err := registry.ParseRepository(ref)
	if err != nil {
		return nil, err
	}
	s.started.Go(func() { reg.Warm(s.life, repo.Host, warmConnections) })
	name := spec.Object
	if _, dgst, ok := strings.Cut(name, "@"); ok {
		name = dgst
	}
	began := time.Now()
	var docs []Document
	for range 3 { // an index, or an index of indexes, and the manifest
		desc, doc, err := reg.Manifest(ctx, repo, name)
		if err != nil {
			return nil, err
		}
		docs = append(docs, Document{desc, doc})
		if images.IsManifestType(desc.MediaType) {
			break
		}
		one, err := registry.ForThisPlatform(doc)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", ref, err)
		}
		name = one.Digest.String()
	}
	s.layers.Tracer.Ended(began, layers.Span{Kind: "resolve", What: ref})
	last := docs[len(docs)-1]
	var m ocispec.Manifest
	if err := json.Unmarshal(last.Data, &m); err != nil {
		return nil, fmt.Errorf("%s: %w", ref, err)
	}
	if !images.IsManifestType(last.Descriptor.MediaType) || len(m.Layers) == 0 ||
		m.Config.Size <= 0 || m.Config.Size > layers.MaxConfig || m.Config.Digest.Validate() != nil {
		return nil, fmt.Errorf("%s is not an image with layers", ref)
	}
	img := layers.Image{Ref: ref, Target: last.Descriptor, Repo: repo}
	for _, d := range m.Layers {
		img.Layers = append(img.Layers, layers.Source{Image: ref, Repo: repo, Descriptor: d, Namespace: namespace})
	}
	s.hooks.Open(img)
	config := make([]byte, m.Config.Size)
	if _, err := s.registry.Blob(repo, m.Config).ReadAt(ctx, config, 0); err != nil {
		return docs, nil // containerd asks for it itself, and says what is wrong
	}
	if m.Config.Digest.Algorithm().FromBytes(config) == m.Config.Digest {
		docs = append(docs, Document{m.Config, config})
	}
	return docs, nil
}
