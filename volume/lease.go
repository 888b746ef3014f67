package volume

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/remora-storage/remora/internal/backoff"
	"github.com/remora-storage/remora/remote/store"
)

// A node's lease is an object that the node rewrites, by compare-and-swap, while it owns volumes. Whoever wants one of
// them must have seen the object unchanged for TTL and a margin, and swap it for one that says fenced: so a renewal
// that succeeds proves that nobody has, and one that fails tells the node that it has lost all its volumes. Clocks of
// different nodes are never compared; each measures its own waiting.

// memberState is that object.
type memberState struct {
	Node        ID     `json:"node"`
	Incarnation ID     `json:"incarnation"` // of the daemon's life
	Counter     uint64 `json:"counter"`
	Nonce       ID     `json:"nonce"`
	State       string `json:"state"` // live or fenced
	Boot        string `json:"boot"`  // of the machine
	Host        string `json:"host"`  // for people
	TTL         int64  `json:"ttl_milliseconds"`
	FencedBy    *ID    `json:"fenced_by,omitempty"`
}

const (
	memberVersion = 1
	stateLive     = "live"
	stateFenced   = "fenced"
	defaultTTL    = 12 * time.Second
	leaseReserve  = time.Second // before its end a lease is not certain any more
)

// MemberOptions say which node it is, and in which life. ID, Incarnation and Boot are needed.
type MemberOptions struct {
	ID          ID     // kept by the node; never used by two at a time
	Incarnation ID     // new with each life of the daemon
	Boot        string // new with each start of the machine
	Host        string
	TTL         time.Duration // default 12 s
	// Clock returns the time since some moment, which goes on while the machine sleeps. nil takes the
	// process's.
	Clock func() time.Duration
	Log   *slog.Logger
}

// A Member is one life of a node, as the others that use the same store see it: it holds the node's lease there.
type Member struct {
	store store.Store
	opts  MemberOptions
	turn  *semaphore.Weighted // held by whoever acquires or releases

	mu      sync.Mutex // guards the fields below
	owns    int
	version string
	state   memberState
	until   time.Duration // on Clock; the lease is certain before
	err     error
	changed chan struct{} // closed, and made anew, when until or err changes
	stop    context.CancelFunc
	started sync.WaitGroup
}

// NewMember returns a Member. It makes no request before it owns something.
func NewMember(st store.Store, opts MemberOptions) *Member {
	if opts.TTL == 0 {
		opts.TTL = defaultTTL
	}
	if opts.Clock == nil {
		begin := time.Now()
		opts.Clock = func() time.Duration { return time.Since(begin) }
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	return &Member{store: st, opts: opts, turn: semaphore.NewWeighted(1), changed: make(chan struct{})}
}

// owner is who owns what this node takes. The caller has acquired the lease.
func (m *Member) owner() *Owner {
	m.mu.Lock()
	defer m.mu.Unlock()
	return &Owner{Node: m.opts.ID, Incarnation: m.opts.Incarnation}
}

// readMember returns a node's object.
func readMember(ctx context.Context, st store.Store, id ID) (memberState, string, error) {
	var s memberState
	p, o, err := st.Get(ctx, memberKey(id), 0, -1)
	if err != nil {
		return s, "", err
	}
	if err := unseal("node", memberVersion, p, &s); err != nil {
		return s, "", fmt.Errorf("node %s: %w", id, err)
	}
	if s.Node != id {
		return s, "", fmt.Errorf("node %s: %w: it is that of %s", id, ErrCorrupt, s.Node)
	}
	return s, o.Version, nil
}

// Acquire makes sure that the node has its lease, and keeps it until Release was called as often. A node that lost its lease
// gets another one, as another life, once it owns nothing any more.
func (m *Member) Acquire(ctx context.Context) error {
	if m.turn.Acquire(ctx, 1) != nil {
		return context.Cause(ctx)
	}
	defer m.turn.Release(1)
	m.mu.Lock()
	first := m.owns == 0
	if first && m.err != nil {
		m.opts.Incarnation, m.err = NewID(), nil
	}
	m.mu.Unlock()
	if first {
		if err := m.begin(ctx); err != nil {
			return fmt.Errorf("lease of this node: %w", err)
		}
	} else if err := m.Wait(ctx); err != nil {
		return fmt.Errorf("lease of this node: %w; detach its volumes", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.owns++
	return nil
}

// begin takes the lease and starts its renewal.
func (m *Member) begin(ctx context.Context) error {
	for tries := 0; ; tries++ {
		old, version, err := m.previous(ctx)
		if err == nil {
			err = m.takeLease(ctx, old, version)
		}
		if err == nil {
			break
		}
		// A renewal of this node's dead daemon may have been on its way still. There are not many of them.
		if !errors.Is(err, errRival) || tries == 3 {
			return err
		}
		m.mu.Lock()
		m.err = nil
		m.mu.Unlock()
	}
	run, stop := context.WithCancel(context.Background())
	m.mu.Lock()
	m.stop = stop
	m.mu.Unlock()
	m.started.Go(func() { m.renew(run) })
	return nil
}

// errRival says that somebody else wrote this node's object.
var errRival = errors.New("another daemon uses this node's id")

// takeLease makes the lease this life's.
func (m *Member) takeLease(ctx context.Context, old memberState, version string) error {
	next := memberState{
		Node: m.opts.ID, Incarnation: m.opts.Incarnation, Counter: old.Counter + 1, Nonce: NewID(),
		State: stateLive, Boot: m.opts.Boot, Host: m.opts.Host, TTL: m.opts.TTL.Milliseconds(),
	}
	return m.swap(ctx, next, version)
}

// previous returns the node's object as it was left, once it is certain that whoever left it is dead.
func (m *Member) previous(ctx context.Context) (s memberState, version string, err error) {
	w := waiter{log: m.opts.Log}
	read := func() error {
		return w.until(ctx, "read the lease", func() (err error) {
			s, version, err = readMember(ctx, m.store, m.opts.ID)
			if errors.Is(err, store.ErrNoObject) {
				s, version, err = memberState{}, "", nil
			}
			return err
		})
	}
	if err := read(); err != nil || version == "" {
		return s, version, err
	}
	if s.Boot == m.opts.Boot || s.State == stateFenced {
		return s, version, nil // its daemon is dead: this one holds the root's lock
	}
	// The machine was started anew, or another machine has this id. The latter would renew.
	m.opts.Log.Info("waiting for the end of this node's lease of before the machine was started", "ttl", m.opts.TTL)
	lives, err := outwait(ctx, &s, &version, read)
	if lives {
		err = fmt.Errorf("another machine uses the node id %s (%s): remove this node's id file on one of them", m.opts.ID, s.Host)
	}
	return s, version, err
}

// outwait returns when a node's object has not changed for its lease and a quarter more, and whether it is being renewed
// instead. s and version are what was seen of it, and what is there at the end; read brings them up to date. One change
// alone may be the last request of a node that is dead.
func outwait(ctx context.Context, s *memberState, version *string, read func() error) (lives bool, err error) {
	for {
		before, seen := *s, *version
		ttl := time.Duration(before.TTL) * time.Millisecond
		if err := backoff.Sleep(ctx, ttl+ttl/4); err != nil {
			return false, err
		}
		if err := read(); err != nil {
			return false, err
		}
		switch {
		case *version == seen:
			return false, nil
		case s.State == stateLive && (s.Incarnation != before.Incarnation || s.Counter > before.Counter+1):
			return true, nil
		}
	}
}

// swap writes the node's object. The lease counts from the beginning of the first attempt with these bytes.
func (m *Member) swap(ctx context.Context, next memberState, version string) error {
	p, err := seal("node", memberVersion, next)
	if err != nil {
		return err
	}
	begin := m.opts.Clock()
	w := waiter{log: m.opts.Log}
	var at string
	err = w.until(ctx, "renew the lease", func() error {
		// An attempt that hangs must not outlast the lease: the store may answer the next one.
		ctx, stop := context.WithTimeout(ctx, m.opts.TTL/2)
		defer stop()
		o, err := put(ctx, m.store, memberKey(m.opts.ID), p, version)
		if err == nil {
			at = o.Version
			return nil
		}
		if !errors.Is(err, store.ErrChanged) && !errors.Is(err, store.ErrExists) {
			return err
		}
		s, v, err := readMember(ctx, m.store, m.opts.ID)
		switch {
		case err != nil:
			return err
		case s.Nonce == next.Nonce:
			at = v
			return nil
		case s.State == stateFenced:
			return fmt.Errorf("this node was fenced: %w", ErrFenced)
		}
		return fmt.Errorf("%w (%s): %w", errRival, s.Host, ErrFenced)
	})
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil {
		if errors.Is(err, ErrFenced) {
			m.err = err
			m.tellLocked()
		}
		return err
	}
	m.state, m.version, m.until = next, at, begin+m.opts.TTL-leaseReserve
	m.tellLocked()
	return nil
}

// put swaps an object, or makes it if version is empty.
func put(ctx context.Context, st store.Store, key string, p []byte, version string) (store.Object, error) {
	if version == "" {
		return st.PutIfAbsent(ctx, key, p)
	}
	return st.PutIfMatch(ctx, key, p, version)
}

func (m *Member) tellLocked() {
	close(m.changed)
	m.changed = make(chan struct{})
}

// renew keeps the lease until ctx ends or it is lost.
func (m *Member) renew(ctx context.Context) {
	for {
		if backoff.Sleep(ctx, m.opts.TTL/4) != nil {
			return
		}
		m.mu.Lock()
		next, version := m.state, m.version
		m.mu.Unlock()
		next.Counter++
		next.Nonce = NewID()
		if err := m.swap(ctx, next, version); err != nil {
			if ctx.Err() != nil {
				return
			}
			m.opts.Log.Error("this node has lost its lease", "err", err)
			m.mu.Lock()
			if m.err == nil {
				m.err = fmt.Errorf("%w: %w", ErrFenced, err)
			}
			m.tellLocked()
			m.mu.Unlock()
			return
		}
	}
}

// Wait implements Lease.
func (m *Member) Wait(ctx context.Context) error {
	for {
		m.mu.Lock()
		err, changed := m.err, m.changed
		certain := m.opts.Clock() < m.until
		m.mu.Unlock()
		if err != nil || certain {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("the lease of this node has run out: %w", context.Cause(ctx))
		}
	}
}

// Margin returns for how long the lease is certain, and whether the node holds one at all.
func (m *Member) Margin() (time.Duration, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.until - m.opts.Clock(), m.owns > 0 && m.err == nil
}

// Release ends what one Acquire began. A node that owns nothing renews nothing.
func (m *Member) Release() {
	_ = m.turn.Acquire(context.Background(), 1) // it fails only when its context ends
	defer m.turn.Release(1)
	m.mu.Lock()
	m.owns--
	last, stop := m.owns == 0, m.stop
	m.mu.Unlock()
	if last {
		stop()
		m.started.Wait()
	}
}

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
			return err
		})
	}
	err := read()
	switch {
	case errors.Is(err, store.ErrNoObject):
		return nil // it never had one, or it was removed
	case err != nil:
		return err
	case s.State == stateFenced:
		return nil // whichever of its lives: a later one takes the volume again before it uses it
	}
	ttl := time.Duration(s.TTL) * time.Millisecond
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
		_, err := m.store.PutIfMatch(ctx, memberKey(owner.Node), p, version)
		if err == nil || !errors.Is(err, store.ErrChanged) {
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
