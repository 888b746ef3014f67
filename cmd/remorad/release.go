package main

import (
	"context"
	"fmt"

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
	ask        bool // an operator removes them
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
	for i := range all {
		if r.ask && all[i].Stays == "" {
			all[i].Stays = fmt.Sprintf("[images] release is %q: remove it (ctr -n %s images rm %s), and what else has the layer, and pull it again",
				releaseAsk, all[i].Namespace, all[i].Name)
		}
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
