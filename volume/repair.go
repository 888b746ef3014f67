package volume

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/remora-storage/remora/remote/store"
)

// ErrBeyondRepair says that no copy of what is broken exists.
var ErrBeyondRepair = errors.New("beyond repair")

// Repair makes the map anew of a volume that nobody owns, if it cannot be read as a whole: from the newest root from which
// every node can be, and the segments since. What the lost nodes said is all in those, if all are there: with one missing,
// blocks that it says were trimmed would come back. It returns what it did, "" if there was nothing to do.
func Repair(ctx context.Context, st store.Store, name string, progress func(what string)) (done string, err error) {
	id, err := lookupID(ctx, st, name)
	if err != nil {
		return "", err
	}
	h, version, err := readHead(ctx, st, id)
	if errors.Is(err, ErrCorrupt) {
		return "", fmt.Errorf("%w: the head is the only one: %w", ErrBeyondRepair, err)
	}
	if err != nil {
		return "", err
	}
	if h.Owner != nil {
		return "", fmt.Errorf("%s: %w by node %s: detach it first", name, ErrAttached, h.Owner.Node)
	}
	w := quiet()
	nodes := newMapNodes(st, id, defaultMemory/4, w)
	progress("the map")
	_, err = readMap(ctx, nodes, h.Root)
	if err == nil {
		return "", nil
	}
	if !errors.Is(err, ErrCorrupt) && !errors.Is(err, store.ErrNoObject) {
		return "", err
	}
	progress("older roots")
	root, ref, err := newestRoot(ctx, nodes, h)
	if err != nil {
		return "", err
	}
	progress("the log")
	later, changes, err := segmentsAfter(ctx, st, h, root.Segment)
	if err != nil {
		return "", err
	}
	cp, err := makeCheckpoint(ctx, nodes, root, ref, h.Gen+1, h.Write, later, changes, func(ctx context.Context, key string, p []byte) error {
		_, err := st.Put(ctx, key, p)
		return err
	})
	if err != nil {
		return "", err
	}
	next := h.clone()
	next.next()
	next.Epoch++
	next.Root, next.Tail = &cp.ref, nil
	_, _, swapped, err := swapHead(ctx, st, h, next, version, w)
	if err != nil {
		return "", err
	}
	if !swapped {
		return "", fmt.Errorf("%s: %w meanwhile", name, ErrAttached)
	}
	done = fmt.Sprintf("the map was made anew from that of segment %d and %d segments since", root.Segment, len(later))
	return done, Event{Time: time.Now().UTC(), Volume: id, Name: name, What: EventRepair, Detail: done}.Store(ctx, st)
}

// readMap returns a map's root, and fails unless every node can be read.
func readMap(ctx context.Context, nodes *mapNodes, ref *NodeRef) (*mapRoot, error) {
	root, err := readRoot(ctx, nodes, ref)
	if err == nil {
		err = readable(ctx, nodes, root)
	}
	return root, err
}

// readable fails unless every node of a map can be read.
func readable(ctx context.Context, nodes *mapNodes, root *mapRoot) error {
	nothing := func(NodeRef, *mapNode) error { return nil }
	if err := nodes.walk(ctx, root.Extents, extentNode, nothing); err != nil {
		return err
	}
	return nodes.walk(ctx, root.Segments, segmentNode, nothing)
}

// newestRoot finds the newest root before that of a head from which every node can be read. A volume's first one is empty.
func newestRoot(ctx context.Context, nodes *mapNodes, h *Head) (*mapRoot, *NodeRef, error) {
	type pack struct {
		packID
		size int64
	}
	var packs []pack
	prefix := volumePrefix(h.ID)
	if err := nodes.store.List(ctx, prefix+"map/", func(o store.Object) bool {
		if k, ok := parsePackKey(strings.TrimPrefix(o.Key, prefix)); ok && k.gen <= h.Gen {
			packs = append(packs, pack{k, o.Size})
		}
		return true
	}); err != nil {
		return nil, nil, err
	}
	slices.SortFunc(packs, func(a, b pack) int { return cmp.Compare(b.gen, a.gen) })
	for _, k := range packs {
		if k.size < packFooter {
			continue
		}
		p, _, err := nodes.store.Get(ctx, k.key(h.ID), k.size-packFooter, packFooter)
		if err != nil {
			return nil, nil, err
		}
		ref, err := decodePackFooter(p, k.packID)
		if err != nil || ref.Len == 0 || ref.check() != nil {
			continue
		}
		root, err := readRoot(ctx, nodes, &ref)
		if err == nil && root.Write <= h.Write && root.Segment <= h.Segment {
			err = readable(ctx, nodes, root)
		}
		if err == nil {
			return root, &ref, nil
		}
		if !errors.Is(err, ErrCorrupt) && !errors.Is(err, store.ErrNoObject) {
			return nil, nil, err
		}
	}
	return &mapRoot{}, nil, nil
}

// segmentsAfter returns the segments that count and are later than one, and what they hold.
func segmentsAfter(ctx context.Context, st store.Store, h *Head, after uint64) ([]SegmentRef, *extents, error) {
	counts := map[uint64]SegmentRef{}
	prefix := volumePrefix(h.ID)
	if err := st.List(ctx, prefix+"seg/", func(o store.Object) bool {
		r, ok := parseSegmentKey(strings.TrimPrefix(o.Key, prefix))
		r.Size = uint32(min(o.Size, maxSegment))
		// Of two with one number the later epoch's counts: it began where the log ended that was committed.
		if ok && r.Seq > after && r.Seq <= h.Segment && r.Epoch <= h.Epoch && r.Epoch >= counts[r.Seq].Epoch {
			counts[r.Seq] = r
		}
		return true
	}); err != nil {
		return nil, nil, err
	}
	var refs []SegmentRef
	for _, r := range counts {
		refs = append(refs, r)
	}
	slices.SortFunc(refs, func(a, b SegmentRef) int { return cmp.Compare(a.Seq, b.Seq) })
	if want := h.Segment - after; uint64(len(refs)) != want { // committed segments are numbered without a gap
		return nil, nil, fmt.Errorf("%w: the newest map that can be read is of segment %d, and of the %d segments since %d are not there",
			ErrBeyondRepair, after, want, want-uint64(len(refs)))
	}
	changes := &extents{}
	for i := range refs {
		var err error
		if refs[i], err = findTable(ctx, st, h.ID, refs[i]); errors.Is(err, ErrCorrupt) {
			err = fmt.Errorf("segment %d: %w: %w", refs[i].Seq, ErrBeyondRepair, err)
		}
		if err != nil {
			return nil, nil, err
		}
		found, err := readTable(ctx, st, h.ID, refs[i], h.Size)
		if err != nil {
			return nil, nil, err
		}
		for _, e := range found {
			changes.setNewer(e)
		}
	}
	return refs, changes, nil
}
