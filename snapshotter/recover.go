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
// containerd had unpacked itself comes from its content store, or its registry. What cannot be made anew is named as lost, until
// containerd has it no longer.

const (
	// recoverFirst and recoverMost are the waits before containerd is asked again that did not answer.
	recoverFirst, recoverMost = time.Second, time.Minute
	// lostSurely is the wait before what was found lost once is named, if it is found so again.
	lostSurely = 2 * time.Second
	// lostAgain is the wait while something is lost for good: an image that has it may have come, or nobody wants it any longer.
	lostAgain = time.Minute
)

// Serving is told that containerd reaches this Snapshotter from now on: what it knows, and we have not, is made anew.
func (s *Snapshotter) Serving() {
	if s.opts.Metadata == nil {
		return
	}
	s.started.Go(func() {
		again := backoff.Backoff{First: recoverFirst, Max: recoverMost}
		for {
			err := s.claims.recoverAll(s.life)
			wait := lostAgain
			switch {
			case s.life.Err() != nil:
				return
			case err != nil:
				s.log.Warn("what containerd knows and was lost here is not known yet", "err", err)
				wait = again.Next()
			case s.losses.none():
				return
			case s.losses.suspected():
				wait = lostSurely
			}
			if backoff.Sleep(s.life, wait) != nil {
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
	lost := map[string]map[string]string{}
	for _, namespace := range all {
		some, err := c.recoverIn(namespaces.WithNamespace(ctx, namespace))
		if errs = append(errs, err); err != nil {
			some = c.losses.in(namespace)
		}
		lost[namespace] = some
	}
	c.losses.set(lost)
	return errors.Join(errs...)
}

// recoverIn does so in the namespace of the context. It returns why what stays lost cannot be made anew, by containerd's keys.
func (c *claims) recoverIn(ctx context.Context) (lost map[string]string, err error) {
	found, others, err := c.asking.ask(ctx)
	if err != nil {
		return nil, err
	}
	lost = map[string]string{}
	for _, key := range others {
		lost[key] = "nothing says what was in it"
	}
	r := recovery{claims: c, known: found, tried: map[string]error{}}
	var errs []error
	for name, k := range found {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		err := c.serially(func() error { return r.make(ctx, name) })
		if errors.Is(err, errNoImage) { // no pull stumbles over it
			lost[k.chainID.String()] = err.Error()
			continue
		}
		errs = append(errs, err)
	}
	return lost, errors.Join(errs...)
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
	r.tried[name] = err
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
	nowhere, err := r.isNowhere(ctx, &src, k.chainID)
	if err != nil {
		return err
	}
	b, err := r.commitRemote(ctx, savedBinding{Name: name, Source: src, Unasked: !nowhere}, k.parent,
		map[string]string{snapshots.LabelSnapshotRef: k.chainID.String()})
	if errdefs.IsAlreadyExists(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("make snapshot %s anew: %w", name, err)
	}
	r.log.Warn("a snapshot that containerd knows was lost: it is made anew", "key", name, "image", src.Image)
	if nowhere {
		r.mountings.startAttempt(b) // which fails, and says so
	}
	return nil
}

// isNowhere reports whether nobody has a layer that came from no registry: containerd unpacked it, and dropped its blob. Then it says of
// which image it is by a name that people know.
func (r *recovery) isNowhere(ctx context.Context, src *layers.Source, chainID digest.Digest) (bool, error) {
	for _, other := range r.sources[chainID] {
		if other.FromRegistry() || r.layers.Places.Stored(ctx, &other) {
			return false, nil
		}
	}
	if r.opts.Releases == nil {
		return true, nil
	}
	uses, err := r.opts.Releases.Using(ctx, chainID)
	if err != nil {
		return false, fmt.Errorf("which images have layer %s: %w", chainID, err)
	}
	for _, use := range uses {
		if use.Namespace == src.Namespace && use.Unread == "" {
			src.Image = use.Name
			break
		}
	}
	return true, nil
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
	namespace, _ := namespaces.Namespace(ctx)
	best := -1
	for _, s := range all {
		worth := 0
		for _, in := range []string{namespace, ""} {
			if remoteName(in, k.parent, k.chainID.String(), r.layers.KeyOf(&s)) == name {
				worth += 4
			}
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
