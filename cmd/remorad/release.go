package main

import (
	"context"

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
	spaces interface {
		List(ctx context.Context) ([]string, error)
	}
	images images.Store
	known  *snapshotter.ContentImages
}

// Using implements snapshotter.Releases.
func (r *releases) Using(ctx context.Context, chainID digest.Digest) (all []snapshotter.Use, err error) {
	spaces, err := r.spaces.List(ctx)
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

// Release implements snapshotter.Releases. A client may have pulled the name anew since it was looked at.
func (r *releases) Release(ctx context.Context, use *snapshotter.Use) (removed bool, err error) {
	err = r.images.Delete(namespaces.WithNamespace(ctx, use.Namespace), use.Name, images.SynchronousDelete(), images.DeleteTarget(&use.Target))
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}
