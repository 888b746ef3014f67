package volume

import (
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/internal/wire"
	"github.com/remora-storage/remora/remote/store"
)

// A Content is what the records of a journal hold.
type Content struct {
	Epoch       uint64 // of the last one
	First, Last uint64 // writes; Last is 0 if there is none
	Bytes       int64  // of data
}

// ReadJournal returns what a journal holds of the writes after one. With ErrCorrupt that is what can be read.
func ReadJournal(disk Disk, vid, id ID, after uint64) (c Content, err error) {
	r, err := replay(disk, vid, id, nil, false, func(first uint64, entries []entry, _ cursor) {
		if c.Last == 0 {
			c.First = first
		}
		for i, e := range entries {
			if c.Last = first + uint64(i); c.Last > after {
				c.Bytes += int64(len(e.data))
			}
		}
	})
	if r != nil {
		c.Epoch = r.epoch
	}
	return c, err
}

// A Fate is what became of a journal's history in the store of its volume.
type Fate struct {
	Head *Head // nil if the volume is no more
	// Named says that the head names the journal: the volume goes on from there when it is attached on the journal's node.
	Named bool
	// Write is the last one that the store had when the volume went on without the journal, or has.
	Write uint64
	// Certain says that Write is known, not concluded. All may be missing that the journal holds, where it is not. A node that was fenced
	// and kept the volume has made an epoch of which no event tells: what became of the journals of those before it is not certain.
	Certain bool
}

// FateByHead is FateOf as far as the volume's head alone tells. Where it is Certain nothing of the journal needs to be known.
func FateByHead(ctx context.Context, st store.Store, vid, id ID) (f Fate, err error) {
	h, _, err := readHead(ctx, st, vid)
	if errors.Is(err, ErrNotFound) || err == nil && h.removing() {
		return Fate{Certain: true}, nil
	}
	if err != nil {
		return f, err
	}
	named := h.Journal != nil && h.Journal.ID == id
	return Fate{Head: h, Write: h.Write, Named: named, Certain: named}, nil
}

// FateOf finds out what became of a journal whose last record is of an epoch. Its volume may be no more; that is no error.
func FateOf(ctx context.Context, st store.Store, vid, id ID, epoch uint64) (f Fate, err error) {
	f, err = FateByHead(ctx, st, vid, id)
	if err != nil || f.Certain {
		return f, err
	}
	h := f.Head
	if h.Epoch == epoch { // given up with everything
		f.Certain = h.Owner == nil && h.Journal == nil
		return f, nil
	}
	events, err := Events(ctx, st, vid)
	if err != nil {
		return f, err
	}
	first := uint64(math.MaxUint64)
	for _, e := range events {
		if e.Epoch > epoch && e.Epoch < first {
			first, f.Write = e.Epoch, e.Write
		}
	}
	f.Certain = first == epoch+1
	return f, nil
}

// Salvaged is what Salvage has made.
type Salvaged struct {
	Rebuilt
	Journal     ID     `json:"journal"`
	FirstWrite  uint64 `json:"first_write"`   // that the journal holds
	LastWrite   uint64 `json:"last_write"`    //
	JournalSize int64  `json:"journal_bytes"` // of data that is the journal's
}

// Salvage makes a new, read-only volume of what a journal holds and what its volume was before: its last commit in the epoch of the
// journal's last record, as far as the store still has it. Neither the journal nor the volume is changed.
func Salvage(ctx context.Context, st store.Store, vid, id ID, journal Disk, to string, progress func(what string)) (*Salvaged, error) {
	if err := nameFree(ctx, st, to); err != nil {
		return nil, err
	}
	c, err := ReadJournal(journal, vid, id, math.MaxUint64)
	s := Salvaged{Journal: id, FirstWrite: c.First, LastWrite: c.Last}
	b := newRebuild(st, vid, to, progress)
	switch {
	case errors.Is(err, ErrCorrupt):
		b.Problems = append(b.Problems, err.Error())
	case err != nil:
		return nil, err
	}
	fate, err := FateOf(ctx, st, vid, id, c.Epoch)
	if err != nil {
		return nil, err
	}
	b.before = &Head{ID: vid, Gen: math.MaxUint64, Segment: math.MaxUint64, Epoch: c.Epoch, Write: fate.Write}
	if fate.Named { // its node may have begun again, and written no record
		b.before.Epoch = fate.Head.Epoch
	}
	b.journal = journal
	if err := b.collect(ctx); err != nil {
		return nil, err
	}
	switch {
	case fate.Head == nil:
		b.Problems = append(b.Problems, "the volume is no more: what the journal does not hold reads as zeros")
	case c.Last > 0 && c.First > max(b.Write, fate.Write)+1:
		b.Problems = append(b.Problems, fmt.Sprintf("writes %d to %d were in neither the journal nor the store",
			max(b.Write, fate.Write)+1, c.First-1))
	}
	if err := b.add(vid, id); err != nil {
		return nil, err
	}
	b.found.all(func(e extent) bool {
		if e.place.seg == 0 && !e.hole {
			s.JournalSize += int64(e.blocks) * Block
		}
		return true
	})
	if err := b.finish(ctx, Event{What: EventSalvage, Detail: fmt.Sprintf("of journal %s of volume %s: writes %d to %d, on %s; %d are missing",
		id, vid, c.First, c.Last, b.Base(), b.Missing)}); err != nil {
		return nil, err
	}
	s.Rebuilt = b.Rebuilt
	return &s, nil
}

// add puts what the journal holds over what the store had.
func (b *rebuild) add(vid, id ID) error {
	_, err := replay(b.journal, vid, id, nil, false, func(first uint64, entries []entry, _ cursor) {
		for i, e := range entries {
			x := extent{lba: e.lba, blocks: e.blocks, hole: e.hole, seq: first + uint64(i)}
			if !e.hole {
				x.place = place{off: e.pos, whole: e.blocks, crc: e.sum}
			}
			b.found.setNewer(x)
			b.certain.set(x) // what is newer in a segment is of the journal's history as well
			b.Write = max(b.Write, x.seq)
		}
	})
	if errors.Is(err, ErrCorrupt) { // it was said
		err = nil
	}
	b.measure()
	return err
}

// rootBefore returns a root if its map holds nothing of an epoch after the journal's, else an empty one.
func (b *rebuild) rootBefore(ctx context.Context, root *mapRoot) (*mapRoot, error) {
	later := false
	err := b.nodes.walk(ctx, root.Segments, segmentNode, func(_ NodeRef, n *mapNode) error {
		for _, s := range n.segments {
			later = later || s.Epoch > b.before.Epoch
		}
		return nil
	})
	if later {
		root = &mapRoot{}
	}
	return root, err
}

// overlay puts in what the volume still has of the time before, where something of that time is missing: it is certain, since nobody
// has written there since.
func (b *rebuild) overlay(ctx context.Context) error {
	if b.Write < b.before.Write { // the end of the log
		b.Missing++
		b.doubt = math.MaxUint64
	}
	if b.Missing == 0 {
		return nil
	}
	root, err := readMap(ctx, b.nodes, b.head.Root)
	if errors.Is(err, ErrCorrupt) || errors.Is(err, store.ErrNoObject) {
		return nil
	}
	if err != nil {
		return err
	}
	refs := map[uint64]SegmentRef{}
	if err := b.nodes.walk(ctx, root.Segments, segmentNode, func(_ NodeRef, n *mapNode) error {
		for _, s := range n.segments {
			if s.Epoch <= b.before.Epoch {
				refs[s.Seq] = s.SegmentRef
			}
		}
		return nil
	}); err != nil {
		return err
	}
	return b.nodes.lookup(ctx, root.Extents, 0, MaxSize/Block, func(e extent) bool {
		if ref, ok := refs[e.place.seg]; ok {
			b.refs[e.place.seg] = ref
			b.found.set(e)
			b.certain.set(e)
		}
		return true
	})
}

// readJournal returns the blocks of an extent that lies in the journal.
func readJournal(disk Disk, e extent) ([]byte, error) {
	p := blockdev.AlignedBuffer(int(e.place.whole) * Block)
	ring := disk.Size() - journalRing
	if _, err := disk.ReadAt(p, ringPlace(ring, e.place.off)); err != nil {
		return nil, err
	}
	if wire.Sum(p) != e.place.crc {
		return nil, fmt.Errorf("block %d of the journal: %w", e.lba, ErrCorrupt)
	}
	return p[int(e.place.skip)*Block:][:int(e.blocks)*Block], nil
}
