package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/internal/backoff"
	"github.com/remora-storage/remora/snapshotter/layers"
)

// containerd knows snapshots that we have not, once our root or its database was lost: on a new data disk, or by somebody's rm. It would
// answer every pull with "already exists", and no container could start. So what containerd has of layers, and we have not, is made anew
// under the names that containerd knows, from the images that containerd has now: when remorad starts, and when containerd asks for it.
// Each is supplied as if it was claimed now, once somebody wants it: a whole node's layers would come together otherwise. A layer that
// containerd had unpacked itself comes from its content store, or its registry.

// recoverFirst and recoverMost are the waits before containerd is asked again that did not answer.
const recoverFirst, recoverMost = time.Second, time.Minute

// Serving is told that containerd reaches this Snapshotter from now on: what it knows, and we have not, is made anew.
func (s *Snapshotter) Serving() {
	if s.opts.Metadata == nil {
		return
	}
	s.started.Go(func() {
		again := backoff.Backoff{First: recoverFirst, Max: recoverMost}
		for {
			err := s.claims.recoverAll(s.life)
			if err == nil || s.life.Err() != nil {
				return
			}
			s.log.Warn("what containerd knows and was lost here is not known yet", "err", err)
			if backoff.Sleep(s.life, again.Next()) != nil {
				return
			}
		}
	})
}

// recoverAll makes anew what containerd has of layers in all namespaces, and we have not.
func (c *claims) recoverAll(ctx context.Context) error {
	all, err := c.opts.Metadata.Namespaces(ctx)
	if err != nil {
		return fmt.Errorf("namespaces of containerd: %w", err)
	}
	var errs []error
	for _, namespace := range all {
		ctx := namespaces.WithNamespace(ctx, namespace)
		found, err := c.asking.ask(ctx)
		if err == nil {
			err = c.recoverEach(ctx, found)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (c *claims) recoverEach(ctx context.Context, found map[string]known) error {
	r := recovery{claims: c, known: found, tried: map[string]error{}}
	var errs []error
	for name := range found {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		err := c.serially(func() error { return r.make(ctx, name) })
		if !errors.Is(err, errNoImage) { // which make has said: no pull stumbles over it
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// serially does what makes snapshots anew: whoever needs the same one waits.
func (c *claims) serially(do func() error) error {
	c.recovering.Lock()
	defer c.recovering.Unlock()
	return do()
}

// orRecover does something that needs a snapshot, and once more if the snapshot was lost and could be made anew.
func (c *claims) orRecover(ctx context.Context, name string, do func() error) error {
	err := do()
	if !errdefs.IsNotFound(err) || c.opts.Metadata == nil || !mayBeLayer(name) {
		return err
	}
	if _, ok := namespaces.Namespace(ctx); !ok {
		return err
	}
	if here, herr := c.isHere(ctx, name); here || herr != nil {
		return errors.Join(err, herr)
	}
	rerr := c.serially(func() error {
		found, err := c.asking.of(ctx, name)
		if err != nil {
			return err
		}
		r := recovery{claims: c, known: found, tried: map[string]error{}}
		return r.make(ctx, name)
	})
	if rerr != nil {
		return fmt.Errorf("%w; it was lost: %w", err, rerr)
	}
	return do()
}

func (c *claims) isHere(ctx context.Context, name string) (here bool, err error) {
	err = c.store.WithTransaction(ctx, false, func(ctx context.Context) error {
		_, _, _, err := storage.GetInfo(ctx, name)
		if here = err == nil; errdefs.IsNotFound(err) {
			return nil
		}
		return err
	})
	return here, err
}

// errNoImage says that containerd has no image any more that has a layer.
var errNoImage = errors.New("no image of containerd has its layer")

// A recovery makes snapshots of a namespace anew.
type recovery struct {
	*claims
	known   map[string]known
	tried   map[string]error
	sources map[digest.Digest][]layers.Source // by chainID; nil until they are looked for
}

// make makes a snapshot anew, unless it is here, after those that it lies on.
func (r *recovery) make(ctx context.Context, name string) error {
	if err, done := r.tried[name]; done {
		return err
	}
	err := r.makeOne(ctx, name)
	if r.tried[name] = err; errors.Is(err, errNoImage) {
		r.log.Warn("a snapshot that containerd knows was lost, and cannot be made anew", "key", name, "err", err)
	}
	return err
}

func (r *recovery) makeOne(ctx context.Context, name string) error {
	k, ok := r.known[name]
	here, err := r.isHere(ctx, name)
	if here || err != nil {
		return err
	}
	if !ok {
		return errNoImage
	}
	if k.parent != "" {
		if err := r.make(ctx, k.parent); err != nil {
			return fmt.Errorf("below it, snapshot %s: %w", k.parent, err)
		}
	}
	src, err := r.sourceOf(ctx, name, k)
	if err != nil {
		return err
	}
	_, err = r.commitRemote(ctx, savedBinding{Name: name, Source: src, Unasked: true}, k.parent,
		map[string]string{snapshots.LabelSnapshotRef: k.chainID.String()})
	if errdefs.IsAlreadyExists(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("make snapshot %s anew: %w", name, err)
	}
	r.log.Warn("a snapshot that containerd knows was lost: it is made anew", "key", name, "image", src.Image)
	return nil
}

// sourceOf returns the layer that a lost snapshot is made of now: best the one whose claim it was, else one that can be read here, else
// one that containerd has the blob of. Where none of its places has it, contentOf asks the others.
func (r *recovery) sourceOf(ctx context.Context, name string, k known) (src layers.Source, err error) {
	if r.sources == nil {
		all, err := r.images.Known(ctx)
		if err != nil {
			return src, fmt.Errorf("which image has snapshot %s: %w", name, err)
		}
		r.sources = map[digest.Digest][]layers.Source{}
		for i := range all {
			for j, id := range chainIDsOf(&all[i]) {
				r.sources[id] = append(r.sources[id], all[i].Layers[j])
			}
		}
	}
	all := r.sources[k.chainID]
	if len(all) == 0 {
		return src, fmt.Errorf("%w: %s", errNoImage, k.chainID)
	}
	best := -1
	for _, s := range all {
		worth := 0
		if remoteName(k.parent, k.chainID.String(), r.layers.KeyOf(&s)) == name {
			worth += 4
		}
		if r.layers.Refuses(&s) == nil {
			worth += 2
		}
		if r.layers.Places.Stored(ctx, &s) {
			worth++
		}
		if worth > best {
			src, best = s, worth
		}
	}
	return src, nil
}
