package snapshotter

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/internal/durable"
	"github.com/remora-storage/remora/snapshotter/layers"
)

const (
	// claimWait bounds how long a Prepare waits for the index of a layer that is proven: other calls of
	// containerd may wait behind it. What is left is waited for in Mounts.
	claimWait = 80 * time.Millisecond
	// importWait is the same for a layer that is imported, if the options do not say otherwise.
	importWait = 50 * time.Millisecond

	parentChainLabel = "containerd.io/snapshot/parent-chain-id"

	stargzRefLabel = "containerd.io/snapshot/remote/stargz.reference"
)

// claims are the snapshots of layers that are supplied here.
type claims struct {
	*base
	bindings  *bindings
	mountings *mountings
	losses    *losses
	answers   answers
	declines  declines

	asking     asking
	recovering sync.Mutex // snapshots that were lost are made anew one after the other
}

// claim tries to supply the layer that a Prepare asks for. If it returns nil, a committed
// snapshot with the label and the parent exists and Prepare answers "already exists". An error
// that wraps ErrNotLazy sends the layer the ordinary way.
func (c *claims) claim(ctx context.Context, chainID, parent string, labels map[string]string) error {
	if parent == "" && labels[parentChainLabel] != "" {
		return fmt.Errorf("layer %s is prepared without its parent %s: %w (remora must not be declared with the capability \"rebase\")",
			chainID, labels[parentChainLabel], errdefs.ErrInvalidArgument)
	}
	img, index, err := c.images.Find(ctx, query(chainID, labels))
	if err != nil {
		return err
	}
	src := img.Layers[index]
	key := c.layers.KeyOf(&src)
	namespace, _ := namespaces.Namespace(ctx)
	name := remoteName(namespace, parent, chainID, key)
	b, err := c.claimed(ctx, name)
	if err != nil {
		return err
	}
	switch {
	case b == nil || !b.isUsable():
		err = c.prove(ctx, img, index)
	case !b.isHere() && !c.layers.Proves(&src):
		if !c.declines.below(&img, index) {
			c.startFrom(img, index)
		}
		err = c.layers.Proofs.Still(ctx, &src)
	}
	if err != nil {
		return err
	}
	if b == nil {
		b, err = c.commitRemote(ctx, savedBinding{Name: name, Source: src}, parent, labels)
		if err != nil && !errdefs.IsAlreadyExists(err) { // which says that another client was faster
			return err
		}
	}
	c.answers.note(ctx, chainID, parent, name)
	if b != nil {
		c.mountings.startAttempt(b)
	}
	return nil
}

// prove has the layers of an image opened that have no snapshot, from one on, and returns once it is known that this one can be read
// here.
func (c *claims) prove(ctx context.Context, img layers.Image, index int) error {
	src := img.Layers[index]
	if c.declines.below(&img, index) { // the others are opened when they are asked for, and may be stored
		if c.layers.Whole(&src) && !c.layers.Places.Stored(ctx, &src) {
			return layers.NotLazy("containerd downloads it, since a layer below it was not proven in time")
		}
	} else {
		c.startFrom(img, index)
	}
	if err := c.layers.Refuses(&src); err != nil {
		return err
	}
	if c.caps.Lazy == "" {
		return layers.NotLazy("this kernel cannot mount an incomplete image: %s", c.caps.LazyReason)
	}
	o := c.layers.Open(src)
	soon := claimWait
	if c.layers.Whole(&src) {
		soon = c.opts.ImportWait
	}
	err := c.layers.Proofs.Await(ctx, o, soon)
	if errors.Is(err, layers.ErrUnproven) {
		c.abandon(img.Layers[index:]) // containerd downloads them
		c.declines.note(&img, index)
	}
	if err == nil && !c.layers.Proves(&src) {
		err = c.layers.Proofs.Still(ctx, &src)
	}
	return err
}

func query(chainID string, labels map[string]string) Query {
	q := Query{ChainID: digest.Digest(chainID), Ref: labels[snapshotters.TargetRefLabel]}
	if q.Ref == "" {
		q.Ref = labels[stargzRefLabel]
	}
	if d, err := digest.Parse(labels[snapshotters.TargetManifestDigestLabel]); err == nil {
		q.Manifest = d
	}
	return q
}

// remoteName is unique in the backend: a namespace may have the same layer on parents that differ here, or claim the same chainID by
// another layer or table, which somebody made up. Namespaces have snapshots of their own, and share images in the cache alone: what
// settles whom one of them believes fills its snapshot with what its images may read, and nobody else's. Without a namespace it is the
// name of earlier versions, in which namespaces had snapshots of one source together.
func remoteName(namespace, parent, chainID, key string) string {
	h := sha256.New()
	if namespace != "" {
		fmt.Fprintf(h, "%q ", namespace)
	}
	fmt.Fprintf(h, "%q %q %q", parent, chainID, key)
	return remotePrefix + hex.EncodeToString(h.Sum(nil)[:16])
}

const remotePrefix = "remora-"

// isRemoteName reports whether a name is one of remoteName's. containerd's own begin with a namespace.
func isRemoteName(name string) bool {
	sum, ok := strings.CutPrefix(name, remotePrefix)
	_, err := hex.DecodeString(sum)
	return ok && len(sum) == 32 && err == nil
}

// claimed returns the binding of a snapshot that is there already, or nil: it may be there since it was made anew, or since another
// client pulls the same image.
func (c *claims) claimed(ctx context.Context, name string) (b *binding, err error) {
	err = c.store.WithTransaction(ctx, false, func(ctx context.Context) error {
		id, _, _, err := storage.GetInfo(ctx, name)
		if errdefs.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return err
		}
		if b = c.bindings.get(id); b != nil {
			return b.isBroken()
		}
		return nil
	})
	return b, err
}

// isBroken says why nobody else is to be given what a binding shows; nil if there is no reason.
func (b *binding) isBroken() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.saved.Quarantined != "":
		return layers.NotLazy("its snapshot is quarantined: %s", b.saved.Quarantined)
	case b.gone != nil && b.how != notMounted:
		return layers.NotLazy("its snapshot is mounted, and what is missing of it is no longer anywhere")
	}
	return nil
}

// isUsable reports whether a layer is shown, or can be with what is here. Of another one its snapshot alone says nothing: whoever claimed
// it may have failed to mount it, or was let in when the repository was open to all.
func (b *binding) isUsable() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	f := b.file
	return b.how != notMounted || b.saved.Unpacked != nil || f != nil && f.Complete() && f.Verified(b.saved.Source.DiffID)
}

// isHere reports whether nothing of a layer is missing that would have to be read.
func (b *binding) isHere() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.saved.Unpacked != nil || b.file != nil && b.file.Complete()
}

// startAll starts opening every layer of the image that may be lazy and has no snapshot yet:
// their indexes come while containerd still works its way up.
func (c *claims) startAll(img layers.Image) { c.startFrom(img, 0) }

// startFrom is startAll without those below a layer: containerd has them, or downloads them. Of those that have a snapshot, or that another
// image has opened, and of which something is missing, their repository is asked whether it still lets us have them.
func (c *claims) startFrom(img layers.Image, index int) {
	c.layers.Indexes.Expect(img)
	c.starts.Begin(img)
	bound := c.bindings.keys()
	for _, src := range img.Layers[index:] {
		here, isBound := bound[c.layers.KeyOf(&src)]
		if c.layers.Refuses(&src) != nil || here {
			continue
		}
		if !isBound && c.layers.Open(src).IsOf(&src) {
			continue
		}
		if !c.layers.Proves(&src) {
			c.layers.Proofs.AskAgain(&src)
		}
	}
}

// abandon ends the openings of layers that are not proven and have no snapshot.
func (c *claims) abandon(all []layers.Source) {
	bound := c.bindings.keys()
	for i := range all {
		if _, isBound := bound[c.layers.KeyOf(&all[i])]; !isBound {
			c.layers.Abandon(&all[i])
		}
	}
}

// commitRemote makes a committed snapshot of a layer that is supplied here, and returns its binding.
func (c *claims) commitRemote(ctx context.Context, saved savedBinding, parent string, labels map[string]string) (*binding, error) {
	name, src := saved.Name, saved.Source
	key := name + "-claim-" + uniqueSuffix()
	saved.Version = bindingVersion
	b := &binding{saved: saved}
	err := c.store.WithTransaction(ctx, true, func(ctx context.Context) (err error) {
		snap, err := storage.CreateSnapshot(ctx, snapshots.KindActive, key, parent)
		if err != nil {
			return err
		}
		b.id, b.saved.Parents = snap.ID, snap.ParentIDs
		b.dir = c.snapshotDir(snap.ID)
		defer func() { err = removeUnlessMade(b.dir, err) }()
		if err := os.MkdirAll(filepath.Join(b.dir, "fs"), 0o755); err != nil {
			return err
		}
		if err := os.Chmod(b.dir, 0o700); err != nil {
			return err
		}
		if err := b.saved.write(b.dir); err != nil {
			return err
		}
		// The directory is on stable storage before the database says that the snapshot exists.
		if err := durable.SyncDir(c.snapshotsDir()); err != nil {
			return err
		}
		if _, err = storage.CommitActive(ctx, key, name, snapshots.Usage{}, snapshots.WithLabels(labels)); err != nil {
			return err
		}
		c.bindings.add(b) // before anybody can find the snapshot: its mounts wait for the layer
		return nil
	})
	if err != nil {
		c.bindings.drop(b)
		return nil, err
	}
	c.log.Info("layer claimed", "key", name, "digest", src.Descriptor.Digest, "image", src.Image)
	return b, nil
}
