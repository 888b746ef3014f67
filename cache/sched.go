package cache

import (
	"context"
	"fmt"
	"slices"
	"sync"
)

// priority of a fetch. A reader that waits goes before all else.
type priority int

const (
	demand priority = iota // somebody waits
	bulk                   // prefetch, completion
)

const (
	maxDemand       = 24 // requests at once for readers
	maxBulk         = 4  // requests at once for the rest, while no reader waits
	maxBulkBesides  = 1  // and while readers wait
	bulkRequestSize = 2 << 20
)

// sched hands out the right to make a request.
type sched struct {
	mu      sync.Mutex // guards the fields below and all tickets; taken after all others
	running [2]int
	waiting [2][]*ticket
}

// A ticket is one job's place in the queue, then its right.
type ticket struct {
	s       *sched
	prio    priority
	granted chan struct{}
	over    bool
}

// enter puts a job into the queue. Its release must be called, granted or not.
func (s *sched) enter(p priority) *ticket {
	t := &ticket{s: s, prio: p, granted: make(chan struct{})}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting[p] = append(s.waiting[p], t)
	s.grantLocked()
	return t
}

// wait returns when the job may make its request.
func (t *ticket) wait(ctx context.Context) error {
	select {
	case <-t.granted:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for a connection: %w", context.Cause(ctx))
	}
}

// promote lets a job that waits go before all bulk work, because a reader now waits for it.
func (t *ticket) promote() {
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	if t.prio == demand || !t.leaveQueueLocked() {
		return
	}
	t.prio = demand
	t.s.waiting[demand] = append(t.s.waiting[demand], t)
	t.s.grantLocked()
}

func (t *ticket) release() {
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	if t.over {
		return
	}
	t.over = true
	if !t.leaveQueueLocked() {
		t.s.running[t.prio]--
	}
	t.s.grantLocked()
}

// leaveQueueLocked reports whether the ticket was still waiting.
func (t *ticket) leaveQueueLocked() bool {
	q := t.s.waiting[t.prio]
	i := slices.Index(q, t)
	if i < 0 {
		return false
	}
	t.s.waiting[t.prio] = slices.Delete(q, i, i+1)
	return true
}

func (s *sched) grantLocked() {
	for {
		p := demand
		switch {
		case len(s.waiting[demand]) > 0 && s.running[demand] < maxDemand:
		case len(s.waiting[bulk]) > 0 && s.running[bulk] < s.bulkLimitLocked():
			p = bulk
		default:
			return
		}
		t := s.waiting[p][0]
		s.waiting[p] = s.waiting[p][1:]
		s.running[p]++
		close(t.granted)
	}
}

func (s *sched) bulkLimitLocked() int {
	if s.running[demand] > 0 || len(s.waiting[demand]) > 0 {
		return maxBulkBesides
	}
	return maxBulk
}
