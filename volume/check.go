package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/remora-storage/remora/remote/store"
)

// Report is what Check has found.
type Report struct {
	Name     string   `json:"name"`
	ID       ID       `json:"id"`
	Segments int64    `json:"segments"`      // in use
	Nodes    int64    `json:"map_nodes"`     //
	Extents  int64    `json:"extents"`       //
	Blocks   int64    `json:"mapped_blocks"` // of 4096 bytes
	Read     int64    `json:"read_bytes"`    // of data that was read and compared with its checksums
	Unused   Usage    `json:"unused"`        // objects that nothing uses: left behind, or on their way
	Problems []string `json:"problems"`
}

func (r *Report) problem(format string, args ...any) {
	const most = 1000
	if len(r.Problems) < most {
		r.Problems = append(r.Problems, fmt.Sprintf(format, args...))
	}
}

// usedKeys returns the keys of all objects that a head, its map and the map before that use.
func usedKeys(ctx context.Context, nodes *mapNodes, h *Head, root *mapRoot) (map[string]bool, error) {
	used := map[string]bool{headKey(h.ID): true}
	for _, s := range h.Tail {
		used[s.key(h.ID)] = true
	}
	for _, k := range slices.Concat(root.Packs, root.GonePacks) {
		used[k.pack().key(h.ID)] = true
	}
	for _, s := range root.GoneSegments {
		used[s.key(h.ID)] = true
	}
	if h.Root != nil {
		used[h.Root.pack().key(h.ID)] = true
	}
	err := nodes.walk(ctx, root.Segments, segmentNode, func(_ NodeRef, n *mapNode) error {
		for _, s := range n.segments {
			used[s.key(h.ID)] = true
		}
		return nil
	})
	return used, err
}

// Check walks everything that a volume's head leads to and compares it with what it must be: nodes, tables, counts of
// blocks in use and, if data is true, the checksum of every block. The volume may be in use: what is checked is the
// head as of now, and what disappears while Check runs was replaced. An error says that Check could not go on;
// problems are in the report.
func Check(ctx context.Context, st store.Store, name string, data bool, progress func(what string)) (*Report, error) {
	id, err := lookupID(ctx, st, name)
	if err != nil {
		return nil, err
	}
	c := checker{store: st, id: id, data: data, progress: progress, Report: Report{Name: name, ID: id, Problems: []string{}}}
	for try := 0; ; try++ {
		c.Report = Report{Name: name, ID: id, Problems: []string{}}
		h, version, err := readHead(ctx, st, id)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				return nil, err
			}
			c.problem("%v", err)
			return &c.Report, nil
		}
		if err := c.check(ctx, h); err != nil {
			return nil, err
		}
		if len(c.Problems) == 0 || try > 2 {
			return &c.Report, nil
		}
		if _, now, err := readHead(ctx, st, id); err == nil && now == version {
			return &c.Report, nil // nobody has changed anything meanwhile
		}
	}
}

type checker struct {
	store    store.Store
	id       ID
	data     bool
	progress func(string)
	Report

	size     int64
	mapped   uint64 // segment up to which the map holds the log
	live     map[uint64]int64
	segments map[uint64]SegmentRef
	frames   map[uint64]map[int64]uint32 // in use, by segment and offset
}

func (c *checker) check(ctx context.Context, h *Head) error {
	c.size, c.live, c.segments, c.frames = h.Size, map[uint64]int64{}, map[uint64]SegmentRef{}, map[uint64]map[int64]uint32{}
	nodes := newMapNodes(c.store, c.id, defaultMemory/4, quiet())
	c.progress("the map")
	root, err := readRoot(ctx, nodes, h.Root)
	if err != nil {
		return c.note(ctx, "the map's root", err)
	}
	c.mapped = root.Segment
	if root.Write > h.Write || root.Segment > h.Segment {
		c.problem("the map holds write %d and segment %d, the head %d and %d", root.Write, root.Segment, h.Write, h.Segment)
	}
	if err := c.checkMap(ctx, nodes, root); err != nil {
		return err
	}
	c.progress("the log")
	for _, ref := range h.Tail {
		if ref.Seq <= root.Segment {
			c.problem("segment %d is in the tail and in the map", ref.Seq)
		}
		c.segments[ref.Seq] = ref
		table, err := readTable(ctx, c.store, c.id, ref, h.Size)
		if err != nil {
			if err := c.note(ctx, fmt.Sprintf("segment %d", ref.Seq), err); err != nil {
				return err
			}
			continue
		}
		for _, e := range table {
			c.use(e)
		}
	}
	if c.data {
		if err := c.checkData(ctx); err != nil {
			return err
		}
	}
	return c.checkUnused(ctx, nodes, h, root)
}

// note makes a problem of an error that says so, and passes the others on.
func (c *checker) note(_ context.Context, what string, err error) error {
	if errors.Is(err, ErrCorrupt) || errors.Is(err, store.ErrNoObject) {
		c.problem("%s: %v", what, err)
		return nil
	}
	return err
}

func (c *checker) use(e extent) {
	c.Extents++
	if e.hole {
		return
	}
	if c.frames[e.place.seg] == nil {
		c.frames[e.place.seg] = map[int64]uint32{}
	}
	if c.data {
		c.frames[e.place.seg][e.place.off] = e.place.whole
	}
}

func (c *checker) checkMap(ctx context.Context, nodes *mapNodes, root *mapRoot) error {
	packs := map[packID]int64{}
	next := uint64(0)
	err := nodes.walk(ctx, root.Extents, extentNode, func(ref NodeRef, n *mapNode) error {
		c.Nodes++
		packs[ref.pack()] += int64(ref.Len)
		for _, e := range n.extents {
			if e.lba < next || e.end() > uint64(c.size/Block) {
				c.problem("extent at block %d: out of order, or beyond the end", e.lba)
			}
			next = e.end()
			c.live[e.place.seg] += int64(e.blocks)
			c.Blocks += int64(e.blocks)
			c.use(e)
		}
		return nil
	})
	if err != nil {
		return c.note(ctx, "the map", err)
	}
	err = nodes.walk(ctx, root.Segments, segmentNode, func(ref NodeRef, n *mapNode) error {
		c.Nodes++
		packs[ref.pack()] += int64(ref.Len)
		for _, s := range n.segments {
			c.segments[s.Seq] = s.SegmentRef
			if c.live[s.Seq] != s.live {
				c.problem("segment %d: the map says that %d of its blocks are in use, and names %d", s.Seq, s.live, c.live[s.Seq])
			}
			delete(c.live, s.Seq)
		}
		return nil
	})
	if err != nil {
		return c.note(ctx, "the map", err)
	}
	for seq, n := range c.live {
		c.problem("segment %d: the map names %d of its blocks, and does not know it", seq, n)
	}
	if c.Blocks != root.Blocks {
		c.problem("the map says that it names %d blocks, and names %d", root.Blocks, c.Blocks)
	}
	for _, k := range root.Packs {
		id := k.pack()
		if packs[id] != k.Live {
			c.problem("%s: the map says that %d bytes of it are in use, they are %d", id.key(c.id), k.Live, packs[id])
		}
		delete(packs, id)
	}
	for id := range packs {
		c.problem("%s: the map uses it and does not count it", id.key(c.id))
	}
	return nil
}

// checkData reads every frame that is in use.
func (c *checker) checkData(ctx context.Context) error {
	done := 0
	for seq, ref := range c.segments {
		done++
		c.Segments++
		if done%64 == 1 {
			c.progress(fmt.Sprintf("segment %d of %d", done, len(c.segments)))
		}
		p, _, err := c.store.Get(ctx, ref.key(c.id), 0, -1)
		if err != nil {
			if err := c.note(ctx, fmt.Sprintf("segment %d", seq), err); err != nil {
				return err
			}
			continue
		}
		c.Read += int64(len(p))
		if len(p) != int(ref.Size) {
			c.problem("segment %d has %d bytes, not %d", seq, len(p), ref.Size)
			continue
		}
		at, random, err := decodeSegmentHeader(p)
		if err != nil || at.id != c.id || at.seq != seq || at.epoch != ref.Epoch || random != ref.Random {
			c.problem("segment %d: its header is another's (%v)", seq, err)
		}
		if table, size, err := decodeSegmentFooter(p); err != nil || table != ref.Table || size != ref.Size {
			c.problem("segment %d: its footer is wrong (%v)", seq, err)
		} else if seq <= c.mapped { // nobody needs it as long as the map is whole
			if _, err := decodeTable(p[table:], c.id, ref, c.size); err != nil {
				c.problem("segment %d: %v", seq, err)
			}
		}
		for off, whole := range c.frames[seq] {
			end := off + frameSize(whole)
			if off < 0 || end > int64(len(p)) {
				c.problem("segment %d: a frame at %d of %d bytes", seq, off, len(p))
				continue
			}
			if _, err := openFrame(p[off:end], c.id, ref, off); err != nil {
				c.problem("%v", err)
			}
		}
	}
	return nil
}

// checkUnused counts what nothing uses, and finds what is missing.
func (c *checker) checkUnused(ctx context.Context, nodes *mapNodes, h *Head, root *mapRoot) error {
	used, err := usedKeys(ctx, nodes, h, root)
	if err != nil {
		return c.note(ctx, "the map", err)
	}
	c.progress("unused objects")
	if err := c.store.List(ctx, volumePrefix(c.id), func(o store.Object) bool {
		if !used[o.Key] {
			c.Unused.Objects++
			c.Unused.Bytes += o.Size
		}
		delete(used, o.Key)
		return true
	}); err != nil {
		return err
	}
	c.Segments = int64(len(c.segments))
	for key := range used {
		c.problem("%s: it is in use, and is not there", key)
	}
	return nil
}
