package volume

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"slices"
	"sort"

	"github.com/remora-storage/remora/internal/wire"
)

// A merger makes the trees of a checkpoint from those of the one before and what has changed since. It reads each
// node that has changes once and writes its successors into packs, so that it needs memory for one path of nodes and
// one pack, however large the map is.
type merger struct {
	nodes *mapNodes
	gen   uint64 // of the head that will name the root
	put   func(ctx context.Context, key string, p []byte) error

	pack  []byte
	id    packID
	made  []packUse        // packs that are stored
	dead  map[packID]int64 // bytes of nodes that the new trees do not use
	move  map[packID]bool  // packs that no node may stay in
	live  map[uint64]int64 // change of the number of blocks in use, by segment
	gone  []segmentUse     // segments that are not used any more
	total int64            // change of the number of blocks that the map names
}

func newMerger(nodes *mapNodes, gen uint64, put func(context.Context, string, []byte) error) *merger {
	return &merger{nodes: nodes, gen: gen, put: put, dead: map[packID]int64{}, move: map[packID]bool{}, live: map[uint64]int64{}}
}

func random32() uint32 {
	var p [4]byte
	rand.Read(p[:]) // never fails
	return binary.LittleEndian.Uint32(p[:])
}

// add writes bytes into the pack.
func (m *merger) add(ctx context.Context, p []byte) (NodeRef, error) {
	if len(p) > maxNode {
		return NodeRef{}, fmt.Errorf("map node of %d bytes", len(p)) // the limits of entries forbid it
	}
	if len(m.pack) > 0 && len(m.pack)+len(p) > packTarget {
		if err := m.flush(ctx, NodeRef{}); err != nil {
			return NodeRef{}, err
		}
	}
	if len(m.pack) == 0 {
		m.id = packID{m.gen, random32()}
	}
	ref := NodeRef{Gen: m.id.gen, Random: m.id.random, Off: uint32(len(m.pack)), Len: uint32(len(p)), Sum: wire.Sum(p)}
	m.pack = append(m.pack, p...)
	return ref, nil
}

// flush stores the pack.
func (m *merger) flush(ctx context.Context, root NodeRef) error {
	if len(m.pack) == 0 {
		return nil
	}
	live := int64(len(m.pack)) - int64(root.Len)
	p := appendPackFooter(m.pack, root)
	if err := m.put(ctx, m.id.key(m.nodes.id), p); err != nil {
		return err
	}
	m.made = append(m.made, packUse{Gen: m.id.gen, Random: m.id.random, Size: int64(len(p)), Live: live})
	m.pack = nil
	return nil
}

func (m *merger) node(ctx context.Context, key uint64, n *mapNode) (child, error) {
	ref, err := m.add(ctx, n.encode())
	if err == nil {
		m.nodes.put(ref, n)
	}
	return child{key, ref}, err
}

// A kind is one of the two trees, whose leaves have entries E and are changed by Cs.
type kindOf[E, C any] struct {
	kind    nodeKind
	entries func(*mapNode) []E
	leaf    func([]E) *mapNode
	key     func(E) uint64
	// cut returns the changes that concern keys in [lo, hi), clipped to it.
	cut func(changes []C, lo, hi uint64) []C
	// overlay returns a leaf's entries after its changes, and accounts for them.
	overlay func(old []E, changes []C) []E
}

// merge returns the root of a tree that has the changes, nil if nothing is in it.
func merge[E, C any](ctx context.Context, m *merger, k kindOf[E, C], root *NodeRef, changes []C) (*NodeRef, error) {
	var all []child
	var err error
	level := 0
	if root == nil {
		all, err = leaves(ctx, m, k, k.overlay(nil, changes))
	} else {
		var n *mapNode
		if n, err = m.nodes.load(ctx, *root, k.kind, anyLevel); err != nil {
			return nil, err
		}
		level = n.level
		all, err = mergeNode(ctx, m, k, child{0, *root}, level, 0, 1<<63, changes)
	}
	for err == nil && len(all) > 1 {
		level++
		all, err = inner(ctx, m, k.kind, level, all)
	}
	if err != nil || len(all) == 0 {
		return nil, err
	}
	return &all[0].ref, nil
}

// mergeNode returns what takes the place of a node whose keys are in [lo, hi), on the same level.
func mergeNode[E, C any](ctx context.Context, m *merger, k kindOf[E, C], at child, level int, lo, hi uint64, changes []C) ([]child, error) {
	mine := k.cut(changes, lo, hi)
	moves := m.move[at.ref.pack()]
	if len(mine) == 0 && !moves && (level == 0 || len(m.move) == 0) {
		return []child{at}, nil
	}
	n, err := m.nodes.load(ctx, at.ref, k.kind, level)
	if err != nil {
		return nil, err
	}
	if level == 0 {
		m.dead[at.ref.pack()] += int64(at.ref.Len)
		return leaves(ctx, m, k, k.overlay(k.entries(n), mine))
	}
	var next []child
	var pending []E // of neighbouring leaves that all change: they are cut anew
	settle := func() error {
		made, err := leaves(ctx, m, k, pending)
		next, pending = append(next, made...), nil
		return err
	}
	for i, ch := range n.children {
		from, to := lo, hi
		if i > 0 {
			from = ch.key
		}
		if i+1 < len(n.children) {
			to = n.children[i+1].key
		}
		some := k.cut(mine, from, to)
		if level == 1 && (len(some) > 0 || m.move[ch.ref.pack()]) {
			leaf, err := m.nodes.load(ctx, ch.ref, k.kind, 0)
			if err != nil {
				return nil, err
			}
			m.dead[ch.ref.pack()] += int64(ch.ref.Len)
			pending = append(pending, k.overlay(k.entries(leaf), some)...)
			for len(pending) >= 2*maxLeaf {
				c, err := m.node(ctx, k.key(pending[0]), k.leaf(slices.Clone(pending[:maxLeaf])))
				if err != nil {
					return nil, err
				}
				next, pending = append(next, c), pending[maxLeaf:]
			}
			continue
		}
		if err := settle(); err != nil {
			return nil, err
		}
		made, err := mergeNode(ctx, m, k, ch, level-1, from, to, some)
		if err != nil {
			return nil, err
		}
		next = append(next, made...)
	}
	if err := settle(); err != nil {
		return nil, err
	}
	if slices.Equal(next, n.children) && !moves {
		return []child{at}, nil
	}
	m.dead[at.ref.pack()] += int64(at.ref.Len)
	return inner(ctx, m, k.kind, level, next)
}

// leaves makes leaves of about the same size.
func leaves[E, C any](ctx context.Context, m *merger, k kindOf[E, C], entries []E) (made []child, err error) {
	for _, part := range evenly(entries, maxLeaf) {
		c, err := m.node(ctx, k.key(part[0]), k.leaf(slices.Clone(part))) // a node that is kept must not keep its neighbours
		if err != nil {
			return nil, err
		}
		made = append(made, c)
	}
	return made, nil
}

// inner makes nodes over children.
func inner(ctx context.Context, m *merger, kind nodeKind, level int, children []child) (made []child, err error) {
	for _, part := range evenly(children, maxChildren) {
		c, err := m.node(ctx, part[0].key, &mapNode{kind: kind, level: level, children: part})
		if err != nil {
			return nil, err
		}
		made = append(made, c)
	}
	return made, nil
}

// evenly cuts a slice into parts of at most n that differ by one in length.
func evenly[T any](all []T, n int) (parts [][]T) {
	count := (len(all) + n - 1) / n
	for i := range count {
		from, to := i*len(all)/count, (i+1)*len(all)/count
		parts = append(parts, all[from:to:to])
	}
	return parts
}

// extentTree merges extents by extents, which may be holes.
func (m *merger) extentTree() kindOf[extent, extent] {
	return kindOf[extent, extent]{
		kind:    extentNode,
		entries: func(n *mapNode) []extent { return n.extents },
		leaf:    func(e []extent) *mapNode { return &mapNode{kind: extentNode, extents: e} },
		key:     func(e extent) uint64 { return e.lba },
		cut:     cutExtents,
		overlay: m.overlayExtents,
	}
}

func cutExtents(changes []extent, lo, hi uint64) []extent {
	i := sort.Search(len(changes), func(i int) bool { return changes[i].end() > lo })
	j := i + sort.Search(len(changes)-i, func(j int) bool { return changes[i+j].lba >= hi })
	if i == j {
		return nil
	}
	if changes[i].lba >= lo && changes[j-1].end() <= hi {
		return changes[i:j]
	}
	some := slices.Clone(changes[i:j])
	some[0] = some[0].clip(lo, hi)
	some[len(some)-1] = some[len(some)-1].clip(lo, hi)
	return some
}

func (m *merger) count(e extent, sign int64) {
	m.live[e.place.seg] += sign * int64(e.blocks)
	m.total += sign * int64(e.blocks)
}

func (m *merger) overlayExtents(old, changes []extent) []extent {
	next := make([]extent, 0, len(old)+len(changes))
	for _, ch := range changes {
		for len(old) > 0 && old[0].lba < ch.end() {
			e := old[0]
			if e.end() > ch.lba { // they overlap
				lo, hi := max(e.lba, ch.lba), min(e.end(), ch.end())
				m.count(e.clip(lo, hi), -1)
				if e.lba < ch.lba {
					next = append(next, e.clip(e.lba, ch.lba))
				}
				if e.end() > ch.end() {
					old = append([]extent{e.clip(ch.end(), e.end())}, old[1:]...)
					break
				}
			} else {
				next = append(next, e)
			}
			old = old[1:]
		}
		if !ch.hole {
			m.count(ch, 1)
			next = append(next, ch)
		}
	}
	return append(next, old...)
}

// segmentChange changes a segment's count, or adds a segment.
type segmentChange struct {
	segmentUse // live is the change
	fresh      bool
}

// segmentTree merges segments by their changes.
func (m *merger) segmentTree() kindOf[segmentUse, segmentChange] {
	return kindOf[segmentUse, segmentChange]{
		kind:    segmentNode,
		entries: func(n *mapNode) []segmentUse { return n.segments },
		leaf:    func(s []segmentUse) *mapNode { return &mapNode{kind: segmentNode, segments: s} },
		key:     func(s segmentUse) uint64 { return s.Seq },
		cut: func(changes []segmentChange, lo, hi uint64) []segmentChange {
			i := sort.Search(len(changes), func(i int) bool { return changes[i].Seq >= lo })
			j := sort.Search(len(changes), func(i int) bool { return changes[i].Seq >= hi })
			return changes[i:j]
		},
		overlay: m.overlaySegments,
	}
}

func (m *merger) overlaySegments(old []segmentUse, changes []segmentChange) []segmentUse {
	next := make([]segmentUse, 0, len(old)+len(changes))
	keep := func(s segmentUse) {
		if s.live <= 0 {
			m.gone = append(m.gone, s)
			return
		}
		next = append(next, s)
	}
	for _, ch := range changes {
		for len(old) > 0 && old[0].Seq < ch.Seq {
			next, old = append(next, old[0]), old[1:]
		}
		switch {
		case ch.fresh:
			keep(ch.segmentUse)
		case len(old) > 0 && old[0].Seq == ch.Seq:
			s := old[0]
			s.live += ch.live
			old = old[1:]
			keep(s)
		}
	}
	return append(next, old...)
}
