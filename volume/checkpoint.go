package volume

import (
	"cmp"
	"context"
	"slices"

	"github.com/remora-storage/remora/internal/wire"
)

// A checkpoint is a map that holds more of the log than the one before, stored but not named by the head yet.
type checkpoint struct {
	ref      NodeRef
	root     *mapRoot
	segments []SegmentRef // that the map holds now, and the tail need not
	gone     []SegmentRef // segments that neither this map nor the one before uses
	packs    []packID     // and packs
	uploaded int64        // bytes
}

// makeCheckpoint merges what the tail's segments hold into the map. It changes nothing that exists.
func makeCheckpoint(ctx context.Context, nodes *mapNodes, old *mapRoot, oldRef *NodeRef, gen, write uint64, tail []SegmentRef,
	changed *extents, put func(context.Context, string, []byte) error) (*checkpoint, error) {
	m := newMerger(nodes, gen, put)
	m.chooseMoves(old.Packs)
	changes := make([]extent, 0, changed.len())
	changed.all(func(e extent) bool {
		changes = append(changes, e)
		return true
	})
	next := &mapRoot{Write: write}
	var err error
	if next.Extents, err = merge(ctx, m, m.extentTree(), old.Extents, changes); err != nil {
		return nil, err
	}
	fresh := map[uint64]bool{}
	var counts []segmentChange
	for _, s := range tail {
		fresh[s.Seq] = true
		next.Segment = max(next.Segment, s.Seq)
		counts = append(counts, segmentChange{segmentUse{s, m.live[s.Seq]}, true})
	}
	for seq, n := range m.live {
		if !fresh[seq] && n != 0 {
			counts = append(counts, segmentChange{segmentUse{SegmentRef{Seq: seq}, n}, false})
		}
	}
	slices.SortFunc(counts, func(a, b segmentChange) int { return cmp.Compare(a.Seq, b.Seq) })
	if next.Segments, err = merge(ctx, m, m.segmentTree(), old.Segments, counts); err != nil {
		return nil, err
	}
	c := &checkpoint{root: next, segments: tail}
	next.Segment = max(next.Segment, old.Segment)
	next.Blocks = old.Blocks + m.total
	c.gone = old.GoneSegments
	for _, k := range old.GonePacks {
		c.packs = append(c.packs, k.pack())
	}
	for _, s := range m.gone[:min(len(m.gone), maxGone)] {
		next.GoneSegments = append(next.GoneSegments, s.SegmentRef)
	}
	for _, k := range old.Packs {
		id := k.pack()
		k.Live -= m.dead[id]
		if k.Live <= 0 {
			next.GonePacks = append(next.GonePacks, k)
			continue
		}
		next.Packs = append(next.Packs, k)
	}
	next.Packs = append(next.Packs, m.made...)
	if len(m.pack) > 0 { // the one that will hold the root as well
		next.Packs = append(next.Packs, packUse{Gen: m.id.gen, Random: m.id.random, Size: int64(len(m.pack)), Live: int64(len(m.pack))})
	} else {
		m.id = packID{gen, random32()}
	}
	if oldRef != nil && !slices.ContainsFunc(old.Packs, func(k packUse) bool { return k.pack() == oldRef.pack() }) {
		next.GonePacks = append(next.GonePacks, packUse{Gen: oldRef.Gen, Random: oldRef.Random}) // it held the root alone
	}
	p, err := next.encode()
	if err != nil {
		return nil, err
	}
	c.ref = NodeRef{Gen: m.id.gen, Random: m.id.random, Off: uint32(len(m.pack)), Len: uint32(len(p)), Sum: wire.Sum(p)}
	m.pack = append(m.pack, p...)
	if err := m.flush(ctx, c.ref); err != nil {
		return nil, err
	}
	for _, k := range m.made {
		c.uploaded += k.Size
	}
	return c, nil
}

// chooseMoves picks packs that are mostly dead, so that they can be deleted.
func (m *merger) chooseMoves(packs []packUse) {
	byUse := slices.Clone(packs)
	slices.SortFunc(byUse, func(a, b packUse) int { return cmp.Compare(a.Live, b.Live) })
	moved := int64(0)
	for i, k := range byUse {
		tooMany := len(packs)-i > maxPacks/2
		if moved+k.Live > packTarget/4 && !tooMany {
			return
		}
		if k.Live*4 < k.Size || tooMany {
			m.move[k.pack()] = true
			moved += k.Live
		}
	}
}

// readRoot loads the root of a map; that of a volume which never had a checkpoint is empty.
func readRoot(ctx context.Context, nodes *mapNodes, ref *NodeRef) (*mapRoot, error) {
	if ref == nil {
		return &mapRoot{}, nil
	}
	p, err := nodes.bytes(ctx, *ref)
	if err != nil {
		return nil, err
	}
	return decodeRoot(p)
}
