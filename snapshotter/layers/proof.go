package layers

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

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
	// proofKnown is what it gets where proofs have just failed, but nothing where a registry hangs.
	proofKnown = 40 * time.Millisecond
)

// A proof is what an opening has shown so far.
type proof struct {
	once   sync.Once
	shown  chan struct{}
	turned sync.Once
	asks   chan struct{} // closed once the opening turns to a registry
	asked  sync.Once     // for itself, since the opening waits
	failed chan struct{} // closed once that has failed
	err    error         // why, after failed
}

func newProof() *proof {
	return &proof{shown: make(chan struct{}), asks: make(chan struct{}), failed: make(chan struct{})}
}

// fail says why the layer could not be proven for itself. It is called once.
func (p *proof) fail(err error) {
	p.err = err
	close(p.failed)
}

// ask says that the opening cannot do without a registry.
func (p *proof) ask() { p.turned.Do(func() { close(p.asks) }) }

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

// Proofs are how layers are proven.
type Proofs struct {
	places   *Places
	failures failures
	wait     time.Duration // Options.ProofWait
	life     context.Context
	started  *sync.WaitGroup

	mu     sync.Mutex // guards the fields below
	trials map[string]bool
	again  map[string]*asked // by namespace, image, repository and digest
}

// Forgive has registries asked again that would not let us in, or failed: credentials have changed, or somebody has asked for it.
func (p *Proofs) Forgive() {
	p.failures.forgive()
	p.places.registry.Forgive()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.again = nil
}

// Failing returns why proofs of a repository's layers fail now, or nil.
func (p *Proofs) Failing(repo registry.Repository) error { return p.failures.of(repo) }

// prove notes that an opening has shown that its registry serves the layer.
func (p *Proofs) prove(o *Opening) {
	o.proof.show()
	p.failures.note(o.src.Repo, nil)
}

// proveRead is prove of a layer that can be read, of whichever place: a blob that containerd has says nothing of the registry.
func (p *Proofs) proveRead(ctx context.Context, o *Opening) {
	if o.proof.show(); !p.places.Stored(ctx, &o.src) {
		p.prove(o)
	}
}

// userOf returns who shares with others what a layer of a repository takes.
func userOf(repo registry.Repository) fair.User { return fair.User(repo.String()) }

// place waits for a place in a pool.
func (p *Proofs) place(ctx context.Context, pool *fair.Pool[fair.User], o *Opening) (release func(), err error) {
	if release, ok := pool.Try(userOf(o.src.Repo)); ok {
		return release, nil
	}
	waiting, done := p.meanwhile(ctx, o)
	defer done()
	return pool.Acquire(waiting, userOf(o.src.Repo))
}

// meanwhile has a layer proven by a request of its own while its opening waits for its turn: all layers of an image are proven side by
// side, however few are read together. The wait is to end with the context that it returns, which ends if that fails.
func (p *Proofs) meanwhile(ctx context.Context, o *Opening) (waiting context.Context, done func()) {
	p.probe(ctx, o)
	waiting, stop := context.WithCancelCause(ctx)
	p.started.Go(func() {
		select {
		case <-o.proof.failed:
			stop(o.proof.err)
		case <-waiting.Done():
		}
	})
	return waiting, func() { stop(nil) }
}

// probe proves a layer by a request for its first bytes.
func (p *Proofs) probe(ctx context.Context, o *Opening) {
	o.proof.asked.Do(func() {
		p.started.Go(func() {
			err := p.places.firstBytes(ctx, &o.src)
			switch {
			case err == nil, errors.Is(err, registry.ErrRange): // it can be had whole
				p.proveRead(ctx, o)
			case ctx.Err() == nil:
				p.failures.note(o.src.Repo, err)
				o.proof.fail(err)
			}
		})
	})
}

// patience is how long a layer's proof may take.
func (p *Proofs) patience(s *Source) time.Duration {
	if p.wait > 0 {
		return p.wait
	}
	latency, _ := p.places.blob(s).Link()
	if latency == 0 { // nothing was measured yet
		return proofMost
	}
	return min(max(proofTrips*latency, proofLeast), proofMost)
}

// ErrUnproven says that a layer was not proven in time.
var ErrUnproven = errors.New("its registry has not shown in time that the layer can be read")

// try asks a registry that was known to hang for a byte of a layer, while nobody waits for that: it is trusted again once it answers, and
// goes on being known until it does. A registry is tried by one request at a time.
func (p *Proofs) try(s Source) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.trials[s.Repo.Host] {
		return
	}
	if p.trials == nil {
		p.trials = map[string]bool{}
	}
	p.trials[s.Repo.Host] = true
	p.started.Go(func() {
		_ = p.ask(&s) // which has noted it
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.trials, s.Repo.Host)
	})
}

// ask asks a layer's repository for a byte of it, and notes what that says of the registry.
func (p *Proofs) ask(s *Source) error {
	ctx, cancel := context.WithTimeout(p.life, proofMost)
	defer cancel()
	err := p.places.TryRange(registry.BeforeBulk(ctx), s)
	switch {
	case p.life.Err() != nil:
	case err == nil, errors.Is(err, registry.ErrRange), IsGone(err):
		p.failures.note(s.Repo, nil)
	case ctx.Err() != nil:
		p.failures.slow(s.Repo, fmt.Errorf("%w (%s)", ErrUnproven, proofMost))
	default:
		p.failures.note(s.Repo, err)
	}
	return err
}

// unawaited is the answer to who needs a registry that is known to hang, or may need it.
func (p *Proofs) unawaited(o *Opening, known error) error {
	p.try(o.src)
	return NotLazy("its registry was not waited for; lately: %w", known)
}

// Await waits until an opening has ended or the layer is proven. The end is waited for if it comes soon: then nobody need wait
// in Mounts. A registry that is known to hang is not waited for at all: only what is here already opens without it.
func (p *Proofs) Await(ctx context.Context, o *Opening, soon time.Duration) error {
	known := p.failures.of(o.src.Repo)
	most := max(p.patience(&o.src), soon)
	if known != nil {
		most, soon = proofKnown, min(soon, proofKnown)
	}
	end, late := time.NewTimer(soon), time.NewTimer(most)
	defer end.Stop()
	defer late.Stop()
	var shown, asks <-chan struct{} // the first is nil while the end is waited for
	if errors.Is(known, ErrUnproven) {
		asks = o.proof.asks
	}
	for {
		select {
		case <-o.done:
			if o.err != nil {
				return NotLazy("%w", o.err)
			}
			return nil
		case <-asks:
			if asks = nil; o.hasEnded() || o.proof.isShown() {
				continue
			}
			return p.unawaited(o, known)
		case <-end.C:
			shown = o.proof.shown
		case <-shown:
			return nil
		case <-late.C:
			if o.proof.isShown() {
				return nil
			}
			if asks != nil {
				return p.unawaited(o, known)
			}
			err := fmt.Errorf("%w (%s)", ErrUnproven, most)
			if known != nil {
				return NotLazy("%w; lately: %w", err, known)
			}
			p.failures.slow(o.src.Repo, err)
			return NotLazy("%w", err)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
