package layers

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/remora-storage/remora/remote/registry"
)

// What was proven for one image need not hold for the next: access ends, and blobs are deleted. So a layer of which something is missing
// is promised to a further image only after its repository was asked again. It is declined if that says that it does not let us have
// it. An outage takes nothing back: the layer is read here already, and will be again.

// askedHolds is how long an answer counts for an image, whose layers are prepared one after the other.
const askedHolds = time.Minute

// An asked is a layer of an image whose repository was asked for a byte of it.
type asked struct {
	done  chan struct{}
	err   error     // after done
	ended time.Time // likewise
}

func (a *asked) isOld() bool {
	select {
	case <-a.done:
		return time.Since(a.ended) > askedHolds
	default:
		return false
	}
}

// AskAgain asks a layer's repository whether it still lets us have the layer, for Still, unless it was just asked.
func (p *Proofs) AskAgain(s *Source) { p.askAgain(s) }

func (p *Proofs) askAgain(s *Source) *asked {
	src, key := *s, fmt.Sprintf("%s %s %s %s", s.Namespace, s.Image, s.Repo, s.Descriptor.Digest)
	p.mu.Lock()
	defer p.mu.Unlock()
	for key, a := range p.again {
		if a.isOld() {
			delete(p.again, key)
		}
	}
	if a := p.again[key]; a != nil {
		return a
	}
	if p.again == nil {
		p.again = map[string]*asked{}
	}
	a := &asked{done: make(chan struct{})}
	p.again[key] = a
	p.started.Go(func() {
		a.err = p.ask(&src)
		a.ended = time.Now()
		close(a.done)
	})
	return a
}

// denied reports whether a registry has answered that we do not get something.
func denied(err error) bool {
	return IsGone(err) || errors.Is(err, registry.ErrUnauthorized) || errors.Is(err, registry.ErrNotPublic)
}

// Still returns an error that wraps ErrNotLazy if a layer's repository no longer lets us have the layer. It waits no longer than a
// proof does, and not at all for a registry that is known to hang.
func (p *Proofs) Still(ctx context.Context, s *Source) error {
	known, most := p.failures.of(s.Repo), p.patience(s)
	if errors.Is(known, ErrUnproven) {
		p.try(*s)
		return nil
	}
	if known != nil {
		most = proofKnown
	}
	a := p.askAgain(s)
	late := time.NewTimer(most)
	defer late.Stop()
	select {
	case <-a.done:
		known = a.err
	case <-late.C:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if denied(known) {
		return NotLazy("not all of it is here, and its repository no longer serves it: %w", known)
	}
	return nil
}
