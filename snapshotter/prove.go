package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/snapshotter/layers"
)

// A claimant's layer is proven by reading it whole. Its diffID alone would not do: whoever writes a table may give the layer's own bytes
// other names, and the diffID of these bytes is right.

const (
	// provedAtOnce is how many claimants' layers are read at a time, for one snapshot.
	provedAtOnce = 8
	// proveTurn is how long a claimant is waited for while others have not had their turn. What it reads goes on meanwhile.
	proveTurn = 10 * time.Second
)

// decide has a binding that has rivals show the first of its claimants' layers that is proven. Callers that come together decide one after
// the other, and the first decides for all.
func (m *mending) decide(ctx context.Context, b *binding, rivals []layers.Source) error {
	if len(rivals) == 0 || b.isProven() {
		return nil
	}
	done, err := b.beginDeciding(ctx)
	if err != nil {
		return err
	}
	defer done()
	if b.isProven() {
		return nil
	}
	ours := b.source()
	m.log.Info("layer is contested: it is not used before it is proven", "key", b.name(), "digest", ours.Descriptor.Digest,
		"image", ours.Image, "by", rivals[0].Image)
	x := m.newProvings(m.inTurn(append([]layers.Source{ours}, rivals...)), func(ctx context.Context, src *layers.Source) (*cache.File, error) {
		return m.prove(ctx, b, src)
	})
	f, src, err := x.first(ctx)
	if err != nil {
		return fmt.Errorf("%s is claimed by several images, and none has its bytes: %w", ours.Describe(), err)
	}
	if b.image() == f && b.quarantined() == "" {
		return nil
	}
	m.log.Warn("layer is filled anew, from the image whose bytes are right", "key", b.name(), "digest", src.Descriptor.Digest,
		"image", src.Image, "instead_of", ours.Image)
	return m.refill(b, filled{src: src, file: f})
}

// beginDeciding waits until nobody else decides what a binding shows.
func (b *binding) beginDeciding(ctx context.Context) (done func(), err error) {
	b.mu.Lock()
	if b.deciding == nil {
		b.deciding = make(chan struct{}, 1)
	}
	deciding := b.deciding
	b.mu.Unlock()
	select {
	case deciding <- struct{}{}:
		return func() { <-deciding }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// inTurn returns each blob of some claimants once for each repository, those that name different blobs or tables by turns: however many
// repositories name one forged layer, another one's turn comes soon.
func (m *mending) inTurn(all []layers.Source) (ordered []layers.Source) {
	type place struct{ blob, repo string }
	seen := map[place]bool{}
	var contents []string
	by := map[string][]layers.Source{}
	for i := range all {
		at := place{all[i].BlobName(), all[i].Repo.String()}
		if seen[at] {
			continue
		}
		seen[at] = true
		what := m.layers.ContentOf(&all[i])
		if by[what] == nil {
			contents = append(contents, what)
		}
		by[what] = append(by[what], all[i])
	}
	for turn := 0; len(ordered) < len(seen); turn++ {
		for _, what := range contents {
			if turn < len(by[what]) {
				ordered = append(ordered, by[what][turn])
			}
		}
	}
	return ordered
}

// A proving is the reading of one claimant's layer.
type proving struct {
	src   layers.Source
	ctx   context.Context // of this reading alone
	stop  context.CancelCauseFunc
	began time.Time
	// after it has ended
	f   *cache.File
	err error
}

var errTurn = errors.New("others have their turn")

// provings are those for one snapshot.
type provings struct {
	m       *mending
	prove   func(ctx context.Context, src *layers.Source) (*cache.File, error) // returns soon after ctx ends
	waiting []layers.Source
	running map[*proving]bool
	ended   chan *proving
	wrong   map[string]bool // blobs that do not have the diffID, wherever they come from
	errs    []error
}

func (m *mending) newProvings(claimants []layers.Source, prove func(context.Context, *layers.Source) (*cache.File, error)) *provings {
	return &provings{
		m: m, prove: prove, waiting: claimants, running: map[*proving]bool{}, ended: make(chan *proving), wrong: map[string]bool{},
	}
}

// first returns the image of the first of the claimants that is proven.
func (x *provings) first(ctx context.Context) (*cache.File, layers.Source, error) {
	turn := time.NewTicker(proveTurn)
	defer turn.Stop()
	for {
		if x.start(ctx); len(x.running) == 0 {
			return nil, layers.Source{}, errors.Join(x.errs...)
		}
		select {
		case p := <-x.ended:
			delete(x.running, p)
			p.stop(nil)
			if p.err == nil {
				x.stop(p.f)
				return p.f, p.src, nil
			}
			x.failed(p)
		case <-turn.C:
			x.pass()
		case <-ctx.Done():
			x.stop(nil)
			return nil, layers.Source{}, context.Cause(ctx)
		}
	}
}

// start begins with as many as may run.
func (x *provings) start(ctx context.Context) {
	for len(x.running) < provedAtOnce && len(x.waiting) > 0 {
		p := &proving{src: x.waiting[0], began: time.Now()}
		if x.waiting = x.waiting[1:]; x.wrong[p.src.BlobName()] {
			continue
		}
		p.ctx, p.stop = context.WithCancelCause(ctx)
		x.running[p] = true
		x.m.started.Go(func() {
			p.f, p.err = x.prove(p.ctx, &p.src)
			x.ended <- p
		})
	}
}

// pass has others begin instead of those that have had their turn.
func (x *provings) pass() {
	for p := range x.running {
		if len(x.waiting) > 0 && time.Since(p.began) >= proveTurn {
			p.stop(errTurn)
		}
	}
}

// failed notes why one has ended without a proof, or has it wait for its next turn.
func (x *provings) failed(p *proving) {
	if errors.Is(context.Cause(p.ctx), errTurn) {
		x.waiting = append(x.waiting, p.src)
		return
	}
	x.errs = append(x.errs, fmt.Errorf("as %s has it: %w", p.src.Image, p.err))
	if errors.Is(p.err, cache.ErrDiffID) {
		x.wrong[p.src.BlobName()] = true
	}
	x.m.dropUnused(p.f)
}

// stop ends all that run, and drops what they have but for one image.
func (x *provings) stop(but *cache.File) {
	for p := range x.running {
		p.stop(nil)
	}
	for len(x.running) > 0 {
		p := <-x.ended
		if delete(x.running, p); p.f != but {
			x.m.dropUnused(p.f)
		}
	}
}

// prove returns a layer's image once it is proven; with an error there may be an image, too.
func (m *mending) prove(ctx context.Context, b *binding, src *layers.Source) (*cache.File, error) {
	f, tree, err := m.layers.WholeImage(ctx, src)
	if err != nil {
		return nil, err
	}
	if f == nil {
		b.mu.Lock()
		parents := b.saved.Parents
		b.mu.Unlock()
		below, err := m.mountings.below(ctx, parents)
		if err != nil {
			return nil, err
		}
		if f, err = m.layers.BuildOn(ctx, src, tree, below); err != nil {
			return nil, err
		}
	}
	if !f.Known() { // it is read by the index that was made of it here, and what has come is kept if others have their turn
		if err := cache.For(f, src.Repo).PrefetchAll(ctx); err != nil {
			return f, err
		}
	}
	return f, cache.For(f, src.Repo).Verify(ctx, src.DiffID)
}
