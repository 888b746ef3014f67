package volume

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/remora-storage/remora/internal/wire"
)

// The map is two trees of immutable nodes: extents by block, and segments by number, with how many of their blocks
// are still in use. Nodes lie in packs, one object or a few for each checkpoint.

// A NodeRef says where a node lies.
type NodeRef struct {
	Gen    uint64 `json:"gen"`    // of the head for which the pack was made
	Random uint32 `json:"random"` // tells packs of one generation apart
	Off    uint32 `json:"off"`
	Len    uint32 `json:"len"`
	Sum    uint32 `json:"crc32c"`
}

type packID struct {
	gen    uint64
	random uint32
}

func (r NodeRef) pack() packID { return packID{r.Gen, r.Random} }

func (k packID) key(id ID) string {
	return fmt.Sprintf("%smap/%016x-%08x", volumePrefix(id), k.gen, k.random)
}

func parsePackKey(key string) (k packID, ok bool) {
	n, err := fmt.Sscanf(key, "map/%016x-%08x", &k.gen, &k.random)
	return k, err == nil && n == 2
}

const (
	nodeMagic   = "RMN1"
	packMagic   = "RMP1"
	nodeHeader  = 12
	packFooter  = 20
	maxNode     = 64 << 10
	maxLeaf     = 1024    // entries
	maxChildren = 512     // of an inner node
	packTarget  = 4 << 20 // bytes
	maxLevel    = 8
)

func (r *NodeRef) check() error {
	if r.Len > maxNode || r.Len < nodeHeader {
		return fmt.Errorf("map node of %d bytes", r.Len)
	}
	return nil
}

type nodeKind byte

const (
	extentNode  nodeKind = 1
	segmentNode nodeKind = 2
)

// A mapNode is one of the trees'. Level 0 has extents or segments, the others have children.
type mapNode struct {
	kind     nodeKind
	level    int
	children []child
	extents  []extent
	segments []segmentUse
}

// A child is a node whose keys are from key on, up to the next child's.
type child struct {
	key uint64
	ref NodeRef
}

// segmentUse is a segment and how many of its blocks the map names.
type segmentUse struct {
	SegmentRef
	live int64
}

func appendSigned(p []byte, v int64) []byte {
	return binary.AppendUvarint(p, uint64(v<<1)^uint64(v>>63))
}

// Flags of an extent in a node.
const (
	extentPartial = 1 << iota // of its frame: skip and whole follow
	extentFollows             // its frame is the one behind the frame before
	extentSameSeq             // as the extent before
	extentFlags   = 3         // bits
)

func (n *mapNode) encode() []byte {
	p := append([]byte(nil), nodeMagic...)
	p = append(p, byte(n.kind), byte(n.level), 0, 0)
	p = binary.LittleEndian.AppendUint32(p, uint32(len(n.children)+len(n.extents)+len(n.segments)))
	var key uint64
	var gen uint64
	for _, c := range n.children {
		p = binary.AppendUvarint(p, c.key-key)
		p = appendSigned(p, int64(c.ref.Gen-gen))
		p = binary.LittleEndian.AppendUint32(p, c.ref.Random)
		p = binary.AppendUvarint(p, uint64(c.ref.Off))
		p = binary.AppendUvarint(p, uint64(c.ref.Len))
		p = binary.LittleEndian.AppendUint32(p, c.ref.Sum)
		key, gen = c.key, c.ref.Gen
	}
	var last extent
	for _, e := range n.extents {
		flags := uint64(0)
		if e.place.skip != 0 || e.place.whole != e.blocks {
			flags |= extentPartial
		}
		if e.place.seg == last.place.seg && e.place.off == last.place.off+frameSize(last.place.whole) && last.blocks > 0 {
			flags |= extentFollows
		}
		if e.seq == last.seq {
			flags |= extentSameSeq
		}
		p = binary.AppendUvarint(p, e.lba-last.end())
		p = binary.AppendUvarint(p, uint64(e.blocks)<<extentFlags|flags)
		if flags&extentPartial != 0 {
			p = binary.AppendUvarint(p, uint64(e.place.skip))
			p = binary.AppendUvarint(p, uint64(e.place.whole))
		}
		if flags&extentFollows == 0 {
			p = appendSigned(p, int64(e.place.seg-last.place.seg))
			p = binary.AppendUvarint(p, uint64(e.place.off))
		}
		if flags&extentSameSeq == 0 {
			p = appendSigned(p, int64(e.seq-last.seq))
		}
		last = e
	}
	var before SegmentRef
	for _, s := range n.segments {
		p = binary.AppendUvarint(p, s.Seq-before.Seq)
		p = appendSigned(p, int64(s.Epoch-before.Epoch))
		p = binary.LittleEndian.AppendUint32(p, s.Random)
		p = binary.AppendUvarint(p, uint64(s.Size))
		p = binary.AppendUvarint(p, uint64(s.Table))
		p = binary.AppendUvarint(p, uint64(s.live))
		before = s.SegmentRef
	}
	return p
}

// decodeNode reads a node. The caller has compared its checksum.
func decodeNode(p []byte) (*mapNode, error) {
	bad := func(why string) error { return fmt.Errorf("map node: %w: %s", ErrCorrupt, why) }
	if len(p) < nodeHeader || len(p) > maxNode || string(p[:4]) != nodeMagic || p[6] != 0 || p[7] != 0 {
		return nil, bad("it does not begin as one")
	}
	n := &mapNode{kind: nodeKind(p[4]), level: int(p[5])}
	count := int(min(binary.LittleEndian.Uint32(p[8:]), maxNode))
	r := wire.Read(p[nodeHeader:])
	if n.level > maxLevel || n.kind != extentNode && n.kind != segmentNode || count > r.Len() {
		return nil, bad("its header is impossible")
	}
	ok := true
	switch {
	case n.level > 0:
		ok = n.decodeChildren(&r, count)
	case n.kind == extentNode:
		ok = n.decodeExtents(&r, count)
	default:
		ok = n.decodeSegments(&r, count)
	}
	if !ok || r.Bad() || r.Len() != 0 {
		return nil, bad("an entry is impossible")
	}
	return n, nil
}

func (n *mapNode) decodeChildren(r *wire.Reader, count int) bool {
	var last child
	n.children = make([]child, 0, count)
	for i := range count {
		d := r.Next()
		c := child{key: last.key + d}
		c.ref.Gen = last.ref.Gen + uint64(r.Signed())
		c.ref.Random = r.Uint32()
		off, size := r.Next(), r.Next()
		c.ref.Off, c.ref.Len, c.ref.Sum = uint32(off), uint32(size), r.Uint32()
		if c.key < last.key || i > 0 && d == 0 || off > math.MaxUint32 || size > maxNode || c.ref.check() != nil || r.Bad() {
			return false
		}
		n.children = append(n.children, c)
		last = c
	}
	return count > 0
}

func (n *mapNode) decodeExtents(r *wire.Reader, count int) bool {
	var last extent
	n.extents = make([]extent, 0, count)
	for range count {
		e := extent{lba: last.end() + r.Next()}
		v := r.Next()
		flags := v & (1<<extentFlags - 1)
		v >>= extentFlags
		if v == 0 || v > maxFrame || e.lba < last.end() || e.lba > MaxSize/Block {
			return false
		}
		e.blocks = uint32(v)
		e.place.whole = e.blocks
		if flags&extentPartial != 0 {
			skip, whole := r.Next(), r.Next()
			if whole > maxFrame || skip > whole || v > whole-skip {
				return false
			}
			e.place.skip, e.place.whole = uint32(skip), uint32(whole)
		}
		if flags&extentFollows != 0 {
			e.place.seg, e.place.off = last.place.seg, last.place.off+frameSize(last.place.whole)
		} else {
			e.place.seg = last.place.seg + uint64(r.Signed())
			off := r.Next()
			if off > maxSegment {
				return false
			}
			e.place.off = int64(off)
		}
		e.seq = last.seq
		if flags&extentSameSeq == 0 {
			e.seq += uint64(r.Signed())
		}
		if e.place.seg == 0 || e.place.off < segmentHeader || e.place.off > maxSegment || r.Bad() {
			return false
		}
		n.extents = append(n.extents, e)
		last = e
	}
	return true
}

func (n *mapNode) decodeSegments(r *wire.Reader, count int) bool {
	var last SegmentRef
	n.segments = make([]segmentUse, 0, count)
	for range count {
		d := r.Next()
		s := segmentUse{SegmentRef: SegmentRef{Seq: last.Seq + d}}
		s.Epoch = last.Epoch + uint64(r.Signed())
		s.Random = r.Uint32()
		size, table, live := r.Next(), r.Next(), r.Next()
		if d == 0 || s.Seq < last.Seq || size > maxSegment || table > size || live > maxSegment/Block || r.Bad() {
			return false
		}
		s.Size, s.Table, s.live = uint32(size), uint32(table), int64(live)
		n.segments = append(n.segments, s)
		last = s.SegmentRef
	}
	return true
}

// mapRoot is what a checkpoint leaves.
type mapRoot struct {
	Write    uint64    `json:"write"`   // the map holds every write up to this one
	Segment  uint64    `json:"segment"` // and every segment
	Extents  *NodeRef  `json:"extents,omitempty"`
	Segments *NodeRef  `json:"segments,omitempty"`
	Packs    []packUse `json:"packs"`
	Blocks   int64     `json:"blocks"` // that the map names

	// What the map before this one used and this one does not. It is deleted when there is a next one: until then a map
	// that cannot be read can be made anew from the one before.
	GoneSegments segmentSet `json:"gone_segments,omitempty"`
	GonePacks    []packUse  `json:"gone_packs,omitempty"`
}

// packUse is a pack and how many bytes of its nodes the trees still use.
type packUse struct {
	Gen    uint64 `json:"g"`
	Random uint32 `json:"r"`
	Size   int64  `json:"n"`
	Live   int64  `json:"l"`
}

func (k packUse) pack() packID { return packID{k.Gen, k.Random} }

const (
	rootVersion = 1
	maxPacks    = 400
	maxGone     = 500 // segments; more are left to a sweep
)

func (r *mapRoot) encode() ([]byte, error) { return seal("root", rootVersion, r) }

func decodeRoot(p []byte) (*mapRoot, error) {
	r := new(mapRoot)
	if err := unseal("root", rootVersion, p, r); err != nil {
		return nil, err
	}
	for _, ref := range []*NodeRef{r.Extents, r.Segments} {
		if ref != nil && ref.check() != nil {
			return nil, fmt.Errorf("root of the map: %w", ErrCorrupt)
		}
	}
	if len(r.Packs) > 2*maxPacks || len(r.GonePacks) > 2*maxPacks {
		return nil, fmt.Errorf("root of the map: %w: %d packs", ErrCorrupt, len(r.Packs))
	}
	return r, nil
}

// appendPackFooter ends a pack. root is where its root is, if it has one.
func appendPackFooter(p []byte, root NodeRef) []byte {
	at := len(p)
	p = append(p, packMagic...)
	p = binary.LittleEndian.AppendUint32(p, root.Off)
	p = binary.LittleEndian.AppendUint32(p, root.Len)
	p = binary.LittleEndian.AppendUint32(p, root.Sum)
	return binary.LittleEndian.AppendUint32(p, wire.Sum(p[at:]))
}

// decodePackFooter reads the end of a pack; a root's Len is 0 if there is none.
func decodePackFooter(p []byte, k packID) (root NodeRef, err error) {
	if len(p) < packFooter {
		return root, fmt.Errorf("end of a pack: %w", ErrCorrupt)
	}
	p = p[len(p)-packFooter:]
	if string(p[:4]) != packMagic || wire.Sum(p[:16]) != binary.LittleEndian.Uint32(p[16:]) {
		return root, fmt.Errorf("end of a pack: %w", ErrCorrupt)
	}
	return NodeRef{Gen: k.gen, Random: k.random, Off: binary.LittleEndian.Uint32(p[4:]), Len: binary.LittleEndian.Uint32(p[8:]),
		Sum: binary.LittleEndian.Uint32(p[12:])}, nil
}
