package volume

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/remora-storage/remora/remote/store"
)

// A node's lease is an object that the node rewrites, by compare-and-swap, while it owns volumes. Whoever wants one of them must have seen
// the object unchanged for TTL and a margin, and swap it for one that says fenced: so a renewal that succeeds proves that nobody has.
// Another's word in the object tells the node that it was fenced: it lives again, and each head says whether the volume is still its own
// (reassert.go). Whatever else befalls a renewal is waited out: errors, a store that is away, an object that is gone. Clocks of different
// nodes are never compared; each measures its own waiting.

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

// MemberOptions say which node it is, and in which life. ID and Incarnation are needed.
type MemberOptions struct {
	ID          ID     // kept by the node; never used by two at a time
	Incarnation ID     // new with each life of the daemon
	Boot        string // new with each start of the machine; "" if that is not known
	// Diary has what this root wrote last into the lease. nil keeps nothing: the lease of an earlier life is waited out then.
	Diary Diary
	Host  string
	TTL   time.Duration // default 12 s
	// Clock returns the time since some moment, which goes on while the machine sleeps. nil takes the
	// process's.
	Clock func() time.Duration
	// Wall returns the time of day, since some other moment. nil takes the machine's.
	Wall func() time.Duration
	Log  *slog.Logger
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
	due     time.Duration // on Clock; when it is to be renewed
	waiting map[string]waitState
	sent    Word          // what the renewal under way writes
	looking bool          // this process looks again and again whether it runs
	looked  time.Duration // on Clock; when this process was last seen to run
	ahead   time.Duration // of wall time before Clock, then
	pauses  int           // in which it did not run
	hurry   chan struct{} // a renewal is due
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
	if opts.Wall == nil {
		opts.Wall = func() time.Duration { return time.Duration(time.Now().UnixNano()) }
	}
	if opts.Diary == nil {
		opts.Diary = noDiary{}
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	return &Member{
		hurry: make(chan struct{}, 1),
		store: st, opts: opts, turn: semaphore.NewWeighted(1), changed: make(chan struct{}), waiting: map[string]waitState{},
	}
}

// owner is who owns what this node takes. The caller has acquired the lease. It is the last life that the lease in the store was seen to
// have: where a head named a later one, others would still find the node fenced, and take the volume from a life that is to begin.
func (m *Member) owner() *Owner {
	m.mu.Lock()
	defer m.mu.Unlock()
	return &Owner{Node: m.opts.ID, Incarnation: m.state.Incarnation}
}

// readMember returns a node's object. Of one that is damaged it returns the version.
func readMember(ctx context.Context, st store.Store, id ID) (memberState, string, error) {
	var s memberState
	p, o, err := st.Get(ctx, memberKey(id), 0, -1)
	if err != nil {
		return s, "", err
	}
	if err := unseal("node", memberVersion, p, &s); err != nil {
		return s, o.Version, fmt.Errorf("node %s: %w", id, err)
	}
	if s.Node != id {
		return s, o.Version, fmt.Errorf("node %s: %w: it is that of %s", id, ErrCorrupt, s.Node)
	}
	return s, o.Version, nil
}

// Acquire makes sure that the node has its lease, and keeps it until Release was called as often. A node that lost its lease
// gets another one, as another life, once it owns nothing any more.
func (m *Member) Acquire(ctx context.Context) error {
	first, err := m.join(ctx)
	if err != nil {
		return fmt.Errorf("lease of this node: %w", err)
	}
	if first {
		return nil
	}
	// It is not this one's turn any longer: another volume may be released while the store does not answer.
	if err := m.Wait(ctx); err != nil {
		m.Release()
		return fmt.Errorf("lease of this node: %w; detach its volumes", err)
	}
	return nil
}

// join counts one that wants the lease. The first one takes it.
func (m *Member) join(ctx context.Context) (first bool, err error) {
	if m.turn.Acquire(ctx, 1) != nil {
		return false, context.Cause(ctx)
	}
	defer m.turn.Release(1)
	m.mu.Lock()
	first = m.owns == 0
	if first && m.err != nil {
		m.opts.Incarnation, m.err = NewID(), nil
	}
	m.mu.Unlock()
	if first {
		if err := m.begin(ctx); err != nil {
			return true, err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.owns++
	return first, nil
}

// begin takes the lease and starts its renewal.
func (m *Member) begin(ctx context.Context) error {
	m.mu.Lock()
	m.beginLookingLocked()
	m.mu.Unlock()
	run, stop := context.WithCancel(context.Background())
	m.started.Go(func() { m.watch(run) })
	if err := m.take(ctx); err != nil {
		stop()
		m.started.Wait()
		m.endLooking()
		return err
	}
	m.mu.Lock()
	m.stop = stop
	m.mu.Unlock()
	m.started.Go(func() { m.renew(run) })
	return nil
}

// take makes the lease this life's.
func (m *Member) take(ctx context.Context) error {
	for tries := 0; ; tries++ {
		old, version, err := m.previous(ctx)
		if err == nil {
			err = m.takeLease(ctx, old, version)
		}
		// A renewal of this node's dead daemon may have been on its way still. There are not many of them. Or another node has fenced
		// this one meanwhile, to take one of its volumes: what this life is to have of them is then another's to say.
		if err == nil || !errors.Is(err, errRival) && !errors.Is(err, errRevoked) || tries == 3 {
			return err
		}
		m.mu.Lock()
		m.err = nil
		if errors.Is(err, errRevoked) {
			m.opts.Incarnation = NewID()
		}
		m.mu.Unlock()
	}
}

// errRival says that somebody else wrote this node's object.
var errRival = errors.New("another daemon uses this node's id")

// takeLease replaces what an earlier life has left.
func (m *Member) takeLease(ctx context.Context, old memberState, version string) error {
	next := memberState{
		Node: m.opts.ID, Incarnation: m.opts.Incarnation, Counter: old.Counter + 1, Nonce: NewID(),
		State: stateLive, Boot: m.opts.Boot, Host: m.opts.Host, TTL: m.opts.TTL.Milliseconds(),
	}
	return m.swap(ctx, next, old.word(), version)
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
	if s.State == stateFenced {
		return s, version, nil
	}
	written, err := m.opts.Diary.Read()
	if err != nil {
		return s, version, err
	}
	if m.opts.Boot != "" && s.Boot == m.opts.Boot && written.has(s.word()) {
		return s, version, nil // its daemon is dead: this one holds the root's lock
	}
	// The machine was started anew, or another process has this id. The latter would renew.
	m.opts.Log.Info("waiting for the end of this node's lease of an earlier life", "ttl", s.ttl())
	lives, err := outwait(ctx, &s, &version, read)
	if lives {
		err = fmt.Errorf("another process or machine uses the node id %s (%s): one of them has a copy of the other's root; "+
			"give it a root of its own", m.opts.ID, s.Host)
	}
	return s, version, err
}

// swap writes the node's object. It waits out whatever fails, and ends with ErrFenced where the object shows that the lease
// is another's. The lease counts from the beginning of the first attempt with these bytes. last is what it replaces.
func (m *Member) swap(ctx context.Context, next memberState, last Word, version string) error {
	p, err := seal("node", memberVersion, next)
	if err != nil {
		return err
	}
	if err := m.opts.Diary.Write(DiaryEntry{Last: last, Next: next.word()}); err != nil {
		if next.Incarnation != last.Incarnation { // a life begins once it is written down
			return fmt.Errorf("write down the life of this node: %w", err)
		}
		m.opts.Log.Warn("the lease is not written down: the next life of this node will wait until it has run out", "err", err)
	}
	m.mu.Lock()
	begin, pauses := m.lookLocked(false), m.pauses
	m.sent = next.word()
	m.mu.Unlock()
	w := waiter{log: m.opts.Log, waits: m.setWaiting, most: m.opts.TTL / 4, ends: func(err error) bool { return errors.Is(err, ErrFenced) }}
	err = w.until(ctx, "renew the lease", func() error {
		// An attempt that hangs must not outlast the lease: the store may answer the next one.
		ctx, stop := context.WithTimeout(ctx, m.opts.TTL/2)
		defer stop()
		o, err := put(ctx, m.store, memberKey(m.opts.ID), p, version)
		if err == nil {
			version = o.Version
			return nil
		}
		if !errors.Is(err, store.ErrChanged) && !errors.Is(err, store.ErrExists) {
			return err
		}
		var done bool
		version, done, err = m.refused(ctx, next, version)
		if err == nil && !done {
			err = errReplaced
		}
		return err
	})
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil {
		if errors.Is(err, ErrFenced) && (!errors.Is(err, errRevoked) || m.owns == 0) {
			m.err = err
			m.tellLocked()
		}
		return err
	}
	m.state, m.version = next, version
	if m.lookLocked(false); m.pauses == pauses {
		m.until, m.due = begin+m.opts.TTL-leaseReserve, begin+m.opts.TTL/4
	} // else it may be an old one, which is to be renewed immediately
	m.tellLocked()
	return nil
}

// errRevoked says that another node has fenced this one, to take one of its volumes. Whose each of them is, their heads say.
var errRevoked = fmt.Errorf("this node was fenced: %w", ErrFenced)

// liveAgain takes the lease once more, as another life, after another node has fenced this one. Nothing is acknowledged meanwhile, nor
// before a volume's head says that it is this life's.
func (m *Member) liveAgain(ctx context.Context) error {
	m.opts.Log.Warn("another node has fenced this one, to take a volume of it: the others go on")
	m.mu.Lock()
	m.opts.Incarnation = NewID()
	m.mu.Unlock()
	return m.take(ctx)
}

// lose says that the lease cannot be had again.
func (m *Member) lose(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err == nil {
		m.err = fmt.Errorf("%w: %w", ErrFenced, err)
	}
	m.tellLocked()
}

// errReplaced says why a renewal that was refused is tried again.
var errReplaced = errors.New("the lease in the store was not what this node wrote last, and nobody else's: it is made again")

// refused says what it means that the node's object is not of the version that it was to be replaced from. done says that next
// is in it. If it is not, and err is nil, next is to replace the version that is returned, "" for none.
func (m *Member) refused(ctx context.Context, next memberState, version string) (now string, done bool, err error) {
	s, now, err := readMember(ctx, m.store, m.opts.ID)
	// What is gone, damaged or older is nobody's word: objects are deleted by mistake, and stores are put back to what they were. A
	// node that would take a volume writes its word first, and must wait until this lease has run out.
	mine := errors.Is(err, store.ErrNoObject) || errors.Is(err, ErrCorrupt)
	if err == nil {
		// Nor is that of an earlier life of this node: whoever would be this node now, or has fenced it, counts on from what it saw.
		earlier := s.Incarnation != next.Incarnation && s.Counter < next.Counter && !m.idle()
		switch {
		case s.Nonce == next.Nonce:
			return now, true, nil
		case s.State == stateFenced && !(earlier && m.unexpired()):
			return version, false, errRevoked
		}
		if mine = earlier || s.Incarnation == next.Incarnation && s.Counter < next.Counter; !mine {
			return version, false, fmt.Errorf("%w (%s): %w", errRival, s.Host, ErrFenced)
		}
	}
	switch {
	case !mine:
		return version, false, err
	case m.unexpired(), version != "" && now == "" && m.idle():
		return now, false, nil
	}
	return version, false, fmt.Errorf("the lease in the store is gone, damaged or older than what this node wrote, and may be another's: "+
		"detach the node's volumes (--abandon-to-journal) and attach them again: %w", cmp.Or(err, errReplaced))
}

// unexpired reports whether nobody can have taken the lease.
func (m *Member) unexpired() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.lookLocked(false) < m.until
}

// idle reports whether the node owns nothing in the store yet.
func (m *Member) idle() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.owns == 0
}

func (m *Member) setWaiting(what string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	setWaiting(m.waiting, what, err)
}

// Waits returns what waits for the store.
func (m *Member) Waits() (all []Wait) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for what, w := range m.waiting {
		all = append(all, Wait{what, w.err, w.since})
	}
	return all
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
		m.mu.Lock()
		next, version, pause := m.state, m.version, m.due-m.opts.Clock()
		m.mu.Unlock()
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-m.hurry:
			t.Stop()
		case <-ctx.Done():
			t.Stop()
			return
		}
		last := next.word()
		next.Counter++
		next.Nonce = NewID()
		err := m.swap(ctx, next, last, version)
		for errors.Is(err, errRevoked) {
			err = m.liveAgain(ctx)
		}
		if err != nil {
			if ctx.Err() == nil {
				m.opts.Log.Error("this node has lost its lease", "err", err)
				m.lose(err)
			}
			return
		}
	}
}

// Certain implements Lease.
func (m *Member) Certain() (life ID, certain bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state.Incarnation, m.lookLocked(false) < m.until && m.err == nil, m.err
}

// Changed implements Lease.
func (m *Member) Changed() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.changed
}

// Wait implements Lease.
func (m *Member) Wait(ctx context.Context) error {
	for {
		changed := m.Changed() // before it is asked, so that no change is missed
		_, certain, err := m.Certain()
		if err != nil || certain {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("the lease of this node has run out%s: %w", m.why(), context.Cause(ctx))
		}
	}
}

// why says what a renewal waits for, behind a colon; "" if it does not.
func (m *Member) why() string {
	for _, w := range m.Waits() {
		return ": " + w.Reason.Error()
	}
	return ""
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
		m.endLooking()
	}
}
