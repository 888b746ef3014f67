package snapshotter

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/snapshotter/layers"
)

// containerd knows snapshots that we have not, once our root was lost: on a new data disk, or by somebody's rm. It would answer every
// pull with "already exists", and no container could start. The name of a remote layer's snapshot says nothing but what it was made of,
// and containerd still has the images. So, when it asks for such a snapshot, the snapshot is made anew with those below it.

// recover makes a remote layer's snapshot that is not here anew, and those below it, from an image in the request's namespace. It
// reports whether there is one that has it.
func (c *claims) recover(ctx context.Context, name string) (bool, error) {
	if _, ok := namespaces.Namespace(ctx); !ok || !isRemoteName(name) {
		return false, nil
	}
	c.recovering.Lock()
	defer c.recovering.Unlock()
	all, err := c.images.Known(ctx)
	if err != nil {
		return false, fmt.Errorf("which image has snapshot %s: %w", name, err)
	}
	for i := range all {
		if names, chainIDs := c.namesOf(&all[i], name); names != nil {
			return true, c.makeAnew(ctx, &all[i], names, chainIDs)
		}
	}
	return false, nil
}

// namesOf returns the names that the snapshots of an image's layers have, with their chainIDs, up to the wanted one; nothing if that is
// not among them.
func (c *claims) namesOf(img *layers.Image, want string) (names []string, chainIDs []digest.Digest) {
	parent := ""
	for i, id := range chainIDsOf(img) {
		parent = remoteName(parent, id.String(), c.layers.KeyOf(&img.Layers[i]))
		names, chainIDs = append(names, parent), append(chainIDs, id)
		if parent == want {
			return names, chainIDs
		}
	}
	return nil, nil
}

func (c *claims) makeAnew(ctx context.Context, img *layers.Image, names []string, chainIDs []digest.Digest) error {
	parent := ""
	for i, name := range names {
		labels := map[string]string{snapshots.LabelSnapshotRef: chainIDs[i].String()}
		err := c.commitRemote(ctx, name, parent, labels, img.Layers[i])
		if err != nil && !errdefs.IsAlreadyExists(err) {
			return fmt.Errorf("make snapshot %s anew: %w", name, err)
		}
		if err == nil {
			c.log.Warn("a snapshot that containerd knows was lost: it is made anew", "key", name, "image", img.Layers[i].Image)
		}
		parent = name
	}
	return nil
}

// orRecover does something that needs a snapshot, and once more if the snapshot was lost and could be made anew.
func (c *claims) orRecover(ctx context.Context, name string, do func() error) error {
	err := do()
	if !errdefs.IsNotFound(err) {
		return err
	}
	here := c.store.WithTransaction(ctx, false, func(ctx context.Context) error {
		_, _, _, err := storage.GetInfo(ctx, name)
		return err
	})
	if !errdefs.IsNotFound(here) {
		return err
	}
	found, rerr := c.recover(ctx, name)
	if rerr != nil {
		return fmt.Errorf("%w; %w", err, rerr)
	}
	if !found {
		return err
	}
	return do()
}
