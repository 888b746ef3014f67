package volume

import (
	"context"
	"time"
)

// A process that does not run knows nothing of what becomes of its lease meanwhile, and may not even notice: the clock of a
// virtual machine stands still while it is paused, and goes on from where it was. So a Member that holds a lease looks at its
// clocks again and again. If it did not for a while, or wall time has gone ahead of its own clock, it believes in nothing
// until the lease is renewed: whoever has taken it will refuse that.

const (
	lookEvery = 250 * time.Millisecond
	mostPause = time.Second
)

// watch looks at the clocks until ctx ends.
func (m *Member) watch(ctx context.Context) {
	t := time.NewTicker(lookEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		m.mu.Lock()
		m.lookLocked(true)
		m.mu.Unlock()
	}
}

// beginLookingLocked says that nothing was missed up to now.
func (m *Member) beginLookingLocked() {
	m.looking = true
	m.looked = m.opts.Clock()
	m.ahead = m.opts.Wall() - m.looked
}

// hurryUp has the lease renewed.
func (m *Member) hurryUp() {
	select {
	case m.hurry <- struct{}{}:
	default: // it will be
	}
}

func (m *Member) endLooking() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.looking = false
}

// lookLocked takes the lease for uncertain if this process did not run for a while. tick says that the look is one of those that
// follow each other. It returns the time.
func (m *Member) lookLocked(tick bool) time.Duration {
	now := m.opts.Clock()
	gap, ahead := now-m.looked, m.opts.Wall()-now
	if jump := ahead - m.ahead; m.looking && (gap > mostPause || jump > mostPause) {
		m.pauses++
		m.until, m.due = min(m.until, now), now
		m.opts.Log.Warn("this process did not run for a while: its lease counts once it is renewed", "gap", gap, "jump", jump)
		m.hurryUp()
		tick = true
	}
	if tick {
		m.looked, m.ahead = now, ahead
	}
	return now
}
