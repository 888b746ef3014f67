package volume

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// Journals are a node's journals. They belong to one process.
type Journals interface {
	// Create makes an empty file of the size that journals have. It replaces none.
	Create(vid, id ID) (JournalFile, error)
	// Open opens one. ErrNoJournal.
	Open(vid, id ID) (JournalFile, error)
	// Remove removes one that is of no use any more.
	Remove(vid, id ID) error
	// Orphan keeps all of a volume's journals but one under another name: what they hold was never committed,
	// and the volume has gone on without it.
	Orphan(vid, except ID) error
}

// A JournalFile is a Disk that is closed after use.
type JournalFile interface {
	Disk
	io.Closer
}

// Errors of Attach that callers act on.
var (
	// ErrNoJournal says that a node has no such journal.
	ErrNoJournal = errors.New("no such journal")
	// ErrLoss says that flushed writes may be lost if the volume is attached now.
	ErrLoss = errors.New("writes that were flushed may be lost")
)

// AttachOptions say how a volume is taken.
type AttachOptions struct {
	Options
	// AcceptLoss takes a volume of class Local without the journal that its last owner had, and one of any class without a
	// journal that does not continue what the store has.
	AcceptLoss bool
	// Resume says that the volume's device has stayed attached to the kernel: the journal must be there, whole.
	Resume bool
	// Progress is told what Attach waits for. It may be nil.
	Progress func(string)
}

// Attach takes a volume for this node, and returns it when no other can acknowledge writes to it any more and every
// write that was acknowledged here before is in it. Close or Detach must be called.
func Attach(ctx context.Context, id ID, m *Member, journals Journals, opts AttachOptions) (_ *Volume, err error) {
	opts.Options = opts.Options.withDefaults()
	if opts.Progress == nil {
		opts.Progress = func(string) {}
	}
	if err := m.Acquire(ctx); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			m.Release()
		}
	}()
	t := taking{id: id, member: m, journals: journals, opts: opts}
	defer func() {
		if err != nil && t.disk != nil {
			err = errors.Join(err, t.disk.Close())
		}
	}()
	for {
		h, version, swapped, err := t.try(ctx)
		if err != nil {
			return nil, err
		}
		if !swapped {
			continue
		}
		v, err := t.open(ctx, h, version)
		if !errors.Is(err, ErrLoss) || !opts.AcceptLoss || opts.Resume {
			return v, err
		}
		t.refused, t.why = t.journal, err // and go on from the last commit
	}
}

// taking is one Attach under way.
type taking struct {
	id       ID
	member   *Member
	journals Journals
	opts     AttachOptions

	disk     JournalFile
	journal  ID
	existing bool   // it may hold acknowledged writes: the head that this attempt replaces names it
	lost     bool   // what another journal may hold is given up
	refused  ID     // a journal that does not continue what the store has
	why      error  // it does not
	from     *Owner // another node that the volume is taken from
}

// try makes one attempt at the head. swapped is false if somebody else changed it meanwhile.
func (t *taking) try(ctx context.Context) (h *Head, version string, swapped bool, err error) {
	w := waiter{log: t.opts.Log}
	if err := w.until(ctx, "read the head", func() (err error) {
		h, version, err = readHead(ctx, t.opts.Store, t.id)
		return err
	}); err != nil {
		return nil, "", false, err
	}
	if h.removing() {
		return nil, "", false, fmt.Errorf("volume %s: %w", t.id, ErrHalfRemoved)
	}
	if h.Owner != nil {
		if err := t.member.awaitEnd(ctx, *h.Owner, t.opts.Progress); err != nil {
			return nil, "", false, fmt.Errorf("volume %s: %w", h.Name, err)
		}
	}
	if err := t.findJournal(h); err != nil {
		return nil, "", false, fmt.Errorf("volume %s: %w", h.Name, err)
	}
	t.from = h.Owner
	next := h.clone()
	next.next()
	next.Epoch++
	next.Owner = t.member.owner()
	if !t.existing {
		next.Journal = &JournalRef{Node: t.member.opts.ID, ID: t.journal}
		next.meets(journalStart(t.journal))
	}
	h, version, swapped, err = swapHead(ctx, t.opts.Store, h, next, version, w)
	if swapped && h.Nonce != next.Nonce {
		swapped = false // and taken by another since
	}
	return h, version, swapped, err
}

// findJournal opens the journal that the head names, or makes one. One that an attempt before has opened is let go: another
// head named it, and whoever came since may have gone on without it.
func (t *taking) findJournal(h *Head) error {
	if t.existing {
		t.existing = false
		if err := t.use(nil, ID{}); err != nil {
			return err
		}
	}
	t.lost = false
	refused := h.Journal != nil && h.Journal.ID == t.refused
	if !refused {
		t.why = nil
	}
	if h.Journal != nil && h.Journal.Node == t.member.opts.ID && !refused {
		f, err := t.journals.Open(h.ID, h.Journal.ID)
		switch {
		case err == nil:
			t.existing = true
			return t.use(f, h.Journal.ID)
		case !errors.Is(err, ErrNoJournal):
			return err
		}
	}
	if t.opts.Resume {
		return fmt.Errorf("%w: its journal, with writes that were acknowledged, is no longer on this node: --accept-loss gives them up", ErrLoss)
	}
	if h.Journal != nil && h.Class == Local && !t.opts.AcceptLoss {
		return fmt.Errorf("%w: those since the last commit are in journal %s of node %s only; attach it there, or accept the loss "+
			"(--accept-loss)", ErrLoss, h.Journal.ID, h.Journal.Node)
	}
	t.lost = h.Journal != nil && (h.Class == Local || refused)
	if t.disk != nil {
		return nil // made by an attempt before
	}
	id := NewID()
	f, err := t.journals.Create(h.ID, id)
	if err != nil {
		return err
	}
	return errors.Join(t.use(f, id), formatJournal(f, h.ID, id))
}

// use makes f the journal of this attempt, and closes the one before.
func (t *taking) use(f JournalFile, id ID) (err error) {
	if t.disk != nil {
		err = t.disk.Close()
	}
	t.disk, t.journal = f, id
	return err
}

// open makes a Volume of what was taken.
func (t *taking) open(ctx context.Context, h *Head, version string) (*Volume, error) {
	v := newVolume(h, version, t.member, t.opts.Options)
	v.owned = &owned{member: t.member, journals: t.journals, disk: t.disk, id: t.journal}
	if err := t.journals.Orphan(h.ID, t.journal); err != nil {
		return nil, err
	}
	loading, loadCtx := errgroup.WithContext(ctx)
	loading.Go(func() error { return v.load(loadCtx) })
	active := v.active
	var stored cursor // behind the last record that the store has
	r, err := replay(t.disk, h.ID, t.journal, h, t.opts.Resume, func(first uint64, entries []entry, end cursor) {
		for len(entries) > 0 && first <= h.Write {
			first, entries = first+1, entries[1:]
		}
		if len(entries) == 0 {
			stored = end
		}
		v.applyLocked(first, entries)
	})
	if errors.Is(err, ErrLoss) {
		err = fmt.Errorf("%w; --accept-loss goes on from the last commit, and keeps the journal as an orphan", err)
	}
	if err := errors.Join(err, loading.Wait()); err != nil {
		return nil, fmt.Errorf("volume %s: %w", h.Name, err)
	}
	if t.existing {
		// What was written before this process began may not be on stable storage, while what follows it will be.
		if err := t.disk.Sync(); err != nil {
			return nil, err
		}
	}
	active.end = r.end
	v.journal = newJournal(t.disk, r.super, cmp.Or(stored, r.super.start), r.end, v.written, h.Epoch, t.opts.Memory*3/16)
	v.journal.written, v.journal.full, v.journal.waits = v.applyWritten, v.wake, v.setWaiting
	if t.opts.Near {
		v.journal.lead = int64(len(v.journal.window.mem)) * 3 / 4
	}
	v.run()
	if t.from != nil && t.from.Node != t.member.opts.ID {
		v.tell(EventTakeover, fmt.Sprintf("from node %s, whose lease had ended; the volume is as of write %d, its last commit",
			t.from.Node, h.Write))
	}
	switch {
	case t.lost && t.why != nil:
		v.tell(EventLoss, fmt.Sprintf("the loss was accepted of what was flushed after write %d: %v", h.Write, t.why))
	case t.lost:
		v.tell(EventLoss, fmt.Sprintf("the loss was accepted of what was flushed after write %d, at most %s before", h.Write,
			time.Duration(h.MaxAge)*time.Second))
	}
	return v, nil
}

// tell keeps an event in the store.
func (v *Volume) tell(what, detail string) {
	e := Event{Time: time.Now().UTC(), Volume: v.id, Name: v.Head().Name, Node: &v.owned.member.opts.ID, What: what, Detail: detail}
	v.log.Warn(what, "detail", detail)
	v.spawn(func(ctx context.Context) {
		if err := v.wait.until(ctx, "write down an event", func() error { return e.Store(ctx, v.opts.Store) }); err != nil && ctx.Err() == nil {
			v.log.Error("an event was not written down", "event", what, "err", err)
		}
	})
}

// owned is what goes with a volume when it is given up.
type owned struct {
	member   *Member
	journals Journals
	disk     JournalFile
	id       ID
	once     sync.Once
}

// load reads the map's root and the tables of the tail's segments.
func (v *Volume) load(ctx context.Context) error {
	h := v.head
	tables := make([][]extent, len(h.Tail))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(32)
	g.Go(func() (err error) {
		v.root, err = readRoot(ctx, v.nodes, h.Root)
		return err
	})
	for i, ref := range h.Tail {
		v.tailSegs[ref.Seq] = ref
		g.Go(func() error {
			return v.wait.until(ctx, "read the log", func() (err error) {
				tables[i], err = readTable(ctx, v.opts.Store, v.id, ref, v.Size())
				return err
			})
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for _, t := range tables {
		for _, e := range t {
			v.tail.setNewer(e)
		}
	}
	return nil
}

// Detach gives the volume up when the store has every acknowledged write. It waits while the store cannot be reached;
// the volume goes on if ctx ends before. Nobody may write any more.
func (v *Volume) Detach(ctx context.Context) error {
	v.mu.Lock()
	v.draining = true
	v.mu.Unlock()
	giveUp := func(err error) error {
		v.mu.Lock()
		v.draining = false
		v.mu.Unlock()
		return err
	}
	for {
		if err := v.Commit(ctx); err != nil {
			return giveUp(err)
		}
		v.mu.RLock()
		clean := len(v.sealed) == 0 && v.active.cut == v.active.after
		v.mu.RUnlock()
		if clean {
			break
		}
	}
	v.halt(ErrClosed) // nothing else changes the head from here on
	if err := v.update(ctx, func(h *Head) error {
		h.Owner, h.Journal = nil, nil
		return nil
	}, func() {}); err != nil {
		return err // all is in the store, and the next call goes on here
	}
	err := v.owned.journals.Remove(v.id, v.owned.id)
	return errors.Join(err, v.owned.close())
}

// close gives up the lease and the journal's file, once.
func (o *owned) close() (err error) {
	o.once.Do(func() {
		o.member.Release()
		err = o.disk.Close()
	})
	return err
}

// halt ends what works in the background. Requests fail from now on.
func (v *Volume) halt(why error) {
	v.mu.Lock()
	v.failLocked(why)
	v.mu.Unlock()
	v.stop(why)
	v.started.Wait()
}

// Close leaves the volume as it is: owned by this node, with acknowledged writes in the journal.
func (v *Volume) Close() error {
	v.halt(ErrClosed)
	return v.owned.close()
}
