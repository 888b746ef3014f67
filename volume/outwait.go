package volume

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/remora-storage/remora/internal/backoff"
	"github.com/remora-storage/remora/remote/store"
)

// MostTTL is the longest that a lease may be. That of an owner whose object is gone is not known.
const MostTTL = time.Minute

// ttl returns for how long the node may believe in its lease.
func (s *memberState) ttl() time.Duration {
	if s.TTL <= 0 {
		return MostTTL
	}
	return time.Duration(s.TTL) * time.Millisecond
}

// outwait returns when a node's object has not changed for its lease and a quarter more, and whether it is being renewed
// instead. s and version are what was seen of it, and what is there at the end; read brings them up to date. One change
// alone may be the last request of a node that is dead. The time does not count in which read waits for the store: nobody
// can renew either.
func outwait(ctx context.Context, s *memberState, version *string, read func() error) (lives bool, err error) {
	first := *s
	for {
		seen := *version
		ttl := s.ttl()
		step := ttl / watchSteps
		for left := ttl + ttl/4; left > 0 && *version == seen; left -= step {
			if err := backoff.Sleep(ctx, step); err != nil {
				return false, err
			}
			asked := time.Now()
			if err := read(); err != nil {
				return false, err
			}
			if time.Since(asked) > ttl/4 {
				left = ttl + ttl/4
			}
		}
		switch {
		case *version == seen:
			return false, nil
		case s.State == stateFenced:
			return false, nil
		case *version != "" && (s.Incarnation != first.Incarnation || s.Counter > first.Counter+1):
			return true, nil
		}
	}
}

const watchSteps = 8 // of a lease, in which an outage of the store may be noticed

// ErrOwned says that another node owns a volume, and lives.
var ErrOwned = errors.New("in use by another node")

// awaitEnd returns when the owner of a volume has provably ended: its lease has run out, and its object says fenced. It
// tells progress what it waits for. ErrOwned if the owner lives.
func (m *Member) awaitEnd(ctx context.Context, owner Owner, progress func(string)) error {
	if owner.Node == m.opts.ID {
		return nil // an earlier life of this daemon, or this machine's before it was started: Acquire has seen to it
	}
	w := waiter{log: m.opts.Log}
	var s memberState
	var version string
	read := func() error {
		return w.until(ctx, "read the owner's lease", func() (err error) {
			s, version, err = readMember(ctx, m.store, owner.Node)
			if errors.Is(err, store.ErrNoObject) { // it was deleted, and the owner makes it again if it lives
				s = memberState{Node: owner.Node, Incarnation: owner.Incarnation, Host: "its lease is gone"}
				version, err = "", nil
			}
			return err
		})
	}
	switch err := read(); {
	case err != nil:
		return err
	case s.State == stateFenced:
		return nil // whichever of its lives: a later one takes the volume again before it uses it
	}
	ttl := s.ttl()
	progress(fmt.Sprintf("node %s (%s) owns it; waiting %s for the end of its lease", owner.Node, s.Host, (ttl + ttl/4).Round(time.Second)))
	switch lives, err := outwait(ctx, &s, &version, read); {
	case err != nil:
		return err
	case lives:
		return fmt.Errorf("node %s (%s): %w: detach it there first", owner.Node, s.Host, ErrOwned)
	case s.State == stateFenced: // by somebody else, meanwhile
		return nil
	}
	fenced := s
	fenced.State, fenced.Nonce, fenced.FencedBy = stateFenced, NewID(), &m.opts.ID
	p, err := seal("node", memberVersion, fenced)
	if err != nil {
		return err
	}
	return w.until(ctx, "fence the owner", func() error {
		_, err := put(ctx, m.store, memberKey(owner.Node), p, version)
		if err == nil || !errors.Is(err, store.ErrChanged) && !errors.Is(err, store.ErrExists) {
			return err
		}
		now, _, err := readMember(ctx, m.store, owner.Node)
		switch {
		case err != nil:
			return err
		case now.State == stateFenced:
			return nil
		}
		return fmt.Errorf("node %s (%s): %w: detach it there first", owner.Node, s.Host, ErrOwned)
	})
}
