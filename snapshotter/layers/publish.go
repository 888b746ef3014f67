package layers

import (
	"context"
	"fmt"

	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/fs/index"
	"github.com/remora-storage/remora/remote/registry"
)

// Publish publishes the indexes that were made here of an image's layers, if that is wanted. That it
// fails is no error.
func (x *Indexes) Publish(img Image) {
	reg, ok := x.places.registry.(Artifacts)
	if !ok || !x.opts.IndexOf(img.Repo).Publish || img.Target.Digest == "" {
		return
	}
	ctx, cancel := context.WithTimeout(x.life, indexAskFor)
	defer cancel()
	var all []digest.Digest
	bytes := int64(0)
	for i := range img.Layers {
		p, err := x.promises.promiseOf(&img.Layers[i])
		if err != nil || p.format != formatImport || !x.granted.Has(img.Repo, wholeOf(&img.Layers[i])) {
			continue
		}
		if n, err := x.made(ctx, img.Layers[i].Descriptor.Digest); err == nil {
			all, bytes = append(all, img.Layers[i].Descriptor.Digest), bytes+n
		}
	}
	if len(all) == 0 {
		return
	}
	there, _, share, err := x.ask(ctx, reg, img)
	share.Release()
	if err == nil && len(there) >= len(all) {
		return // another node was faster
	}
	done, err := x.publish(ctx, reg, img, all, bytes)
	if err != nil {
		x.log.Warn("index not published", "image", img.Ref, "manifest", img.Target.Digest, "err", err)
		return
	}
	x.log.Info("index published", "image", img.Ref, "manifest", img.Target.Digest, "tag", done.Tag, "layers", len(all))
}

// publish publishes the indexes of some layers, which have so many bytes together, once there is memory for them.
func (x *Indexes) publish(ctx context.Context, reg Artifacts, img Image, all []digest.Digest, bytes int64) (registry.Published, error) {
	share, err := x.opts.Memory.Acquire(ctx, userOf(img.Repo), 2*bytes) // each of them, and all together
	if err != nil {
		return registry.Published{}, err
	}
	defer share.Release()
	var parts [][]byte
	for _, d := range all {
		data, err := x.get(d)
		if err != nil {
			return registry.Published{}, fmt.Errorf("index of %s: %w", d, err)
		}
		parts = append(parts, data)
	}
	return reg.PushArtifact(ctx, img.Repo, img.Target, index.Artifact, index.Join(parts))
}
