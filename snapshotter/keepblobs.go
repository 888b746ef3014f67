package snapshotter

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/snapshotter/layers"
)

// What reads an image from containerd's content store misses layers that were never downloaded there: exports, pushes to other
// registries, converters. Where an operator wants their blobs kept, those of imports go there on the way, and all others come here, one
// after another while no reader waits: those of layers that are read by an index, of images in a second namespace, which finds the layers
// supplied, of layers that another image has packed otherwise, and of layers that containerd has unpacked and whose blobs it has dropped.

// keepCheck is how often all namespaces are looked through, if nothing is pulled.
const keepCheck = time.Minute

// A keptBlob is one that an image of a namespace has.
type keptBlob struct {
	namespace string
	digest    digest.Digest
}

// A blobKeep is how a blob can be had.
type blobKeep struct {
	file *cache.File // an image in the cache that was made of it, or nil
	from []layers.Source
}

// keepBlobs completes containerd's content store, of each namespace for its own images, until ctx ends.
func (c *chores) keepBlobs(ctx context.Context) {
	if c.opts.Layers.Blobs == nil || c.opts.Metadata == nil || !c.opts.KeepBlobs {
		return
	}
	var looked time.Time
	var keep map[keptBlob]*blobKeep
	list := func() []keptBlob {
		if !c.changed.Swap(false) && time.Since(looked) < keepCheck {
			return nil
		}
		looked = time.Now()
		var err error
		if keep, err = c.blobsToKeep(ctx); err != nil && ctx.Err() == nil {
			c.log.Warn("which blobs containerd's content store lacks is not known yet", "err", err)
		}
		return slices.SortedFunc(maps.Keys(keep), func(a, b keptBlob) int {
			return cmp.Or(cmp.Compare(a.namespace, b.namespace), cmp.Compare(a.digest, b.digest))
		})
	}
	oneByOne(ctx, func() bool { return c.cache.Busy(backgroundCheck) }, list, func(one keptBlob) error {
		err := c.keepBlob(ctx, keep[one])
		if err != nil && ctx.Err() == nil {
			c.log.Warn("blob not kept in containerd's content store yet", "digest", one.digest, "namespace", one.namespace,
				"image", keep[one].from[0].Image, "err", err)
		}
		return err
	})
}

// keepBlob puts a layer's blob into containerd's content store, unless it is there. What the cache misses of the layer is filled on the
// way.
func (c *chores) keepBlob(ctx context.Context, k *blobKeep) error {
	if c.layers.Places.Stored(ctx, &k.from[0]) {
		return nil
	}
	var errs []error
	for i := range k.from {
		err := c.layers.Imports.FileBlob(ctx, k.file, &k.from[i])
		if err == nil || ctx.Err() != nil {
			return err
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// DownloadBlob puts the blob of a layer that was unpacked into containerd's content store.
func (m *mending) DownloadBlob(ctx context.Context, src *layers.Source) error {
	return m.layers.Imports.FileBlob(ctx, nil, src)
}

// blobsToKeep returns the blobs that images of all namespaces have, of layers whose snapshots are here. One that is on its way is left out:
// the content store may get it thereby.
func (c *chores) blobsToKeep(ctx context.Context) (map[keptBlob]*blobKeep, error) {
	spaces, err := c.opts.Metadata.Namespaces(ctx)
	if err != nil {
		return nil, fmt.Errorf("namespaces of containerd: %w", err)
	}
	here, err := c.layersHere(ctx)
	if err != nil {
		return nil, err
	}
	keep := map[keptBlob]*blobKeep{}
	var errs []error
	for _, ns := range spaces {
		images, err := c.images.Known(namespaces.WithNamespace(ctx, ns))
		if err != nil {
			errs = append(errs, fmt.Errorf("images of namespace %s: %w", ns, err))
		}
		for i := range images {
			for j, chain := range chainIDsOf(&images[i]) {
				src := images[i].Layers[j]
				l := here[chain]
				if l == nil || !l.unpackedIn[ns] && !l.supplied || !src.FromRegistry() || !c.layers.KeepsBlob(&src) {
					continue
				}
				at := keptBlob{ns, src.Descriptor.Digest}
				if keep[at] == nil {
					keep[at] = &blobKeep{file: l.files[src.BlobName()]}
				}
				keep[at].from = append(keep[at].from, src)
			}
		}
	}
	return keep, errors.Join(errs...)
}

// A layerHere is what is here of a chainID.
type layerHere struct {
	unpackedIn map[string]bool // by containerd, by namespace
	supplied   bool            // there is a snapshot that shows it now
	files      map[string]*cache.File
}

// layersHere returns the layers of which there are snapshots, by chainID.
func (c *chores) layersHere(ctx context.Context) (map[digest.Digest]*layerHere, error) {
	here := map[digest.Digest]*layerHere{}
	at := func(chain digest.Digest) *layerHere {
		if here[chain] == nil {
			here[chain] = &layerHere{unpackedIn: map[string]bool{}, files: map[string]*cache.File{}}
		}
		return here[chain]
	}
	all := map[string]snapshots.Info{} // by id
	err := c.store.WithTransaction(ctx, false, func(ctx context.Context) error {
		return storage.WalkInfo(ctx, func(ctx context.Context, info snapshots.Info) error {
			id, _, _, err := storage.GetInfo(ctx, info.Name)
			all[id] = info
			return err
		})
	})
	for id, info := range all {
		if info.Kind != snapshots.KindCommitted {
			continue
		}
		if b := c.bindings.get(id); b != nil {
			at(digest.Digest(info.Labels[snapshots.LabelSnapshotRef])).add(b)
		} else if isUnpackedName(info.Name) {
			namespace, _, _ := strings.Cut(info.Name, "/")
			at(digest.Digest(path.Base(info.Name))).unpackedIn[namespace] = true
		}
	}
	return here, err
}

// add notes a snapshot that is supplied here, unless it is not mounted: somebody has to ask for it first.
func (l *layerHere) add(b *binding) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.how == notMounted || b.saved.Quarantined != "" {
		return
	}
	l.supplied = true
	if b.file != nil {
		l.files[cache.ParseName(b.file.ID()).Blob] = b.file
	}
}
