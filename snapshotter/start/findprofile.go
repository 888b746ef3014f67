package start

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/remora-storage/remora/fs/profile"
	"github.com/remora-storage/remora/internal/fair"
	"github.com/remora-storage/remora/internal/memory"
	"github.com/remora-storage/remora/remote/registry"
	"github.com/remora-storage/remora/snapshotter/layers"
)

const profileAskFor = 20 * time.Second

// askProfile finds the image's profile.
func (st *start) askProfile(ctx context.Context) {
	began := time.Now()
	p, share, from := st.findProfile(ctx)
	st.s.layers.Tracer.Ended(began, layers.Span{Kind: "profile", What: from})
	if p != nil {
		st.s.log.Info("start by profile", "image", st.img.Ref, "manifest", st.img.Target.Digest,
			"from", from, "runs", p.Runs, "entries", len(p.Entries))
	}
	st.mu.Lock()
	st.profile, st.share, st.asked = p, share, true
	st.kickLocked()
	st.mu.Unlock()
}

// findProfile returns the image's profile, with the memory that it takes, and where it was found; or nothing.
func (st *start) findProfile(ctx context.Context) (*profile.Profile, *memory.Share, string) {
	if p, share, err := st.profileHere(ctx); err == nil {
		return p, share, "node"
	} else if !errors.Is(err, ErrNoProfile) && ctx.Err() == nil {
		st.s.log.Warn("profile ignored", "manifest", st.img.Target.Digest, "err", err)
	}
	if published, ok := st.s.registry.(layers.Artifacts); ok {
		ctx, cancel := context.WithTimeout(ctx, profileAskFor)
		defer cancel()
		if p, share, err := st.publishedProfile(ctx, published); err == nil {
			return p, share, "registry"
		} else if !errors.Is(err, registry.ErrNotFound) && ctx.Err() == nil {
			st.s.log.Warn("profile ignored", "image", st.img.Ref, "manifest", st.img.Target.Digest, "err", err)
		}
	}
	if p, share, err := st.profileOfRepository(ctx); err == nil {
		return p, share, "another build"
	}
	return nil, nil, ""
}

func (st *start) profileHere(ctx context.Context) (*profile.Profile, *memory.Share, error) {
	image := st.img.Target.Digest
	share, err := st.s.memory.Acquire(ctx, fair.User(st.img.Repo.String()), st.s.profiles.memory(image))
	if err != nil {
		return nil, nil, err
	}
	p, err := st.s.profiles.get(image)
	return kept(p, share, err)
}

func (st *start) publishedProfile(ctx context.Context, reg layers.Artifacts) (*profile.Profile, *memory.Share, error) {
	data, share, err := st.s.layers.Places.Artifact(ctx, reg, st.img, profile.Artifact, profile.Memory)
	if err != nil {
		return nil, nil, err
	}
	p, err := profile.Decode(data)
	return kept(p, share, err)
}

func (st *start) profileOfRepository(ctx context.Context) (p *profile.Profile, share *memory.Share, err error) {
	p, err = st.s.profiles.ofRepository(st.img.Repo.String(), func(path string, size int64) (*profile.Profile, error) {
		share.Release() // that one was of another repository
		if share, err = st.s.memory.Acquire(ctx, fair.User(st.img.Repo.String()), size+profile.Memory(size)); err != nil {
			return nil, err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		return profile.Decode(data)
	})
	return kept(p, share, err)
}

// kept returns a profile that was decoded in a share of memory, which becomes what the profile takes until the start ends.
func kept(p *profile.Profile, share *memory.Share, err error) (*profile.Profile, *memory.Share, error) {
	if err == nil {
		err = share.Keep(p.Kept())
	}
	if err != nil {
		share.Release()
		return nil, nil, err
	}
	return p, share, nil
}
