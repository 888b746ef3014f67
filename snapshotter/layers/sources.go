package layers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/remote/registry"
)

// repositories are those of all images that use one image in the cache. What is missing of it comes from whichever
// answers: no image depends on the repository of another.
type repositories struct {
	more func(ctx context.Context) []repositorySource // other places that may have the blob
	lost func()                                       // is called if no place has it

	looking sync.Mutex // guards the fields below; taken before mu
	asked   time.Time  // when more was called last
	found   bool       // whether it had any

	mu  sync.Mutex // guards the fields below
	all []repositorySource
	now int // the one that is asked first
}

// moreAgain is how long nobody looks for more places that may have a blob, after somebody has.
const moreAgain = 10 * time.Second

// A repositorySource is one repository's blob, or what has come of it ahead.
type repositorySource struct {
	repo registry.Repository
	placedSource
}

type placedSource interface {
	cache.Source
	cache.Placed
	cache.Measured
}

// stalled is how long a repository may send nothing before another one is asked, if there is another one.
const stalled = 5 * time.Second

// Sources are where the images in the cache are read from, by their names.
type Sources struct {
	promises *promises
	places   *Places
	aheads   *Aheads
	more     func(ctx context.Context, image string) []Source // Hooks.Places
	lost     func(image string)                               // Hooks.Lost

	mu  sync.Mutex // guards all
	all map[string]*repositories
}

// Add adds the repository of s to those that an image in the cache is read from, as the first, and returns the image.
func (x *Sources) Add(f *cache.File, s *Source) *cache.File {
	from := x.aheads.source(x.promises.KeyOf(s), x.places.blob(s))
	x.mu.Lock()
	defer x.mu.Unlock()
	all := x.all[f.ID()]
	if all == nil || f.Removed() {
		id := f.ID()
		all = &repositories{more: func(ctx context.Context) (more []repositorySource) {
			for _, s := range x.more(ctx, id) {
				more = append(more, repositorySource{s.Repo, x.places.whole(&s)})
			}
			return more
		}, lost: func() { x.lost(id) }}
		x.all[id] = all
	}
	all.add(repositorySource{s.Repo, from})
	f.SetSource(all)
	return f
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

func (x *repositories) add(one repositorySource) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.now = x.index(one.repo); x.now >= 0 {
		x.all[x.now] = one
		return
	}
	x.now = len(x.all)
	x.all = append(x.all, one)
}

// remove keeps the last one: reads that are under way end by its error.
func (x *repositories) remove(repo registry.Repository) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if i := x.index(repo); i >= 0 && len(x.all) > 1 {
		x.all, x.now = slices.Delete(x.all, i, i+1), 0
	}
}

func (x *repositories) current() repositorySource {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.all[x.now]
}

// Open implements cache.Source.
func (x *repositories) Open(ctx context.Context, off, n int64, try int) (io.ReadCloser, error) {
	began := time.Now()
	r, err := x.openAny(ctx, off, n, try)
	if err != nil && ctx.Err() == nil && x.look(ctx, began) {
		r, err = x.openAny(ctx, off, n, 0)
	}
	if errors.Is(err, registry.ErrRange) && ctx.Err() == nil { // nobody else downloads what was claimed
		r, err = x.openAny(registry.Skipping(ctx), off, n, 0)
	}
	if IsGone(err) {
		x.lost()
	}
	return r, err
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
	for _, one := range slices.Backward(more) { // the one that is added last is asked first
		x.add(one)
	}
	return x.found
}

func (x *repositories) openAny(ctx context.Context, off, n int64, try int) (io.ReadCloser, error) {
	x.mu.Lock()
	all, first := slices.Clone(x.all), x.now
	x.mu.Unlock()
	if len(all) == 1 {
		return all[0].Open(ctx, off, n, try)
	}
	var errs []error
	for i := range all {
		one := all[(first+i+try)%len(all)]
		r, err := x.openOne(ctx, one, off, n, try/len(all))
		if err == nil {
			return r, nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
		x.pass(one.repo)
	}
	return nil, errors.Join(errs...)
}

func (x *repositories) openOne(ctx context.Context, one repositorySource, off, n int64, try int) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	watch := time.AfterFunc(stalled, func() { cancel(fmt.Errorf("%s has sent nothing for %s", one.repo, stalled)) })
	r, err := one.Open(ctx, off, n, try)
	if err != nil {
		watch.Stop()
		cancel(nil)
		return nil, err
	}
	return &watchedReader{ReadCloser: r, x: x, repo: one.repo, watch: watch, cancel: cancel}, nil
}

// pass has another repository asked next, if this one is asked now.
func (x *repositories) pass(repo registry.Repository) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.all[x.now].repo == repo {
		x.now = (x.now + 1) % len(x.all)
	}
}

// watchedReader reads from a repository of several.
type watchedReader struct {
	io.ReadCloser
	x      *repositories
	repo   registry.Repository
	watch  *time.Timer
	cancel context.CancelCauseFunc
}

func (r *watchedReader) Read(p []byte) (int, error) {
	r.watch.Reset(stalled)
	n, err := r.ReadCloser.Read(p)
	r.watch.Stop() // the reader may take its time
	if err != nil && !errors.Is(err, io.EOF) {
		r.x.pass(r.repo)
	}
	return n, err
}

func (r *watchedReader) Close() error {
	r.watch.Stop()
	defer r.cancel(nil)
	return r.ReadCloser.Close()
}

// Place implements cache.Placed.
func (x *repositories) Place() (host, user string) { return x.current().Place() }

// Link implements cache.Measured.
func (x *repositories) Link() (time.Duration, int64) { return x.current().Link() }
