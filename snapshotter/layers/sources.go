package layers

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/remote/registry"
)

// repositories are those of all images that use one image in the cache. What is missing of it comes from whichever
// answers: no image depends on the repository of another. Each asks its own one first.
type repositories struct {
	more  func(ctx context.Context) []repositorySource // other places that may have the blob
	lost  func()                                       // is called if no place has it
	doubt func()                                       // is called if the bytes of all places are wrong

	looking sync.Mutex // guards the fields below; taken before mu
	asked   time.Time  // when more was called last
	found   bool       // whether it had any

	mu  sync.Mutex         // guards all
	all []repositorySource // in the order in which they came
}

// moreAgain is how long nobody looks for more places that may have a blob, after somebody has.
const moreAgain = 10 * time.Second

// A repositorySource is one repository's blob, or what has come of it ahead.
type repositorySource struct {
	repo registry.Repository
	placedSource
	passed time.Time // when it was left behind: it failed, or others were better
}

type placedSource interface {
	cache.Source
	cache.Placed
	cache.Measured
	// Whole is Blob's.
	Whole(ctx context.Context) (io.ReadCloser, error)
}

// Sources are where the images in the cache are read from, by their names.
type Sources struct {
	promises *promises
	places   *Places
	aheads   *Aheads
	more     func(ctx context.Context, image string) []Source // Hooks.Places
	lost     func(image string)                               // Hooks.Lost
	doubted  func(image string)                               // Hooks.Doubted

	mu  sync.Mutex // guards all
	all map[string]*repositories
}

// Add adds the repository of s to those that an image in the cache is read from, as the last, and returns the image. Anybody may have
// a layer in a repository of his own, so a newcomer is asked only where the others fail or are slow.
func (x *Sources) Add(f *cache.File, s *Source) *cache.File {
	from := x.aheads.source(x.promises.KeyOf(s), x.places.blob(s))
	x.mu.Lock()
	defer x.mu.Unlock()
	all := x.all[f.ID()]
	if all == nil || f.Removed() {
		id := f.ID()
		all = &repositories{more: func(ctx context.Context) (more []repositorySource) {
			for _, s := range x.more(ctx, id) {
				more = append(more, repositorySource{repo: s.Repo, placedSource: x.places.whole(&s)})
			}
			return more
		}, lost: func() { x.lost(id) }, doubt: func() { x.doubted(id) }}
		x.all[id] = all
	}
	all.add(repositorySource{repo: s.Repo, placedSource: from})
	f.SetSource(all.For(nil))
	return f
}

// repositories returns those that an image is read from.
func (x *Sources) repositories(id string) (repos []registry.Repository) {
	x.mu.Lock()
	all := x.all[id]
	x.mu.Unlock()
	if all == nil {
		return nil
	}
	all.mu.Lock()
	defer all.mu.Unlock()
	for _, one := range all.all {
		repos = append(repos, one.repo)
	}
	return repos
}

// Mixed reports whether an image is read from several registries. Several repositories of one are not meant: those share most of their
// layers.
func (x *Sources) Mixed(id string) bool {
	repos := x.repositories(id)
	return slices.ContainsFunc(repos, func(repo registry.Repository) bool { return repo.Host != repos[0].Host })
}

// Remove takes a repository away from those that an image is read from.
func (x *Sources) Remove(id string, repo registry.Repository) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if all := x.all[id]; all != nil {
		all.remove(repo)
	}
}

// Forget forgets where an image that is removed was read from.
func (x *Sources) Forget(id string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.all, id)
}

func (x *repositories) index(repo registry.Repository) int {
	return slices.IndexFunc(x.all, func(one repositorySource) bool { return one.repo == repo })
}

// add adds a repository, or what is newer of one that is there, and returns which it is.
func (x *repositories) add(one repositorySource) int {
	x.mu.Lock()
	defer x.mu.Unlock()
	if i := x.index(one.repo); i >= 0 {
		x.all[i].placedSource = one.placedSource
		return i
	}
	x.all = append(x.all, one)
	return len(x.all) - 1
}

// prefer has a repository asked first for a while.
func (x *repositories) prefer(i int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for k := range x.all {
		x.all[k].passed = time.Now()
	}
	if i < len(x.all) {
		x.all[i].passed = time.Time{}
	}
}

// pass has a repository asked after the others for a while.
func (x *repositories) pass(repo registry.Repository) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if i := x.index(repo); i >= 0 {
		x.all[i].passed = time.Now()
	}
}

// remove keeps the last one: reads that are under way end by its error.
func (x *repositories) remove(repo registry.Repository) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if i := x.index(repo); i >= 0 && len(x.all) > 1 {
		x.all = slices.Delete(x.all, i, i+1)
	}
}

// order returns the repositories in the order in which one of them asks: itself, and then as they came. Those that were left behind lately
// are the last. The zero Repository is none of them.
func (x *repositories) order(own registry.Repository) []repositorySource {
	x.mu.Lock()
	order := slices.Clone(x.all)
	x.mu.Unlock()
	rank := func(one repositorySource) int {
		switch {
		case time.Since(one.passed) <= homeAgain:
			return 2
		case one.repo != own || own == (registry.Repository{}):
			return 1
		}
		return 0
	}
	slices.SortStableFunc(order, func(a, b repositorySource) int {
		if n := rank(a); n != 2 || rank(b) != 2 {
			return n - rank(b)
		}
		return a.passed.Compare(b.passed)
	})
	return order
}

// For implements cache.Shared, of a registry.Repository.
func (x *repositories) For(who any) cache.Source {
	own, _ := who.(registry.Repository)
	return &askedBy{x, own}
}

// askedBy are the repositories of an image as one of them asks.
type askedBy struct {
	*repositories
	own registry.Repository
}

// Open implements cache.Source.
func (a *askedBy) Open(ctx context.Context, off, n int64, try int) (io.ReadCloser, error) {
	began := time.Now()
	r, err := a.openAny(ctx, a.own, off, n, try)
	if err != nil && ctx.Err() == nil && a.look(ctx, began) {
		r, err = a.openAny(ctx, a.own, off, n, 0)
	}
	if IsGone(err) {
		a.lost()
	}
	return r, err
}

// Place implements cache.Placed.
func (a *askedBy) Place() (host, user string) { return a.order(a.own)[0].Place() }

// Link implements cache.Measured.
func (a *askedBy) Link() (time.Duration, int64) { return a.order(a.own)[0].Link() }

// OnlyWhole implements fetch.Streamed.
func (x *repositories) OnlyWhole(err error) bool { return errors.Is(err, registry.ErrRange) }

// Whole implements fetch.Streamed: nobody else downloads what was claimed.
func (a *askedBy) Whole(ctx context.Context, try int) (io.ReadCloser, error) {
	var errs []error
	order := a.order(a.own)
	first := try % len(order)
	for _, one := range append(order[first:], order[:first]...) {
		r, err := one.Whole(ctx)
		if err == nil {
			return r, nil
		}
		errs = append(errs, err)
	}
	err := errors.Join(errs...)
	if IsGone(err) {
		a.lost()
	}
	return nil, err
}

// look adds other places that may have the blob. It reports whether some were added since a time.
func (x *repositories) look(ctx context.Context, since time.Time) bool {
	x.looking.Lock()
	defer x.looking.Unlock()
	if x.asked.After(since) {
		return x.found
	}
	if time.Since(x.asked) < moreAgain {
		return false
	}
	more := x.more(ctx)
	x.asked, x.found = time.Now(), len(more) > 0
	for _, one := range slices.Backward(more) { // the others have failed
		x.prefer(x.add(one))
	}
	return x.found
}

func (x *repositories) openAny(ctx context.Context, own registry.Repository, off, n int64, try int) (io.ReadCloser, error) {
	order := x.order(own)
	if len(order) == 1 {
		return order[0].Open(ctx, off, n, try)
	}
	first := try % len(order)
	return x.race(ctx, append(order[first:], order[:first]...), off, n, try/len(order))
}

// Doubt is told of bytes that are not what the layer's table says.
func (x *repositories) Doubt() { x.doubt() }
