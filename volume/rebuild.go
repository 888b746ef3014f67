package volume

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/remora-storage/remora/remote/store"
)

// Rebuilt is what Rebuild has made, and how far it can be trusted.
type Rebuilt struct {
	From    ID     `json:"from"`
	ID      ID     `json:"id"`
	Name    string `json:"name"`
	Size    int64  `json:"size_bytes"`
	Guessed bool   `json:"size_guessed"` // the head is lost: Size is where the last block ends that is known
	Write   uint64 `json:"write"`        // the last one that was found

	// Map is the segment up to which a map could be read, 0 if none could. Nothing before is in doubt.
	Map      uint64   `json:"map_segment"`
	Segments int      `json:"segments"` // that were read after it
	Ignored  int      `json:"ignored"`  // segments that never counted
	Missing  uint64   `json:"missing"`  // segments after the map that are not there: deleted with all that they held, or lost
	Problems []string `json:"problems"`

	Bytes int64   `json:"mapped_bytes"`
	Stale []Range `json:"stale"` // blocks that a missing segment may have written or trimmed later
	Lost  []Range `json:"lost"`  // blocks whose bytes are wrong in the store; they read as zeros
}

// Base says what the volume was made of.
func (r *Rebuilt) Base() string {
	if r.Map == 0 {
		return fmt.Sprintf("no map, %d segments alone", r.Segments)
	}
	return fmt.Sprintf("the map as of segment %d, and %d segments since", r.Map, r.Segments)
}

// A Range is a part of a volume.
type Range struct {
	Off int64 `json:"offset"` // bytes
	Len int64 `json:"length"` // bytes
}

// addRange appends the blocks of e, which comes behind all that is there.
func addRange(all []Range, e extent) []Range {
	off, n := int64(e.lba)*Block, int64(e.blocks)*Block
	if k := len(all); k > 0 && all[k-1].Off+all[k-1].Len == off {
		all[k-1].Len += n
		return all
	}
	return append(all, Range{off, n})
}

// Rebuild makes a new volume, which is read-only, of what is left of another one: of the newest map that can be read and the
// segments since, or of segments alone. It is for when Repair cannot help: a head is lost, or segments are missing. from
// is a name, or an ID in hexadecimal if the name is lost as well. Nothing that exists is changed.
func Rebuild(ctx context.Context, st store.Store, from, to string, progress func(what string)) (*Rebuilt, error) {
	if err := CheckName(to); err != nil {
		return nil, err
	}
	id, err := lookupID(ctx, st, from)
	if err != nil {
		var ierr error
		if id, ierr = ParseID(from); ierr != nil {
			return nil, err
		}
	}
	if err := nameFree(ctx, st, to); err != nil {
		return nil, err
	}
	b := newRebuild(st, id, to, progress)
	if err := b.collect(ctx); err != nil {
		return nil, err
	}
	b.measure()
	return &b.Rebuilt, b.finish(ctx, Event{What: EventRebuild,
		Detail: fmt.Sprintf("of volume %s: %s; %d are missing", b.From, b.Base(), b.Missing)})
}

// nameFree fails unless a volume may be made that is called so.
func nameFree(ctx context.Context, st store.Store, name string) error {
	_, err := lookupID(ctx, st, name)
	switch {
	case err == nil:
		return fmt.Errorf("%s: %w", name, ErrNameTaken)
	case errors.Is(err, ErrNotFound):
		return nil
	}
	return err
}

func newRebuild(st store.Store, from ID, to string, progress func(what string)) *rebuild {
	b := &rebuild{store: st, progress: progress, nodes: newMapNodes(st, from, defaultMemory/4, quiet()), refs: map[uint64]SegmentRef{}}
	b.From, b.Name, b.Problems, b.Stale, b.Lost = from, to, []string{}, []Range{}, []Range{}
	return b
}

// finish makes the new volume of what was found, and tells of it.
func (b *rebuild) finish(ctx context.Context, e Event) error {
	b.ID = NewID()
	if err := b.copy(ctx); err != nil {
		_, derr := removeObjects(context.WithoutCancel(ctx), b.store, b.ID)
		return errors.Join(err, derr)
	}
	e.Time, e.Volume, e.Name = time.Now().UTC(), b.ID, b.Name
	return e.Store(ctx, b.store)
}

type rebuild struct {
	Rebuilt
	store    store.Store
	nodes    *mapNodes
	progress func(string)

	head  *Head // nil if it cannot be read
	refs  map[uint64]SegmentRef
	found extents
	doubt uint64 // what is older than this segment may be stale

	// Of a journal that is salvaged: the log that it follows has no write, segment or epoch after this head's.
	before  *Head
	journal Disk
	certain extents // that are not in doubt, whatever is missing
}

// leftover is a segment that was found in the store.
type leftover struct {
	ref   SegmentRef
	at    logPosition
	table []extent
}

// collect finds out which blocks are where.
func (b *rebuild) collect(ctx context.Context) error {
	h, _, err := readHead(ctx, b.store, b.From)
	switch {
	case err == nil:
		b.head, b.Size = h, h.Size
	case errors.Is(err, ErrCorrupt), errors.Is(err, ErrNotFound):
		b.Problems = append(b.Problems, err.Error())
		h = &Head{ID: b.From, Gen: math.MaxUint64, Write: math.MaxUint64, Segment: math.MaxUint64, Epoch: math.MaxUint64}
	default:
		return err
	}
	if b.before != nil {
		h = b.before
	}
	b.progress("maps")
	root, err := b.newestMap(ctx, h)
	if err != nil {
		return err
	}
	if b.before != nil {
		if root, err = b.rootBefore(ctx, root); err != nil {
			return err
		}
	}
	b.Map = root.Segment
	b.progress("segments")
	all, err := b.leftovers(ctx, h, root.Segment)
	if err != nil {
		return err
	}
	if err := b.nodes.lookup(ctx, root.Extents, 0, MaxSize/Block, func(e extent) bool {
		b.found.set(e)
		return true
	}); err != nil {
		return err
	}
	if err := b.nodes.walk(ctx, root.Segments, segmentNode, func(_ NodeRef, n *mapNode) error {
		for _, s := range n.segments {
			b.refs[s.Seq] = s.SegmentRef
		}
		return nil
	}); err != nil {
		return err
	}
	b.Write = root.Write
	last := root.Segment
	all = counting(all, root.Segment)
	b.Ignored -= len(all)
	for _, s := range all {
		if gap := s.at.seq - last - 1; gap > 0 {
			b.Missing += gap
			b.doubt = s.at.seq
		}
		last = s.at.seq
		b.refs[s.at.seq] = s.ref
		b.Write = max(b.Write, s.at.write)
		for _, e := range s.table {
			b.found.setNewer(e)
		}
	}
	if b.head != nil && b.before == nil && last < b.head.Segment { // the end of the log is lost
		b.Missing += b.head.Segment - last
		b.doubt = math.MaxUint64
	}
	b.Segments = len(all)
	if b.before != nil && b.head != nil {
		return b.overlay(ctx)
	}
	return nil
}

// measure says how much was found, and what of it is in doubt.
func (b *rebuild) measure() {
	if b.head == nil {
		b.Guessed = true
		b.Size = MinSize
	}
	var stale extents
	unsure := b.before != nil && b.Missing > 0 // of what was written over since nobody knows what was there
	if unsure {
		stale.cover(uint64(b.Size / Block))
	}
	b.found.all(func(e extent) bool {
		if b.Guessed {
			b.Size = max(b.Size, int64(e.end())*Block)
		}
		switch { // a hole does not say since when
		case e.place.seg > 0 && e.place.seg < b.doubt:
			stale.set(e)
		case e.place.seg > 0:
			stale.clear(e.lba, e.end())
		}
		if !e.hole {
			b.Bytes += int64(e.blocks) * Block
		}
		return true
	})
	b.certain.all(func(e extent) bool {
		stale.clear(e.lba, e.end())
		return true
	})
	stale.all(func(e extent) bool {
		b.Stale = addRange(b.Stale, e)
		return true
	})
}

// newestMap returns the newest map that can be read as a whole, an empty one if none can.
func (b *rebuild) newestMap(ctx context.Context, h *Head) (*mapRoot, error) {
	if b.head != nil && b.before == nil && h.Root != nil {
		root, err := readMap(ctx, b.nodes, h.Root)
		if err == nil {
			return root, nil
		}
		if !errors.Is(err, ErrCorrupt) && !errors.Is(err, store.ErrNoObject) {
			return nil, err
		}
		b.Problems = append(b.Problems, err.Error())
	}
	root, _, err := newestRoot(ctx, b.nodes, h)
	return root, err
}

// leftovers reads the tables of all segments after one that can be read and may count. Ignored counts all others, and those
// too for now.
func (b *rebuild) leftovers(ctx context.Context, h *Head, after uint64) (all []leftover, err error) {
	var refs []SegmentRef
	prefix := volumePrefix(b.From)
	if err := b.store.List(ctx, prefix+"seg/", func(o store.Object) bool {
		r, ok := parseSegmentKey(strings.TrimPrefix(o.Key, prefix))
		if r.Size = uint32(min(o.Size, maxSegment)); ok && r.Seq > after {
			b.Ignored++
			if r.Seq <= h.Segment && r.Epoch <= h.Epoch {
				refs = append(refs, r)
			}
		}
		return true
	}); err != nil {
		return nil, err
	}
	size := int64(MaxSize)
	if b.head != nil {
		size = b.head.Size
	}
	var mu sync.Mutex
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for _, r := range refs {
		g.Go(func() error {
			s, err := readLeftover(ctx, b.store, b.From, r, size)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				all = append(all, s)
			case errors.Is(err, ErrCorrupt), errors.Is(err, ErrVersion), errors.Is(err, store.ErrNoObject):
				b.Problems = append(b.Problems, fmt.Sprintf("%s: %v", r.key(b.From), err))
			default:
				return err
			}
			return nil
		})
	}
	return all, g.Wait()
}

// readLeftover reads what a segment says of itself.
func readLeftover(ctx context.Context, st store.Store, id ID, r SegmentRef, size int64) (s leftover, err error) {
	p, _, err := st.Get(ctx, r.key(id), 0, segmentHeader)
	if err != nil {
		return s, err
	}
	var random uint32
	if s.at, random, err = decodeSegmentHeader(p); err != nil {
		return s, err
	}
	if s.at.id != id || s.at.seq != r.Seq || s.at.epoch != r.Epoch || random != r.Random {
		return s, fmt.Errorf("%w: its header is another segment's", ErrCorrupt)
	}
	if s.ref, err = findTable(ctx, st, id, r); err != nil {
		return s, err
	}
	s.table, err = readTable(ctx, st, id, s.ref, size)
	return s, err
}

// counting returns which segments count, in the order of the log: an epoch begins with the last write that was committed in
// those before, and with the number after the last segment that was. What those have beyond never counted.
func counting(all []leftover, after uint64) []leftover {
	slices.SortFunc(all, func(a, b leftover) int {
		return cmp.Or(cmp.Compare(b.at.epoch, a.at.epoch), cmp.Compare(a.at.seq, b.at.seq))
	})
	write, seq := uint64(math.MaxUint64), uint64(math.MaxUint64)
	var counts []leftover
	for len(all) > 0 {
		n := 1
		for n < len(all) && all[n].at.epoch == all[0].at.epoch {
			n++
		}
		begin, first := write, seq
		for _, s := range all[:n] {
			if s.at.write <= write && s.at.seq < seq {
				counts = append(counts, s)
			}
			begin, first = min(begin, s.at.after), min(first, s.at.seq)
		}
		write, seq = begin, first
		all = all[n:]
	}
	slices.SortFunc(counts, func(a, b leftover) int { return cmp.Compare(a.at.seq, b.at.seq) })
	return slices.DeleteFunc(counts, func(s leftover) bool { return s.at.seq <= after })
}

// copy makes the new volume: a segment for each of the old one that is in use, and what the journal has of it.
func (b *rebuild) copy(ctx context.Context) error {
	put := func(ctx context.Context, key string, p []byte) error {
		_, err := b.store.Put(ctx, key, p)
		return err
	}
	var refs []SegmentRef
	var lost, located extents
	groups := b.groups()
	for i, group := range groups {
		if i%16 == 0 {
			b.progress(fmt.Sprintf("segment %d of %d", i+1, len(groups)))
		}
		blocks, err := b.blocks(ctx, group[0].place.seg)
		if err != nil {
			return err
		}
		frames := int64(0)
		for _, e := range group {
			frames += frameSize(e.blocks)
		}
		w := newSegmentWriter(logPosition{id: b.ID, epoch: 1, seq: uint64(len(refs)) + 1, previous: uint64(len(refs)), write: b.Write},
			random32(), make([]byte, 0, segmentCapacity(frames, len(group))))
		for _, e := range group {
			p, err := blocks(e)
			switch {
			case errors.Is(err, ErrCorrupt):
				lost.set(e)
			case err != nil:
				return err
			default:
				copy(w.frame(e), p)
			}
		}
		if len(w.extents) == 0 {
			continue
		}
		q, made, all := w.finish()
		if err := put(ctx, made.key(b.ID), q); err != nil {
			return err
		}
		refs = append(refs, made)
		for _, e := range all {
			located.set(e)
		}
	}
	lost.all(func(e extent) bool {
		b.Lost = addRange(b.Lost, e)
		b.Bytes -= int64(e.blocks) * Block
		return true
	})
	h := &Head{ID: b.ID, Name: b.Name, Mode: ModeReadOnly, Gen: 1, Nonce: NewID(), Size: b.Size, Block: Block, Class: Remote,
		MaxAge: int64(defaultMaxAge / time.Second), Epoch: 1, Segment: uint64(len(refs)), Write: b.Write,
		Created: time.Now().UTC().Truncate(time.Second)}
	if b.head != nil && !strings.HasPrefix(b.head.FS, "making ") { // nobody can make that to its end on a read-only volume
		h.FS = b.head.FS
	}
	nodes := newMapNodes(b.store, b.ID, defaultMemory/4, quiet())
	cp, err := makeCheckpoint(ctx, nodes, &mapRoot{}, nil, h.Gen, h.Write, refs, &located, put)
	if err != nil {
		return err
	}
	h.Root = &cp.ref
	return publish(ctx, b.store, h)
}

// groups returns what is to be copied, each part from one place and no more than a segment holds.
func (b *rebuild) groups() (all [][]extent) {
	by := map[uint64][]extent{}
	b.found.all(func(e extent) bool {
		if !e.hole {
			by[e.place.seg] = append(by[e.place.seg], e)
		}
		return true
	})
	for _, seq := range slices.Sorted(maps.Keys(by)) {
		if seq > 0 {
			all = append(all, by[seq])
			continue
		}
		size := int64(0) // the journal's
		for _, e := range by[seq] {
			if size == 0 {
				all = append(all, nil)
			}
			all[len(all)-1] = append(all[len(all)-1], e)
			if size += frameSize(e.blocks); size >= segmentTarget {
				size = 0
			}
		}
	}
	return all
}

// blocks returns what reads extents of a segment, or of the journal. It says ErrCorrupt of what is not there.
func (b *rebuild) blocks(ctx context.Context, seq uint64) (func(extent) ([]byte, error), error) {
	if seq == 0 {
		return func(e extent) ([]byte, error) { return readJournal(b.journal, e) }, nil
	}
	ref, ok := b.refs[seq]
	var p []byte
	var err error
	if ok {
		p, _, err = b.store.Get(ctx, ref.key(b.From), 0, -1)
	}
	if err != nil && !errors.Is(err, store.ErrNoObject) {
		return nil, err
	}
	return func(e extent) ([]byte, error) {
		end := e.place.off + frameSize(e.place.whole)
		if end > int64(len(p)) {
			return nil, fmt.Errorf("segment %d: %w: it is not there", seq, ErrCorrupt)
		}
		q, err := openFrame(p[e.place.off:end], b.From, ref, e.place.off)
		if err != nil {
			return nil, err
		}
		return q[int(e.place.skip)*Block:], nil
	}, nil
}
