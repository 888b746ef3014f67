package fetch

import (
	"crypto/rand"
	"log/slog"
	"sync"

	"golang.org/x/time/rate"

	"github.com/remora-storage/remora/internal/fair"
	"github.com/remora-storage/remora/internal/memory"
)

// Options of a Pool. Log is needed.
type Options struct {
	// Unreachable tells the errors of sources that pass, so that waiting may help, from those
	// that do not. nil takes all for the latter.
	Unreachable func(error) bool
	Rate        int64          // bounds what CompleteInBackground fetches, in bytes a second; 0 for no bound
	Memory      *memory.Budget // of units that are decoded; nil for no bound
	Log         *slog.Logger
}

// A Pool is what the Fetchers of all images share: the queues, the memory and the processors.
type Pool struct {
	log         *slog.Logger
	unreachable func(error) bool
	memory      *memory.Budget
	limiter     *rate.Limiter // of CompleteInBackground; nil for none
	decoding    *fair.Pool[fair.User]
	key         [32]byte // by which units are drawn that show a blob

	scheds    scheds
	waits     waits
	observers observers
	metrics   metrics
	started   sync.WaitGroup // the jobs
}

// NewPool returns a Pool that runs nothing yet.
func NewPool(o Options) *Pool {
	if o.Unreachable == nil {
		o.Unreachable = func(error) bool { return false }
	}
	p := &Pool{
		log: o.Log, unreachable: o.Unreachable, memory: o.Memory,
		decoding: newDecoding(), metrics: newMetrics(),
	}
	_, _ = rand.Read(p.key[:]) // it cannot fail
	if o.Rate > 0 {
		p.limiter = rate.NewLimiter(rate.Limit(o.Rate), bulkRequestSize)
	}
	return p
}

// Wait returns when all jobs have ended. The Fetchers have been closed.
func (p *Pool) Wait() { p.started.Wait() }
