package fetch

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/golang/groupcache/lru"

	"github.com/remora-storage/remora/internal/fair"
)

// priority of a fetch.
type priority int

const (
	demand     priority = iota // somebody waits
	prefetch                   // somebody will want it soon, or has asked for all
	background                 // nobody has asked
	priorities
)

func (p priority) String() string { return [...]string{"demand", "prefetch", "background"}[p] }

const (
	maxDemand          = 32 // requests to one host side by side for readers
	maxDemandOfOne     = 24 // and for one user's alone
	maxPrefetch        = 20 // requests side by side for the rest, while no reader waits
	maxPrefetchOfOne   = 16
	maxPrefetchBesides = 1 // and while readers wait
	maxBackground      = 2 // requests side by side while nobody waits for anything
	bulkRequestSize    = 2 << 20
)

// scheds hand out the right to make a request, each for one host.
type scheds struct {
	mu  sync.Mutex // guards all; taken before sched.mu
	all *lru.Cache // *sched by host
}

// knownPlaces is how many places are remembered: more than a node uses. One that was forgotten while requests to it run
// counts the next ones anew.
const knownPlaces = 1024

// placeOf returns a source's host and user, nothing if it is not Placed.
func placeOf(src Source) (host, user string) {
	if placed, ok := src.(Placed); ok {
		return placed.Place()
	}
	return "", ""
}

// enter puts a job into the queue of its source's host. Its release must be called, granted or not.
func (s *scheds) enter(src Source, p priority) *ticket {
	host, user := placeOf(src)
	return s.at(host).enter(user, p)
}

func (s *scheds) at(host string) *sched {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all = lru.New(knownPlaces)
	}
	if one, ok := s.all.Get(host); ok {
		return one.(*sched)
	}
	one := newSched()
	s.all.Add(host, one)
	return one
}

// sched hands out the right to make a request to one host.
type sched struct {
	mu      sync.Mutex // guards the fields below and all tickets; taken after all others
	running [priorities]fair.Shares[string]
	waiting [priorities]fair.Line[string, *ticket]
}

func newSched() *sched {
	return &sched{running: [priorities]fair.Shares[string]{
		demand:   {Limit: maxDemand, Most: maxDemandOfOne},
		prefetch: {Limit: maxPrefetch, Most: maxPrefetchOfOne},
		// Users of so few take turns.
		background: {Limit: maxBackground, Most: maxBackground},
	}}
}

// A ticket is one job's place in the queue, then its right.
type ticket struct {
	s       *sched
	user    string
	prio    priority
	granted chan struct{}
	over    bool
}

func (s *sched) enter(user string, p priority) *ticket {
	t := &ticket{s: s, user: user, prio: p, granted: make(chan struct{})}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting[p].Push(user, t)
	s.grantLocked()
	return t
}

// wait returns when the job may make its request.
func (t *ticket) wait(ctx context.Context) error {
	t.s.mu.Lock()
	granted := t.granted
	t.s.mu.Unlock()
	select {
	case <-granted:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for a connection: %w", context.Cause(ctx))
	}
}

// promote lets a job that waits go before all that nobody waits for, because a reader now waits
// for it.
func (t *ticket) promote() {
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	if t.prio == demand || !t.leaveQueueLocked() {
		return
	}
	t.prio = demand
	t.s.waiting[demand].Push(t.user, t)
	t.s.grantLocked()
}

// release gives the right, or the place in the queue, back.
func (t *ticket) release() {
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	if t.over {
		return
	}
	t.over = true
	if !t.leaveQueueLocked() {
		t.s.running[t.prio].Add(t.user, -1)
	}
	t.s.grantLocked()
}

// renew queues a ticket that was released once more.
func (t *ticket) renew() {
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	if !t.over {
		return
	}
	t.over, t.granted = false, make(chan struct{})
	t.s.waiting[t.prio].Push(t.user, t)
	t.s.grantLocked()
}

const (
	yieldStep = 5 * time.Millisecond
	yieldMost = 100 * time.Millisecond // a reader may wait for the very request that yields
)

// yield holds a request that nobody waits for back while a reader's is under way, so that the
// reader's bytes come first over a link that both share.
func (t *ticket) yield(ctx context.Context) {
	for waited := time.Duration(0); waited < yieldMost && ctx.Err() == nil; waited += yieldStep {
		t.s.mu.Lock()
		free := t.prio == demand || t.s.running[demand].Used() == 0
		t.s.mu.Unlock()
		if free {
			return
		}
		time.Sleep(yieldStep)
	}
}

// leaveQueueLocked reports whether the ticket was still waiting.
func (t *ticket) leaveQueueLocked() bool {
	return t.s.waiting[t.prio].Remove(t.user, t)
}

func (s *sched) grantLocked() {
	for p := demand; p < priorities; {
		running := &s.running[p]
		user, t, ok := s.waiting[p].First(running.Less, func(user string, _ *ticket) bool { return running.Room(user, 1) })
		if !ok || running.Used() >= s.limitLocked(p) {
			p++
			continue
		}
		s.waiting[p].Served(user)
		running.Add(user, 1)
		close(t.granted)
	}
}

// limitLocked is how many requests of a priority may run now.
func (s *sched) limitLocked(p priority) int64 {
	busy := func(p priority) bool { return s.running[p].Used() > 0 || s.waiting[p].Len() > 0 }
	switch {
	case p == demand:
		return maxDemand
	case p == prefetch && busy(demand):
		return maxPrefetchBesides
	case p == prefetch:
		return maxPrefetch
	case busy(demand) || busy(prefetch):
		return 0
	}
	return maxBackground
}
