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
	// ErrHalfTaken says, beside why an Attach has failed, that the head may say that this node has the volume. An Attach with Settle
	// finds out, and has it open then, to be given up.
	ErrHalfTaken = errors.New("half taken")
	// ErrNotOwned says that a head does not say that this node has the volume, and will not.
	ErrNotOwned = errors.New("it is not this node's")
)

// halfTaken is an error that is an ErrHalfTaken, too.
type halfTaken struct{ error }

func (e halfTaken) Is(err error) bool { return err == ErrHalfTaken }
func (e halfTaken) Unwrap() error     { return e.error }

// AttachOptions say how a volume is taken.
type AttachOptions struct {
	Options
	// AcceptLoss takes a volume of class Local without the journal that its last owner had, and one of any class without a
	// journal that does not continue what the store has, or as an older head has it.
	AcceptLoss bool
	// Seen is what this node has seen of the head, zero for nothing.
	Seen Seen
	// Resume says that the volume's device has stayed attached to the kernel: the journal must be there, whole.
	Resume bool
	// Settle takes the volume only if the head says that it is this node's, as what did not end may have left it. ErrNotOwned says that
	// it does not, and that nothing is on its way that would change that.
	Settle bool
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
		if err != nil {
			return nil, halfTaken{err}
		}
		return v, nil
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
	past     past   // of the journal
	refused  ID     // a journal that does not continue what the store has
	why      error  // it does not
	back     error  // how the head is older than what this node has seen of it
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
	if t.opts.Settle && (h.Owner == nil || h.Owner.Node != t.member.opts.ID) {
		return nil, "", false, t.notOwned(ctx, h, version, w)
	}
	if t.back = h.follows(t.opts.Seen); t.back != nil && (!t.opts.AcceptLoss || t.opts.Resume) {
		return nil, "", false, fmt.Errorf("volume %s: %w; --accept-loss goes on from what the store has", h.Name, t.back)
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
	switch t.past, err = readPast(t.disk, t.journal, next, t.opts.Resume); {
	case errors.Is(err, ErrLoss) && t.opts.AcceptLoss && !t.opts.Resume:
		t.refused, t.why = t.journal, err // and go on from the last commit
		return nil, "", false, nil
	case errors.Is(err, ErrLoss):
		err = fmt.Errorf("%w; --accept-loss goes on from the last commit, and keeps the journal as an orphan", err)
	}
	if err != nil {
		return nil, "", false, fmt.Errorf("volume %s: %w", h.Name, err)
	}
	h, version, swapped, err = swapHead(ctx, t.opts.Store, h, next, version, w)
	if err != nil {
		return nil, "", false, halfTaken{err}
	}
	if swapped && h.Nonce != next.Nonce {
		swapped = false // and taken by another since
	}
	return h, version, swapped, nil
}

// notOwned returns ErrNotOwned once nothing that this node has sent can make the volume its own: what is still on its way is to
// replace a head that is no longer there. It returns nil if somebody else has replaced it. What the node has of the volume is put aside.
func (t *taking) notOwned(ctx context.Context, h *Head, version string, w waiter) error {
	next := h.clone()
	next.next()
	_, _, swapped, err := swapHead(ctx, t.opts.Store, h, next, version, w)
	if err != nil || !swapped {
		return err
	}
	return cmp.Or(errors.Join(t.removeReleased(h), t.journals.Orphan(h.ID, ID{})), fmt.Errorf("volume %s: %w", h.Name, ErrNotOwned))
}

// removeReleased removes the journal with which a volume was given up, if it has nothing else than the store.
func (t *taking) removeReleased(h *Head) error {
	if h.Released == nil || h.Released.Journal.Node != t.member.opts.ID {
		return nil
	}
	j := h.Released.Journal
	f, err := t.journals.Open(h.ID, j.ID)
	if errors.Is(err, ErrNoJournal) {
		return nil
	}
	if err != nil {
		return err
	}
	r, err := replay(f, h.ID, j.ID, nil, false, func(uint64, []entry, cursor) {})
	if err = errors.Join(err, f.Close()); err != nil || r.end.seq != j.Record || r.end.prev != j.Sum {
		return nil // an orphan
	}
	return t.journals.Remove(h.ID, j.ID)
}

// past is what a journal has, before its volume is taken.
type past struct {
	*replayed
	records []pastRecord
}

// pastRecord is a record without the data: that is found in the journal.
type pastRecord struct {
	first   uint64 // sequence number of its first write
	entries []entry
	end     cursor
}

// readPast reads a journal, and insists that it continues what the store has.
func readPast(disk Disk, id ID, h *Head, sameBoot bool) (p past, err error) {
	p.replayed, err = replay(disk, h.ID, id, h, sameBoot, func(first uint64, entries []entry, end cursor) {
		for i := range entries {
			entries[i].data = nil
		}
		p.records = append(p.records, pastRecord{first, entries, end})
	})
	return p, err
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
	if err := v.load(ctx); err != nil {
		return nil, fmt.Errorf("volume %s: %w", h.Name, err)
	}
	active, r := v.active, t.past
	var stored cursor // behind the last record that the store has
	for _, p := range r.records {
		for len(p.entries) > 0 && p.first <= h.Write {
			p.first, p.entries = p.first+1, p.entries[1:]
		}
		if len(p.entries) == 0 {
			stored = p.end
		}
		v.applyLocked(p.first, p.entries)
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
		v.tell(h, EventTakeover, fmt.Sprintf("from node %s, whose lease had ended; the volume is as of write %d, its last commit",
			t.from.Node, h.Write))
	}
	if t.back != nil {
		v.tell(h, EventLoss, fmt.Sprintf("the loss was accepted of what an earlier state of the store lacks: %v", t.back))
	}
	switch {
	case t.lost && t.why != nil:
		v.tell(h, EventLoss, fmt.Sprintf("the loss was accepted of what was flushed after write %d: %v", h.Write, t.why))
	case t.lost:
		v.tell(h, EventLoss, fmt.Sprintf("the loss was accepted of what was flushed after write %d, at most %s before", h.Write,
			time.Duration(h.MaxAge)*time.Second))
	}
	return v, nil
}

// tell keeps in the store how the volume was taken: by the head that was swapped.
func (v *Volume) tell(h *Head, what, detail string) {
	e := Event{Time: time.Now().UTC(), Volume: v.id, Name: h.Name, Node: &v.owned.member.opts.ID, What: what, Detail: detail,
		Epoch: h.Epoch, Write: h.Write}
	v.log.Warn(what, "detail", detail)
	told := make(chan struct{})
	v.owned.telling = append(v.owned.telling, told)
	v.spawn(func(ctx context.Context) {
		defer close(told)
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
	telling  []chan struct{} // each closed when an event of the attach is written down, or cannot be any longer
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
	for _, told := range v.owned.telling {
		select {
		case <-told:
		case <-ctx.Done():
			return giveUp(ctx.Err())
		}
	}
	v.halt(ErrClosed) // nothing else changes the head from here on
	if err := v.update(ctx, func(h *Head) error {
		h.Released = &Released{Epoch: h.Epoch, Write: h.Write, Nonce: NewID(), Journal: *h.Journal}
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
