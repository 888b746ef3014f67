package layers

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/golang/groupcache/lru"
	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/remote/registry"
)

// To know a layer's digest is no right to read it. What the cache has from one repository serves an image of another one
// only once that has let us have the layer, by the credentials of this image. containerd asks as little of a registry
// when it has a blob, but it asks.

// Grants are the layers that repositories have let us have.
type Grants struct {
	opts    *Options
	places  *Places
	sources *Sources

	mu  sync.Mutex // guards all
	all lru.Cache  // of granted
}

type granted struct {
	repo  registry.Repository
	layer digest.Digest
}

const maxGrants = 1 << 16 // of which each may be asked for again

// Note notes that a layer's repository has let us have it.
func (g *Grants) Note(s *Source) {
	if !s.FromRegistry() {
		return // what one namespace's content store has is no other's
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.all.MaxEntries = maxGrants
	g.all.Add(granted{s.Repo, s.Descriptor.Digest}, nil)
}

func (g *Grants) has(repo registry.Repository, layer digest.Digest) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, ok := g.all.Get(granted{repo, layer})
	return ok
}

// MayCopy reports whether an image in the cache may have what another one has, by the names of both: a repository that it is read from
// has let us have the other one's layer, too. A table lists whatever its author likes, and proves nothing of his having it.
func (g *Grants) MayCopy(to, from string) bool {
	layer := digest.NewDigestFromEncoded(digest.SHA256, cache.ParseName(from).Blob)
	for _, repo := range g.sources.repositories(to) {
		if g.opts.TrustOf(repo).Shared || g.has(repo, layer) {
			return true
		}
	}
	return false
}

// Ask fails unless a layer's own repository lets us have it: it has said so before, or containerd has had the blob from
// there, or it serves a byte of it now.
func (g *Grants) Ask(ctx context.Context, s *Source) error {
	if g.opts.TrustOf(s.Repo).Shared || g.has(s.Repo, s.Descriptor.Digest) {
		return nil
	}
	if !s.FromRegistry() && g.places.Stored(ctx, s) { // it came from no registry, and whoever brought it has it
		return nil
	}
	if g.opts.Blobs == nil || s.Namespace == "" || !g.opts.Blobs.From(ctx, s.Namespace, s.Descriptor.Digest, s.Repo) {
		ctx, cancel := context.WithTimeout(ctx, openTimeout)
		defer cancel()
		if err := g.places.TryRange(ctx, s); err != nil && !errors.Is(err, registry.ErrRange) { // that serves it, but whole
			err = fmt.Errorf("it is in the cache, but its own repository does not serve it "+
				"([trust] shared = \"open\" gives it all the same): %w", err)
			if errors.Is(err, registry.ErrNotFound) || errors.Is(err, registry.ErrNotPublic) {
				return NotLazy("%w", err)
			}
			return err
		}
	}
	g.Note(s)
	return nil
}
