package host

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/remora-storage/remora/remote/store"
	"github.com/remora-storage/remora/volume"
)

// States of journals.
const (
	JournalInUse   = "in use"  // its volume is attached here, or being attached
	JournalKept    = "kept"    // its volume goes on from it when it is attached here
	JournalOrphan  = "orphan"  // its volume has gone on without it, or is no more
	JournalUnknown = "unknown" // that cannot be seen now
)

// A Journal is one of this node's, and what is known of it.
type Journal struct {
	volume.Stray
	Name, Store string // of its volume, "" if they are not known
	State       string
	Why         string // it is in this state
	volume.Content
	// Writes and Bytes are what it has that the store did not have when the volume went on without it, or does not have. Where
	// that is not known they are what it holds at all, and AtMost is set. They are not known while it is in use.
	Writes uint64
	Bytes  int64
	AtMost bool

	from store.Store // that the volume is in
}

// Journals are what a Host knows of its journals.
type Journals struct {
	h    *Host
	rest func(ctx context.Context, took time.Duration) error // after each read of a journal, nil for none
}

// Errors that callers act on.
var (
	// ErrNoJournal says that this node has no journal that is called so.
	ErrNoJournal = errors.New("no such journal on this node")
	// ErrJournalInUse says that a journal's volume is attached here.
	ErrJournalInUse = errors.New("its volume is attached here")
	// ErrOnlyCopy says that a journal may have what no store has.
	ErrOnlyCopy = errors.New("no other copy is known of what the journal holds")
)

// JournalsOf returns what is known of a node's journals.
func JournalsOf(h *Host) Journals { return Journals{h: h} }

// Strays returns how many journals are not of a volume that is attached here. It asks no store.
func (j Journals) Strays() (n int, err error) {
	all, err := j.h.journals.All()
	for _, s := range all {
		if !j.uses(s.Volume) || s.Orphan {
			n++
		}
	}
	return n, err
}

// uses reports whether a volume is this node's, or is being taken.
func (j Journals) uses(id volume.ID) bool {
	j.h.mu.Lock()
	defer j.h.mu.Unlock()
	return j.usesLocked(id)
}

func (j Journals) usesLocked(id volume.ID) bool {
	h := j.h
	return h.open[id] != nil || slices.ContainsFunc(h.record.Attached, func(a Attached) bool { return a.ID == id })
}

// List returns this node's journals. A store that does not answer makes its volumes' unknown.
func (j Journals) List(ctx context.Context) ([]Journal, error) {
	strays, err := j.h.journals.All()
	if err != nil {
		return nil, err
	}
	all := make([]Journal, 0, len(strays))
	for _, s := range strays {
		all = append(all, j.look(ctx, s))
	}
	return all, nil
}

// find returns the journal whose id begins so.
func (j Journals) find(ctx context.Context, id string) (found Journal, err error) {
	all, err := j.h.journals.All()
	if err != nil {
		return found, err
	}
	all = slices.DeleteFunc(all, func(s volume.Stray) bool { return id == "" || !strings.HasPrefix(s.ID.String(), id) })
	switch len(all) {
	case 0:
		return found, fmt.Errorf("journal %s: %w", id, ErrNoJournal)
	case 1:
		return j.look(ctx, all[0]), nil
	}
	return found, fmt.Errorf("journal %s: %w: %d begin so", id, ErrNoJournal, len(all))
}

// look says what is known of a journal.
func (j Journals) look(ctx context.Context, s volume.Stray) (k Journal) {
	k.Stray, k.State = s, JournalUnknown
	j.h.mu.Lock()
	known, ok := j.h.record.Had[s.Volume]
	using := j.usesLocked(s.Volume)
	j.h.mu.Unlock()
	if k.Name, k.Store = known.Name, known.Store; using && !s.Orphan {
		k.State = JournalInUse
		return k
	}
	f, err := j.h.journals.OpenStray(s)
	if err != nil {
		k.Why = err.Error()
		return k
	}
	defer f.Close()
	if j.rest != nil {
		f = restful{f, func(took time.Duration) error { return j.rest(ctx, took) }}
	}
	var fate volume.Fate
	if k.Content, err = volume.ReadJournal(f, s.Volume, s.ID, 0); err == nil {
		fate, err = j.fate(ctx, &k, ok, func(ctx context.Context, s store.Store) (volume.Fate, error) {
			return volume.FateOf(ctx, s, k.Volume, k.ID, k.Epoch)
		})
	}
	if err != nil {
		k.Why = err.Error()
		k.AtMost, k.Writes, k.Bytes = true, k.Last, k.Content.Bytes
		return k
	}
	switch {
	case fate.Head == nil:
		k.State, k.Why = JournalOrphan, "the volume is no more"
	case fate.Named:
		k.State, k.Why = JournalKept, "attach the volume here to store what it holds"
	case fate.Head.Owner != nil:
		k.State, k.Why = JournalOrphan, fmt.Sprintf("node %s has the volume, in epoch %d", fate.Head.Owner.Node, fate.Head.Epoch)
	default:
		k.State, k.Why = JournalOrphan, fmt.Sprintf("the volume has gone on without it, to epoch %d", fate.Head.Epoch)
	}
	after := fate.Write
	if k.AtMost = !fate.Certain && k.Last > 0; k.AtMost {
		after = 0
	}
	if k.Last <= after {
		return k
	}
	k.Writes, k.Bytes = k.Last-max(after, k.First-1), k.Content.Bytes
	if after < k.First {
		return k // all of it
	}
	left, err := volume.ReadJournal(f, s.Volume, s.ID, after)
	if err != nil {
		k.Why, k.AtMost = err.Error(), true
		return k
	}
	k.Bytes = left.Bytes
	return k
}

// asker asks a store what became of a journal.
type asker func(ctx context.Context, s store.Store) (volume.Fate, error)

// fate finds the store of a journal's volume, and what became of the volume there.
func (j Journals) fate(ctx context.Context, k *Journal, known bool, ask asker) (f volume.Fate, err error) {
	urls := []string{k.Store}
	if !known {
		urls = j.h.Stores()
	}
	var failed error
	for _, url := range urls {
		s, err := finder{j.h}.find(ctx, url)
		if err == nil {
			asking, stop := context.WithTimeout(ctx, patience)
			f, err = ask(asking, s)
			stop()
		}
		switch {
		case err != nil:
			failed = errors.Join(failed, err)
		case f.Head != nil || known:
			if k.Store, k.from = s.url, s; f.Head != nil {
				k.Name = f.Head.Name
			}
			return f, nil
		}
	}
	if failed == nil && len(urls) == 0 {
		failed = errors.New("this node knows no store")
	}
	return volume.Fate{Certain: true}, failed
}

// Remove removes a journal. It refuses what is in use, and what may be the only copy unless that is accepted.
func (j Journals) Remove(ctx context.Context, id string, acceptLoss bool) (Journal, error) {
	k, err := j.find(ctx, id)
	if err != nil {
		return k, err
	}
	return k, j.remove(k, acceptLoss)
}

func (j Journals) remove(k Journal, acceptLoss bool) error {
	switch {
	case k.State == JournalInUse:
		return fmt.Errorf("journal %s: %w", k.ID, ErrJournalInUse)
	case !acceptLoss && (k.Writes > 0 || k.State == JournalUnknown):
		return fmt.Errorf("journal %s: %w: salvage it, or give that up (--accept-loss)", k.ID, ErrOnlyCopy)
	}
	j.h.mu.Lock() // so that nobody attaches its volume meanwhile
	defer j.h.mu.Unlock()
	if j.usesLocked(k.Volume) && !k.Orphan {
		return fmt.Errorf("journal %s: %w", k.ID, ErrJournalInUse)
	}
	return j.h.journals.RemoveStray(k.Stray)
}

// Salvage makes a read-only volume of a journal and of what its volume was before, in the volume's store or the one that is named.
func (j Journals) Salvage(ctx context.Context, id, url, into string, progress func(string)) (made *volume.Salvaged, at string, err error) {
	k, err := j.find(ctx, id)
	if err != nil {
		return nil, "", err
	}
	if k.State == JournalInUse {
		return nil, "", fmt.Errorf("journal %s: %w, with all that it holds", k.ID, ErrJournalInUse)
	}
	if url != "" || k.from == nil {
		if url == "" {
			return nil, "", fmt.Errorf("journal %s: the store of its volume is not known (%s): name it with --store", k.ID, k.Why)
		}
		s, err := finder{j.h}.find(ctx, url)
		if err != nil {
			return nil, "", err
		}
		k.from, k.Store = s, s.url
	}
	f, err := j.h.journals.OpenStray(k.Stray)
	if err != nil {
		return nil, "", err
	}
	defer f.Close()
	if made, err = volume.Salvage(ctx, k.from, k.Volume, k.ID, f, into, progress); err != nil {
		return nil, "", fmt.Errorf("journal %s: %w", k.ID, err)
	}
	return made, k.Store, j.h.Remember(into, k.Store)
}
