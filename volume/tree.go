package volume

import (
	"context"
	"fmt"
	"sort"
	"sync"

	"github.com/golang/groupcache/lru"

	"github.com/remora-storage/remora/internal/wire"
	"github.com/remora-storage/remora/remote/store"
)

// mapNodes loads map nodes and keeps those that were used lately.
type mapNodes struct {
	store store.Store
	id    ID
	wait  waiter

	mu     sync.Mutex // guards the fields below
	budget int64      // bytes of memory
	used   int64      // of it, about
	held   *lru.Cache // *mapNode by NodeRef
}

func newMapNodes(st store.Store, id ID, budget int64, wait waiter) *mapNodes {
	c := &mapNodes{store: st, id: id, wait: wait, budget: budget, held: lru.New(0)} // put counts bytes, not nodes
	c.held.OnEvicted = func(_ lru.Key, n any) { c.used -= n.(*mapNode).cost() }
	return c
}

// cost is about what a node takes in memory.
func (n *mapNode) cost() int64 {
	return 256 + 64*int64(len(n.extents)) + 40*int64(len(n.children)) + 48*int64(len(n.segments))
}

func (c *mapNodes) get(ref NodeRef) *mapNode {
	c.mu.Lock()
	defer c.mu.Unlock()
	n, ok := c.held.Get(ref)
	if !ok {
		return nil
	}
	return n.(*mapNode)
}

func (c *mapNodes) put(ref NodeRef, n *mapNode) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.held.Get(ref); ok {
		return
	}
	c.held.Add(ref, n)
	c.used += n.cost()
	for c.used > c.budget && c.held.Len() > 1 {
		c.held.RemoveOldest()
	}
}

// bytes reads the bytes of a node or a root and compares their checksum.
func (c *mapNodes) bytes(ctx context.Context, ref NodeRef) (p []byte, err error) {
	key := ref.pack().key(c.id)
	for range 2 { // bytes may have been changed on their way
		if err := c.wait.until(ctx, "read the map", func() (err error) {
			p, _, err = c.store.Get(ctx, key, int64(ref.Off), int64(ref.Len))
			return err
		}); err != nil {
			return nil, err
		}
		if len(p) == int(ref.Len) && wire.Sum(p) == ref.Sum {
			return p, nil
		}
	}
	return nil, fmt.Errorf("map node at %d of %s: %w: its checksum is wrong", ref.Off, key, ErrCorrupt)
}

// load returns a node, which nobody may change.
func (c *mapNodes) load(ctx context.Context, ref NodeRef, kind nodeKind, level int) (*mapNode, error) {
	n := c.get(ref)
	if n == nil {
		p, err := c.bytes(ctx, ref)
		if err != nil {
			return nil, err
		}
		if n, err = decodeNode(p); err != nil {
			return nil, fmt.Errorf("%s at %d: %w", ref.pack().key(c.id), ref.Off, err)
		}
		c.put(ref, n)
	}
	if n.kind != kind || level >= 0 && n.level != level {
		return nil, fmt.Errorf("%s at %d: %w: a node of another kind", ref.pack().key(c.id), ref.Off, ErrCorrupt)
	}
	return n, nil
}

// anyLevel is load's level where it is not known: of the uppermost node.
const anyLevel = -1

// childrenIn returns which children may have keys in [lo, hi).
func (n *mapNode) childrenIn(lo, hi uint64) (first, end int) {
	first = max(sort.Search(len(n.children), func(i int) bool { return n.children[i].key > lo })-1, 0)
	end = sort.Search(len(n.children), func(i int) bool { return n.children[i].key >= hi })
	return first, end
}

// lookup yields the extents that have a block in [lo, hi), clipped to it, in order.
func (c *mapNodes) lookup(ctx context.Context, ref *NodeRef, lo, hi uint64, yield func(extent) bool) error {
	if ref == nil || lo >= hi {
		return nil
	}
	_, err := c.lookupIn(ctx, *ref, anyLevel, lo, hi, yield)
	return err
}

func (c *mapNodes) lookupIn(ctx context.Context, ref NodeRef, level int, lo, hi uint64, yield func(extent) bool) (more bool, err error) {
	n, err := c.load(ctx, ref, extentNode, level)
	if err != nil {
		return false, err
	}
	if n.level == 0 {
		i := sort.Search(len(n.extents), func(i int) bool { return n.extents[i].end() > lo })
		for ; i < len(n.extents) && n.extents[i].lba < hi; i++ {
			if !yield(n.extents[i].clip(lo, hi)) {
				return false, nil
			}
		}
		return true, nil
	}
	first, end := n.childrenIn(lo, hi)
	for _, ch := range n.children[first:end] {
		if more, err := c.lookupIn(ctx, ch.ref, n.level-1, lo, hi, yield); !more || err != nil {
			return false, err
		}
	}
	return true, nil
}

// segment returns a segment by its number.
func (c *mapNodes) segment(ctx context.Context, ref *NodeRef, seq uint64) (segmentUse, error) {
	level := anyLevel
	for ref != nil {
		n, err := c.load(ctx, *ref, segmentNode, level)
		if err != nil {
			return segmentUse{}, err
		}
		if n.level == 0 {
			i := sort.Search(len(n.segments), func(i int) bool { return n.segments[i].Seq >= seq })
			if i < len(n.segments) && n.segments[i].Seq == seq {
				return n.segments[i], nil
			}
			break
		}
		first, end := n.childrenIn(seq, seq+1)
		if first >= end {
			break
		}
		level = n.level - 1
		ref = &n.children[first].ref
	}
	return segmentUse{}, fmt.Errorf("segment %d: %w: the map does not know it", seq, ErrCorrupt)
}

// walk calls visit for every node of a tree, parents first.
func (c *mapNodes) walk(ctx context.Context, ref *NodeRef, kind nodeKind, visit func(NodeRef, *mapNode) error) error {
	if ref == nil {
		return nil
	}
	return c.walkIn(ctx, *ref, kind, anyLevel, visit)
}

func (c *mapNodes) walkIn(ctx context.Context, ref NodeRef, kind nodeKind, level int, visit func(NodeRef, *mapNode) error) error {
	n, err := c.load(ctx, ref, kind, level)
	if err != nil {
		return err
	}
	if err := visit(ref, n); err != nil {
		return err
	}
	for _, ch := range n.children {
		if err := c.walkIn(ctx, ch.ref, kind, n.level-1, visit); err != nil {
			return err
		}
	}
	return nil
}
