package layers

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/golang/groupcache/lru"

	"github.com/remora-storage/remora/fs/scan"
	"github.com/remora-storage/remora/internal/fair"
	"github.com/remora-storage/remora/remote/registry"
)

// "Already exists" is a promise: who was told so never downloads the layer. It is given once the layer's opening has shown that
// the repository lets us in, that it serves the blob in a way in which we can read it, and that its first bytes are what they are
// taken for. What has not been shown in time is declined, and containerd pulls it as it would without us.

const (
	// proofMost bounds how long a Prepare waits for a proof: other calls of containerd may wait behind it, once a collection is due.
	proofMost = time.Second
	// proofLeast is what a proof gets over a short way, on a busy machine.
	proofLeast = 600 * time.Millisecond
	// proofTrips are the round trips of a proof: a connection, its TLS, the answer that names the token's place, the same three
	// there, the request, and a redirect with its connection.
	proofTrips = 10
	// proofKnown is what it gets where proofs have just failed.
	proofKnown = 40 * time.Millisecond

	knownFailures = 1024             // of hosts and repositories
	slowHolds     = 10 * time.Second // for a host that has not answered in time
	servedLately  = time.Minute
	wholeHolds    = time.Hour // for a host that serves no ranges
)

// A proof is what an opening has shown so far.
type proof struct {
	once  sync.Once
	shown chan struct{}
	asked sync.Once // for itself, since the opening waits
}

func newProof() *proof { return &proof{shown: make(chan struct{})} }

// show says that the layer is proven.
func (p *proof) show() { p.once.Do(func() { close(p.shown) }) }

func (p *proof) isShown() bool {
	select {
	case <-p.shown:
		return true
	default:
		return false
	}
}

// failures are the hosts and repositories of which proofs failed lately, for reasons that are not a layer's own.
type failures struct {
	mu     sync.Mutex // guards the fields below
	all    lru.Cache  // of failure, by registry.Repository; those of a host have no path
	served lru.Cache  // when a host has proven something last
	whole  lru.Cache  // until when a host is taken for one that serves no ranges
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
	case errors.Is(err, registry.ErrUnauthorized):
		f.all.Add(repo, failure{time.Now().Add(failureHolds), err})
	case registry.Retryable(err):
		f.all.Add(registry.Repository{Host: repo.Host}, failure{time.Now().Add(failureHolds), err})
	}
}

// noteRange remembers a host that serves no ranges, if err says so.
func (f *failures) noteRange(host string, err error) {
	if !errors.Is(err, registry.ErrRange) {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.whole.MaxEntries = knownFailures
	f.whole.Add(host, time.Now().Add(wholeHolds))
}

// rangeless reports whether a host has lately served no ranges.
func (f *failures) rangeless(host string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	until, ok := f.whole.Get(host)
	return ok && time.Now().Before(until.(time.Time))
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

// Forgive has registries asked again that would not let us in: credentials have changed.
func (l *Layers) Forgive() { l.failures.forgive() }

// Failing returns why proofs of a repository's layers fail now, or nil.
func (l *Layers) Failing(repo registry.Repository) error { return l.failures.of(repo) }

// prove notes that an opening has shown that its layer can be read.
func (l *Layers) prove(o *Opening) {
	o.proof.show()
	l.failures.note(o.src.Repo, nil)
}

// place waits for a place in a pool. Meanwhile the layer is proven by a request of its own: all layers of an image are proven side
// by side, however few are read at once.
func (l *Layers) place(ctx context.Context, pool *fair.Pool[string], o *Opening) (release func(), err error) {
	if release, ok := pool.Try(o.src.Repo.Host); ok {
		return release, nil
	}
	l.probe(ctx, o)
	return pool.Acquire(ctx, o.src.Repo.Host)
}

// probe proves a layer by a request for its first bytes.
func (l *Layers) probe(ctx context.Context, o *Opening) {
	o.proof.asked.Do(func() {
		l.started.Go(func() {
			err := l.firstBytes(ctx, &o.src)
			switch {
			case err == nil, errors.Is(err, registry.ErrRange): // it can be had whole
				l.prove(o)
			case ctx.Err() == nil:
				l.failures.note(o.src.Repo, err)
			}
		})
	})
}

func (l *Layers) firstBytes(ctx context.Context, s *Source) error {
	r, err := l.importSource(s).Open(registry.BeforeBulk(ctx), 0, min(scan.HeadSize, s.Descriptor.Size), 0)
	if err != nil {
		return err
	}
	defer r.Close() // only read
	_, err = scan.Detect(s.Descriptor.MediaType, bufio.NewReaderSize(r, scan.HeadSize))
	return err
}

// Abandon ends an opening that nobody waits for.
func (l *Layers) Abandon(o *Opening) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.openings[o.key] == o {
		l.dropLocked(o)
	}
}

// patience is how long a layer's proof may take.
func (l *Layers) patience(s *Source) time.Duration {
	if l.opts.ProofWait > 0 {
		return l.opts.ProofWait
	}
	latency, _ := l.blob(s).Link()
	if latency == 0 { // nothing was measured yet
		return proofMost
	}
	return min(max(proofTrips*latency, proofLeast), proofMost)
}

// ErrUnproven says that a layer was not proven in time.
var ErrUnproven = errors.New("its registry has not shown in time that the layer can be read")

// AwaitProof waits until an opening has ended or the layer is proven. The end is waited for if it comes soon: then nobody need wait
// in Mounts.
func (l *Layers) AwaitProof(ctx context.Context, o *Opening, soon time.Duration) error {
	known := l.failures.of(o.src.Repo)
	most := max(l.patience(&o.src), soon)
	if known != nil {
		most, soon = proofKnown, min(soon, proofKnown)
	}
	end, late := time.NewTimer(soon), time.NewTimer(most)
	defer end.Stop()
	defer late.Stop()
	var shown <-chan struct{} // nil while the end is waited for
	for {
		select {
		case <-o.done:
			if o.err != nil {
				return NotLazy("%w", o.err)
			}
			return nil
		case <-end.C:
			shown = o.proof.shown
		case <-shown:
			return nil
		case <-late.C:
			if o.proof.isShown() {
				return nil
			}
			err := fmt.Errorf("%w (%s)", ErrUnproven, most)
			if known != nil {
				return NotLazy("%w; lately: %w", err, known)
			}
			l.failures.slow(o.src.Repo, err)
			return NotLazy("%w", err)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
