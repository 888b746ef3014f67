package layers

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/golang/groupcache/lru"

	"github.com/remora-storage/remora/remote/registry"
)

const knownFailures = 1024 // of hosts and repositories

const slowHolds = 10 * time.Second // for a host that has not answered in time

const servedLately = time.Minute

const restHolds = time.Hour // at most, for a host that says how long it is to be left alone

// failures are the hosts and repositories of which proofs failed lately, for reasons that are not a layer's own.
type failures struct {
	mu     sync.Mutex // guards the fields below
	all    lru.Cache  // of failure, by registry.Repository; those of a host have no path
	served lru.Cache  // when a host has proven something last
}

type failure struct {
	until time.Time
	err   error
}

// note remembers what the end of an opening says of its repository.
func (f *failures) note(repo registry.Repository, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.all.MaxEntries, f.served.MaxEntries = knownFailures, knownFailures
	switch {
	case err == nil:
		f.all.Remove(repo)
		f.all.Remove(registry.Repository{Host: repo.Host})
		f.served.Add(repo.Host, time.Now())
	case errors.Is(err, context.Canceled):
	case errors.Is(err, registry.ErrUnauthorized) && redirected(err): // the storage withholds one blob
	case errors.Is(err, registry.ErrUnauthorized):
		f.all.Add(repo, failure{time.Now().Add(failureHolds), err})
	case registry.Retryable(err):
		holds := failureHolds
		if status := (*registry.StatusError)(nil); errors.As(err, &status) {
			holds = max(holds, min(status.RetryAfter, restHolds))
		}
		f.all.Add(registry.Repository{Host: repo.Host}, failure{time.Now().Add(holds), err})
	}
}

// redirected reports whether an answer is of a place to which a registry has sent us.
func redirected(err error) bool {
	var status *registry.StatusError
	return errors.As(err, &status) && status.Redirected
}

// of returns why proofs of a repository fail, or nil.
func (f *failures) of(repo registry.Repository) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, key := range []registry.Repository{repo, {Host: repo.Host}} {
		if known, ok := f.all.Get(key); ok && time.Now().Before(known.(failure).until) {
			return known.(failure).err
		}
	}
	return nil
}

// slow remembers what has not shown in time that it serves us: the host, or the repository alone if the host serves others.
func (f *failures) slow(repo registry.Repository, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.all.MaxEntries = knownFailures
	if last, ok := f.served.Get(repo.Host); !ok || time.Since(last.(time.Time)) > servedLately {
		repo.Path = ""
	}
	f.all.Add(repo, failure{time.Now().Add(slowHolds), err})
}

// Forgive forgets all failures: credentials have changed.
func (f *failures) forgive() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.all.Clear()
}

// A layer that has just failed to open takes the ordinary path: claimed, it would fail when
// it is mounted.
const failureHolds = 30 * time.Second
