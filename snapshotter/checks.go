package snapshotter

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/internal/fair"
	"github.com/remora-storage/remora/snapshotter/layers"
)

const (
	verifyAgain = time.Minute    // after the registry could not be reached
	verifyLarge = 24 * time.Hour // after a layer turned out to be larger than is checked: only another limit helps

	// checksAtOnce is how many layers are checked at a time, checksOfOne of one registry alone, checksWithin of one repository alone.
	checksAtOnce, checksOfOne, checksWithin = 8, 5, 2
	// checkTurn is how long a check may take while others wait. It begins anew later, and may then take twice as long.
	checkTurn = 2 * time.Minute
)

// checks are those of diffIDs. A check may have to fetch what the cache has not kept, so it takes as long as a registry likes: each has
// a goroutine, and registries and their repositories share the places.
type checks struct {
	*chores
	pool *fair.Pool[fair.User]
	turn time.Duration // checkTurn

	// Of the goroutine that watches.
	running   map[*cache.File]*check
	notBefore map[*cache.File]time.Time
	turns     map[*cache.File]time.Duration // of those that took too long once
	ended     chan *check
}

// A check is that of one image in the cache.
type check struct {
	b     *binding
	f     *cache.File
	src   layers.Source
	stop  context.CancelCauseFunc
	began atomic.Int64 // Unix time in nanoseconds; 0 while it waits for a place
	err   error        // after it has ended
}

func newChecks(c *chores) *checks {
	return &checks{
		chores: c, pool: fair.NewTieredPool(checksAtOnce, checksOfOne, checksWithin), turn: checkTurn,
		running: map[*cache.File]*check{}, notBefore: map[*cache.File]time.Time{}, turns: map[*cache.File]time.Duration{},
		ended: make(chan *check),
	}
}

// begin checks what has become complete and is not being checked.
func (x *checks) begin(ctx context.Context) {
	bound := map[*cache.File]bool{}
	for _, b := range x.bindings.all() {
		b.mu.Lock()
		f, src, ready := b.file, b.saved.Source, b.how == mountedLazy && b.saved.Quarantined == ""
		b.mu.Unlock()
		if bound[f] = true; !ready || !f.Complete() || x.running[f] != nil || time.Now().Before(x.notBefore[f]) {
			continue
		}
		if err := x.exports.complete(f); err != nil {
			x.log.Warn("complete layer still asks for reads", "digest", src.Descriptor.Digest, "err", err)
		}
		if f.Known() { // of another binding, or an earlier life
			x.conclude(&check{b: b, f: f, src: src, err: f.Verify(ctx, src.DiffID)})
			continue
		}
		x.start(ctx, &check{b: b, f: f, src: src})
	}
	for f := range x.notBefore {
		if !bound[f] {
			delete(x.notBefore, f)
			delete(x.turns, f)
		}
	}
	x.pass()
}

// start begins a check once there is a place for its repository.
func (x *checks) start(ctx context.Context, one *check) {
	x.running[one.f] = one
	life := ctx
	ctx, one.stop = context.WithCancelCause(ctx)
	x.started.Go(func() {
		release, err := x.pool.Acquire(ctx, fair.User(one.src.Repo.String()))
		if one.err = err; err == nil {
			one.began.Store(time.Now().UnixNano())
			one.err = cache.For(one.f, one.src.Repo).Verify(ctx, one.src.DiffID)
			if errors.Is(context.Cause(ctx), errTurn) && !errors.Is(one.err, cache.ErrDiffID) {
				one.err = errTurn
			}
			release()
		}
		select {
		case x.ended <- one:
		case <-life.Done():
		}
	})
}

// pass ends checks that have had their turn while others wait.
func (x *checks) pass() {
	if waiting, _ := x.pool.Waiting(); waiting == 0 {
		return
	}
	for f, one := range x.running {
		if began := one.began.Load(); began > 0 && time.Since(time.Unix(0, began)) > max(x.turn, x.turns[f]) {
			one.stop(errTurn)
		}
	}
}

// note takes what has come of a check that was begun.
func (x *checks) note(one *check) {
	one.stop(nil)
	delete(x.running, one.f)
	x.conclude(one)
}

// conclude does what follows from a check.
func (x *checks) conclude(one *check) {
	d := one.src.Descriptor.Digest
	switch {
	case one.err == nil:
		delete(x.notBefore, one.f)
		delete(x.turns, one.f)
		x.mountings.goDirect(one.b)
	case errors.Is(one.err, cache.ErrDiffID):
		x.mending.quarantine(one.f, one.err)
	case errors.Is(one.err, errTurn):
		x.notBefore[one.f], x.turns[one.f] = time.Now(), 2*max(x.turn, x.turns[one.f])
		x.log.Info("diffID is checked later: others wait", "digest", d, "image", one.src.Image)
	case errors.Is(one.err, cache.ErrTooLarge):
		x.notBefore[one.f] = time.Now().Add(verifyLarge)
		x.log.Warn("diffID is not checked", "digest", d, "image", one.src.Image, "err", one.err)
	default:
		x.notBefore[one.f] = time.Now().Add(verifyAgain)
		x.log.Warn("diffID not checked yet", "digest", d, "err", one.err)
	}
}
