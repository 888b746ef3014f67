package layers

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"time"

	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/cache/blob"
	"github.com/remora-storage/remora/fs/erofs"
	"github.com/remora-storage/remora/fs/layout"
)

// build writes a layer's image into the cache, unless somebody else has made it. below is part of the image's name.
func (l *Layers) build(s *Source, index *Tree, below string) (_ *cache.File, made bool, err error) {
	im, name := index.take(), index.name(s)
	if im == nil && index.by == "" {
		name.Voucher = madeHere // the data went into an image on other layers, and the rest comes by parts
	}
	name.Below = below
	id := name.String()
	defer func() {
		index.share.Release()
		if im != nil {
			im.Stop(false) // no image can be made of it, or somebody else has
		}
	}()
	var uuid [16]byte
	sum := sha256.Sum256([]byte(id))
	copy(uuid[:], sum[:])
	began := time.Now()
	plan, err := erofs.NewPlan(index.layout, uuid)
	if err != nil {
		return nil, false, NotLazy("%w", err)
	}
	spec, err := plan.Spec(index.tail)
	if err != nil {
		return nil, false, NotLazy("%w", err)
	}
	if im == nil && index.layout.Codec == blob.Whole {
		return nil, false, errors.New("its data went into another image, and it cannot be read by parts")
	}
	v, err, _ := l.building.Do(id, func() (any, error) {
		if f, err := l.File(id, s); err == nil { // an opening from another repository has made it
			return f, nil
		}
		made = true
		if im == nil {
			return l.cache.Create(id, spec, l.Places.blob(s))
		}
		all := im
		im = nil
		return all.Finish(id, spec, index.diffID, l.Places.blob(s))
	})
	l.Tracer.Ended(began, Span{Kind: "image", Digest: s.Descriptor.Digest, Len: plan.MetaSize, Err: err})
	if errors.Is(err, cache.ErrNoRoom) {
		return nil, false, NotLazy("%w", err)
	}
	if err != nil {
		return nil, false, err
	}
	return v.(*cache.File), made, nil
}

// take has a layer read from its image, which was made of it or which its repository lets it have, and tells who wants to know.
func (l *Layers) take(ctx context.Context, s *Source, index *Tree, f *cache.File, made bool) (*cache.File, error) {
	if !made {
		if err := l.Imports.orWhole(ctx, s, l.Granted.Ask(ctx, f, s)); err != nil {
			return nil, err
		}
	}
	l.Sources.Add(f, s)
	f.AddFetched(index.fetched)
	l.setPolicy(f, s)
	l.hooks.Built(s, f, index.layout.Prefetch)
	ctx, cancel := context.WithTimeout(ctx, l.Proofs.patience(s)) // who mounts it may wait for this
	defer cancel()
	l.Granted.Compare(ctx, f, s)
	return f, nil
}

// BuildOn builds the image of a layer whose tree has implicit directories, given what lies below it: the attributes of a directory by
// its path, and whether there is one.
func (l *Layers) BuildOn(
	ctx context.Context, s *Source, tree *Tree, below func(string) (layout.Attributes, bool, error),
) (*cache.File, error) {
	f, made, err := l.fillAndBuild(s, tree, below)
	if err != nil {
		return nil, err
	}
	if f, err = l.take(ctx, s, tree, f, made); err == nil {
		// The tree is large and another base for the same layer is rare.
		l.Forget(s)
	}
	return f, err
}

func (l *Layers) fillAndBuild(
	s *Source, index *Tree, below func(string) (layout.Attributes, bool, error),
) (_ *cache.File, made bool, err error) {
	l.fillMu.Lock() // Fill changes the tree, which others may share
	defer l.fillMu.Unlock()
	taken := sha256.New()
	if err := index.layout.Fill(l.opts.Limits, func(path string) (layout.Attributes, bool, error) {
		a, found, err := below(path)
		if found {
			enc, err := json.Marshal(struct {
				Path string
				A    layout.Attributes
			}{path, a})
			if err != nil {
				return a, false, err
			}
			taken.Write(enc)
		}
		return a, found, err
	}); err != nil {
		return nil, false, err
	}
	name := hex.EncodeToString(taken.Sum(nil)[:16])
	if f := l.cachedImage(s, name, cmp.Or(index.by, madeHere)); f != nil {
		return f, false, nil
	}
	return l.build(s, index, name)
}
