package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/opencontainers/go-digest"
)

// While containerd has an image whose claimed layer is nowhere any more, every pull of it ends in "already exists", and no container
// starts. So such an image is released: its names go, with those of the other images that have the layer, and containerd drops the
// snapshots. The next pull begins anew.

// Releases is how images are released. All namespaces of containerd are meant.
type Releases interface {
	// Using returns the images that have a layer of a chainID.
	Using(ctx context.Context, chainID digest.Digest) ([]ImageName, error)
	// Release removes an image, with the snapshots that nothing else uses.
	Release(ctx context.Context, name ImageName) error
}

// An ImageName is an image as containerd has it.
type ImageName struct {
	Namespace, Name string
	// Stays says why the image must not be removed: it is pinned, or no registry has all of it; "" if it may be.
	Stays string
}

func (n ImageName) String() string { return n.Namespace + "/" + n.Name }

// goneFor is Options.GoneFor if the options do not say otherwise.
const goneFor = 30 * time.Second

const (
	usersGo    = 10 * time.Second // how long a start that has failed may take to clean up
	usersCheck = 50 * time.Millisecond
)

// A goneError says that no place that is known has a layer: neither is it an outage, nor do credentials matter.
type goneError struct{ err error }

func (e *goneError) Error() string { return "it is nowhere any more: " + e.err.Error() }
func (e *goneError) Unwrap() error { return e.err }

// noteAttempt has a layer's images released if an attempt to open it failed since it is nowhere any more, and another one a while ago.
func (s *Snapshotter) noteAttempt(b *binding, err error) {
	gone := errors.As(err, new(*goneError))
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case !gone:
		b.gone = time.Time{}
	case b.gone.IsZero():
		b.gone = time.Now()
	case time.Since(b.gone) >= s.opts.GoneFor && s.opts.Releases != nil:
		b.gone = time.Time{} // else the next attempt would do it, too
		s.started.Go(func() {
			if err := s.release(s.life, b, s.opts.ReleaseAsk, func(ImageName) {}); err != nil {
				s.log.Error("images of which a layer is nowhere any more stay", "key", b.name(), "digest", b.source().Descriptor.Digest, "err", err)
			}
		})
	}
}

// release removes the images that have a binding's layer, unless something uses it, or says what an operator is to do who wants to be
// asked. It tells of each.
func (s *Snapshotter) release(ctx context.Context, b *binding, ask bool, tell func(ImageName)) error {
	chains, err := s.chainsOf(ctx, []*binding{b})
	if err != nil {
		return err
	}
	if err := s.awaitNoUsers(ctx, b.name()); err != nil {
		return err
	}
	images, err := s.opts.Releases.Using(ctx, chains[b])
	if err != nil {
		return fmt.Errorf("which images have layer %s: %w", chains[b], err)
	}
	for _, img := range images {
		if img.Stays != "" {
			return fmt.Errorf("image %s: %s", img, img.Stays)
		}
	}
	if ask && len(images) > 0 {
		return fmt.Errorf("remove them by snapctl repair --release %s, and pull again", b.source().Image)
	}
	for _, img := range images {
		if err := s.opts.Releases.Release(ctx, img); err != nil {
			return fmt.Errorf("remove image %s: %w", img, err)
		}
		s.log.Warn("image was removed from containerd, since a layer of it is nowhere any more: pull it again", "image", img.Name,
			"namespace", img.Namespace, "digest", b.source().Descriptor.Digest)
		tell(img)
	}
	return nil
}

// awaitNoUsers returns when nothing is made of a snapshot. The start that has just failed has one for a moment.
func (s *Snapshotter) awaitNoUsers(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, usersGo)
	defer cancel()
	tick := time.NewTicker(usersCheck)
	defer tick.Stop()
	for {
		users, err := s.usersOf(s.life, name)
		if err != nil || len(users) == 0 {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("snapshots are made of it: remove their containers (%s)", strings.Join(users, ", "))
		}
	}
}

// usersOf returns the active snapshots and views that are made of a snapshot.
func (s *Snapshotter) usersOf(ctx context.Context, name string) (users []string, err error) {
	err = s.store.WithTransaction(ctx, false, func(ctx context.Context) error {
		all := map[string]snapshots.Info{}
		if err := storage.WalkInfo(ctx, func(_ context.Context, info snapshots.Info) error {
			all[info.Name] = info
			return nil
		}); err != nil {
			return err
		}
		for _, info := range all {
			if info.Kind == snapshots.KindCommitted {
				continue
			}
			for at := info.Parent; at != ""; at = all[at].Parent {
				if at == name {
					users = append(users, info.Name)
				}
			}
		}
		return nil
	})
	slices.Sort(users)
	return users, err
}
