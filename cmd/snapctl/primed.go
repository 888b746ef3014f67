package main

import (
	"bytes"
	"context"
	"io"

	"github.com/containerd/containerd/v2/core/remotes"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/cmd/internal/control"
	"github.com/remora-storage/remora/remote/registry"
)

// primedResolver returns a resolver that knows what remorad has read already, and asks another one
// for the rest. containerd checks every digest itself.
func primedResolver(r remotes.Resolver, ref string, primed *control.PrimeReply) remotes.Resolver {
	if primed == nil || len(primed.Documents) == 0 {
		return r
	}
	return &knownDocuments{Resolver: r, ref: ref, docs: primed.Documents}
}

// reachedAs returns how remorad reaches registries. It says so as it answers Prime; where that has failed, or remorad is older, it
// is asked, which costs more the more layers it has.
func reachedAs(ctx context.Context, remora *control.Client, primed *control.PrimeReply) (registry.Options, error) {
	if primed != nil && primed.Registry != nil {
		return optionsOf(primed.Registry), nil
	}
	st, err := remora.Status(ctx)
	if err != nil {
		return registry.Options{}, err
	}
	return optionsOf(&st.Registry), nil
}

func optionsOf(r *control.Registry) registry.Options {
	return registry.Options{ConfigPath: r.ConfigPath, DockerConfig: r.DockerConfig, PrivatePlaces: r.PrivatePlaces}
}

type knownDocuments struct {
	remotes.Resolver
	ref  string
	docs []control.Document
}

// Resolve implements remotes.Resolver.
func (k *knownDocuments) Resolve(ctx context.Context, ref string) (string, ocispec.Descriptor, error) {
	if ref != k.ref {
		return k.Resolver.Resolve(ctx, ref)
	}
	d := k.docs[0]
	return ref, ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: int64(len(d.Data))}, nil
}

// Fetcher implements remotes.Resolver.
func (k *knownDocuments) Fetcher(ctx context.Context, ref string) (remotes.Fetcher, error) {
	f, err := k.Resolver.Fetcher(ctx, ref)
	if err != nil {
		return nil, err
	}
	return remotes.FetcherFunc(func(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
		for _, d := range k.docs {
			if d.Digest == desc.Digest && int64(len(d.Data)) == desc.Size {
				return io.NopCloser(bytes.NewReader(d.Data)), nil
			}
		}
		return f.Fetch(ctx, desc)
	}), nil
}
