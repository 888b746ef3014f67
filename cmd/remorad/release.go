package main

import (
	"context"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/snapshotter"
)

// The values of [images] release.
const (
	releaseAuto = "auto"
	releaseAsk  = "ask"
)

// releases removes images from containerd.
type releases struct {
	containerd *client.Client
	known      *snapshotter.ContentImages
}

// Using implements snapshotter.Releases.
func (r *releases) Using(ctx context.Context, chainID digest.Digest) (all []snapshotter.ImageName, err error) {
	spaces, err := r.containerd.NamespaceService().List(ctx)
	if err != nil {
		return nil, err
	}
	for _, namespace := range spaces {
		some, err := r.known.Using(namespaces.WithNamespace(ctx, namespace), namespace, chainID)
		if err != nil {
			return nil, err
		}
		all = append(all, some...)
	}
	return all, nil
}

// Release implements snapshotter.Releases.
func (r *releases) Release(ctx context.Context, name snapshotter.ImageName) error {
	err := r.containerd.ImageService().Delete(namespaces.WithNamespace(ctx, name.Namespace), name.Name, images.SynchronousDelete())
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}
