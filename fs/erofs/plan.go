package erofs

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/remora-storage/remora/fs/layout"
)

// ErrTooLarge marks a layer that EROFS cannot hold.
var ErrTooLarge = errors.New("layer does not fit an EROFS image")

// A Plan says where everything of a Layout lies in its image.
//
//	0      1024   1152                                    MetaSize                    Size
//	| zero | super | inodes, xattrs, inline tails | blocks | file data, block aligned |
//
// Blocks are those of directories and long symbolic links that do not fit behind their inode. Where the
// Layout says that data is in the image already, there is a hole between MetaSize and the first data.
type Plan struct {
	MetaSize int64 // bytes from the start that WriteMeta writes; a multiple of BlockSize
	Size     int64 // bytes of the image; a multiple of BlockSize

	l     *layout.Layout
	at    []place
	uuid  [16]byte
	inode int64 // where the inodes end
}

type place struct {
	off    int64 // of the inode
	data   int64 // of the first block of data, 0 if none is outside the inode
	size   int64 // i_size
	inline int64 // bytes of data behind the inode
	xattr  int64 // bytes of attributes behind the inode
}

// NewPlan lays out l. The uuid identifies the image; equal layouts with equal uuids give equal bytes.
func NewPlan(l *layout.Layout, uuid [16]byte) (*Plan, error) {
	p := &Plan{l: l, uuid: uuid, at: make([]place, len(l.Inodes))}
	off := int64(superOffset + superSize)
	for i := range l.Inodes {
		off = p.placeInode(uint32(i), off)
	}
	p.inode = off
	off = align(off, BlockSize)
	for i := range l.Inodes { // directory and link blocks
		at := &p.at[i]
		if in := &l.Inodes[i]; in.IsRegular() || at.size == at.inline {
			continue
		}
		at.data = off
		off += align(at.size-at.inline, BlockSize)
	}
	p.MetaSize = off
	for _, i := range p.dataOrder() {
		at := &p.at[i]
		if placed := l.Inodes[i].Data; placed > 0 {
			if placed < p.MetaSize || placed%BlockSize != 0 {
				return nil, fmt.Errorf("%w: %d bytes of metadata, and data at %d", ErrTooLarge, p.MetaSize, placed)
			}
			at.data = placed
			off = max(off, placed+align(at.size, BlockSize))
			continue
		}
		at.data = off
		if at.size > math.MaxInt64-off-BlockSize {
			return nil, fmt.Errorf("%w: file of %d bytes", ErrTooLarge, at.size)
		}
		off += align(at.size, BlockSize)
	}
	p.Size = off
	if off>>blockBits > math.MaxUint32 {
		return nil, fmt.Errorf("%w: %d bytes", ErrTooLarge, off)
	}
	return p, nil
}

// placeInode puts inode i at or after off and returns where the next one may start.
func (p *Plan) placeInode(i uint32, off int64) int64 {
	in, at := &p.l.Inodes[i], &p.at[i]
	at.xattr = xattrBytes(in)
	at.size = in.Size
	head := inodeSize + at.xattr
	if in.IsDir() {
		at.size = dirSize(in)
	}
	if !in.IsRegular() && at.size > 0 {
		if tail := at.size % BlockSize; tail > 0 && head+tail <= BlockSize && (in.IsDir() || at.size < BlockSize) {
			at.inline = tail
		}
	}
	// An inode must not be split over two blocks, nor may it be from its inline data.
	whole := int64(inodeSize)
	if at.inline > 0 {
		whole = head + at.inline
	}
	if room := BlockSize - off%BlockSize; whole > room {
		off += room
	}
	at.off = off
	return align(off+head+at.inline, slotSize)
}

// dataOrder lists the files that have data, in the order in which it lies in the blob; files
// that are one hole come last.
func (p *Plan) dataOrder() []uint32 {
	var order []uint32
	for i := range p.l.Inodes {
		if in := &p.l.Inodes[i]; in.IsRegular() && in.Size > 0 {
			order = append(order, uint32(i))
		}
	}
	key := func(i uint32) (unit uint32, inner int64) {
		in := &p.l.Inodes[i]
		if in.NumExtents == 0 {
			return math.MaxUint32, 0
		}
		e := &p.l.Extents[in.FirstExtent]
		return e.Unit, e.Inner
	}
	slices.SortStableFunc(order, func(a, b uint32) int {
		au, ai := key(a)
		bu, bi := key(b)
		return cmp.Or(cmp.Compare(au, bu), cmp.Compare(ai, bi))
	})
	return order
}

func (p *Plan) nid(i uint32) uint64 { return uint64(p.at[i].off / slotSize) }

// DataOffset returns where the data of a regular file starts in the image.
func (p *Plan) DataOffset(inode uint32) int64 { return p.at[inode].data }
