package layers

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/golang/groupcache/lru"

	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/cache/blob"
	"github.com/remora-storage/remora/fs/layout"
	"github.com/remora-storage/remora/remote/registry"
)

// To know a layer's digest is no right to read it. What the cache has from one registry serves an image of another one only once that
// has shown that it has the layer: it serves, by the credentials of this image, units that nobody could foresee, or all of it. That it
// answers proves nothing, since whoever has a registry answers as he likes.
//
// The registry that the bytes came from decides itself who may have them. So what it says of another one of its repositories counts.

// Grants are the layers that repositories have let us have.
type Grants struct {
	opts    *Options
	places  *Places
	sources *Sources
	cache   *cache.Cache

	mu  sync.Mutex // guards all
	all lru.Cache  // of granted
}

// granted says that a repository has a blob, or that it has what a table says of it. Without a path it says that bytes of a registry's
// were compared, whatever the repository.
type granted struct {
	repo registry.Repository
	what string // see grantOf
}

const maxGrants = 1 << 17 // of which each may be asked for again

// grantOf names what is granted with an image in the cache: the blob, where this node read the whole of it, and else what its table says,
// which may be anybody's. What lies below has no part in that.
func grantOf(n cache.Name) string {
	if isWhole(n.Voucher) {
		return n.Blob
	}
	return cache.Name{Blob: n.Blob, Voucher: n.Voucher}.String()
}

// Note notes that a layer's repository has let us have what an image in the cache shows.
func (g *Grants) Note(s *Source, image string) { g.note(s, cache.ParseName(image)) }

func (g *Grants) note(s *Source, n cache.Name) {
	what := grantOf(n)
	g.add(s, s.Repo, what)
	g.add(s, registry.Repository{Host: s.Repo.Host}, what)
}

func (g *Grants) add(s *Source, to registry.Repository, what string) {
	if !s.FromRegistry() {
		return // what one namespace's content store has is no other's
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.all.MaxEntries = maxGrants
	g.all.Add(granted{to, what}, nil)
}

// Has reports whether a repository has let us have what an image in the cache shows, or the operator lets it have everything.
func (g *Grants) Has(repo registry.Repository, n cache.Name) bool {
	return g.opts.TrustOf(repo).Shared || g.has(repo, n)
}

func (g *Grants) has(repo registry.Repository, n cache.Name) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	anywhere := cache.Name{Blob: n.Blob, Voucher: n.Voucher.Table()}
	for _, what := range []string{n.Blob, grantOf(n), grantOf(anywhere)} {
		if _, ok := g.all.Get(granted{repo, what}); ok {
			return true
		}
	}
	return false
}

// MayCopy reports whether an image in the cache may have what another one has, by the names of both: all repositories that it is read
// from have let us have the other one, too. A table lists whatever its author likes, and proves nothing of his having it; and whoever
// builds on his layer does not give him what he has besides.
func (g *Grants) MayCopy(to, from string) bool {
	n := cache.ParseName(from)
	repos := g.sources.repositories(to)
	return len(repos) > 0 && !slices.ContainsFunc(repos, func(repo registry.Repository) bool { return !g.Has(repo, n) })
}

// Ask fails unless a layer's own repository lets us have what an image in the cache shows. An error that wraps cache.ErrNotByParts says
// that only the whole layer would show that it has it (Imports.orWhole).
func (g *Grants) Ask(ctx context.Context, f *cache.File, s *Source) error {
	n := cache.ParseName(f.ID())
	return g.ask(ctx, s, n, func(context.Context) (*cache.Sample, error) { return f.Sample(grantOf(n)) })
}

// AskStored is Ask of a blob in containerd's content store.
func (g *Grants) AskStored(ctx context.Context, s *Source) error {
	return g.ask(ctx, s, wholeOf(s), func(ctx context.Context) (*cache.Sample, error) {
		r, err := g.places.blobs.Blob(ctx, s.Namespace, s.Descriptor.Digest)
		if err != nil {
			return nil, err
		}
		defer r.Close() // only read
		return g.cache.Sample(s.BlobName(), contentOfBlob(r, r.Size()))
	})
}

// AskMade is Ask of what an index says that was made here, which decode decodes.
func (g *Grants) AskMade(ctx context.Context, s *Source, decode func(context.Context) (*Tree, error)) error {
	return g.ask(ctx, s, wholeOf(s), func(ctx context.Context) (*cache.Sample, error) {
		x, err := decode(ctx)
		if err != nil {
			return nil, err
		}
		defer x.share.Release() // who has memory waits for none
		return g.cache.Sample(s.BlobName(), contentOf(x.layout))
	})
}

// wholeOf is the name of a layer's image that is read whole.
func wholeOf(s *Source) cache.Name { return cache.Name{Blob: s.BlobName(), Voucher: cache.Whole} }

// ask fails unless a repository has let us have something, or containerd has had it from there. Else its registry shows by a sample that
// it has it, unless it has before: then it is asked for a byte, by this repository.
func (g *Grants) ask(
	ctx context.Context, s *Source, n cache.Name, sample func(context.Context) (*cache.Sample, error),
) error {
	if g.Has(s.Repo, n) {
		return nil
	}
	if !s.FromRegistry() && g.places.Stored(ctx, s) { // it came from no registry, and whoever brought it has it
		return nil
	}
	if g.opts.Blobs != nil && s.Namespace != "" && g.opts.Blobs.From(ctx, s.Namespace, s.Descriptor.Digest, s.Repo) {
		g.add(s, s.Repo, n.Blob)
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	err := error(nil)
	if g.has(registry.Repository{Host: s.Repo.Host}, n) && len(registry.ForeignURLs(s.Descriptor)) == 0 {
		if err = g.places.TryRange(ctx, s); errors.Is(err, registry.ErrRange) { // it serves it, but whole
			err = nil
		}
	} else if err = g.shows(ctx, s, sample); errors.Is(err, registry.ErrRange) {
		err = fmt.Errorf("%w: %w", cache.ErrNotByParts, err)
	}
	if err != nil {
		return notServed(err)
	}
	g.note(s, n)
	return nil
}

// notServed is why a repository is not given what is here.
func notServed(err error) error {
	err = fmt.Errorf("it is in the cache, but its own repository does not serve it "+
		"([trust] shared = \"open\" gives it all the same): %w", err)
	if errors.Is(err, registry.ErrNotFound) || errors.Is(err, registry.ErrNotPublic) {
		return NotLazy("%w", err)
	}
	return err
}

// shows compares a sample of a layer's blob with what its repository serves.
func (g *Grants) shows(ctx context.Context, s *Source, sample func(context.Context) (*cache.Sample, error)) error {
	some, err := sample(ctx)
	if err != nil {
		return err
	}
	return g.cache.Shows(registry.BeforeBulk(ctx), g.places.blob(s), some)
}

// Compare has a repository show that it has what other registries' images by the same table show, if there are any: then its own image,
// which is read from it, copies what they have. That it does not is no error.
func (g *Grants) Compare(ctx context.Context, f *cache.File, s *Source) {
	n := cache.ParseName(f.ID())
	anywhere := cache.Name{Blob: n.Blob, Voucher: n.Voucher.Table()}
	if anywhere.Voucher == n.Voucher || g.Has(s.Repo, anywhere) {
		return
	}
	all := g.cache.Opened(n.Blob)
	i := slices.IndexFunc(all, func(other *cache.File) bool {
		v := cache.ParseName(other.ID()).Voucher
		return v != n.Voucher && v.Table() == anywhere.Voucher
	})
	if i < 0 {
		return
	}
	if g.shows(ctx, s, func(context.Context) (*cache.Sample, error) { return all[i].Sample(grantOf(anywhere)) }) == nil {
		g.note(s, anywhere)
	}
}

// contentOf describes a layer's blob by what was found in it.
func contentOf(l *layout.Layout) *cache.Content {
	held := make([]int64, len(l.Units))
	for i := range l.Extents {
		held[l.Extents[i].Unit] += l.Extents[i].Len
	}
	return &cache.Content{
		Codec: l.Codec, Units: len(l.Units),
		Unit:  func(u int) blob.Unit { return l.Units[u] },
		Bytes: func(u int) int64 { return held[u] },
		Part: func(u int) (cache.Part, error) {
			p := cache.Part{Unit: l.Units[u]}
			for i := range l.Extents {
				if e := &l.Extents[i]; int(e.Unit) == u {
					p.Extents = append(p.Extents, cache.Extent{Len: uint32(e.Len), Inner: uint32(e.Inner), Digest: e.Digest})
				}
			}
			if l.Codec == blob.Spans {
				end := l.PlainSize
				if u+1 < len(l.Points) {
					end = l.Points[u+1].Plain
				}
				p.At, p.Plain = l.Points[u], int(end-l.Points[u].Plain)
			}
			p.Shorten(nil)
			return p, nil
		},
	}
}
