package erofs

import (
	"errors"
	"fmt"
	"io"
	"sort"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/fs/layout"
)

// A Reader reads the tree of an image that this package wrote, from its metadata. It keeps
// nothing in memory.
type Reader struct {
	meta io.ReaderAt
	size int64 // bytes of metadata
}

// ErrNotOurs marks an image that this package did not write, or that is damaged.
var ErrNotOurs = errors.New("not an image that can be read here")

// A Node is an inode.
type Node struct {
	NID       uint64 // its place in the image; names it
	Mode      uint32
	UID, GID  uint32
	Nlink     uint32
	Size      int64
	MtimeSec  int64
	MtimeNsec uint32
	Rdev      uint32 // as the kernel encodes it for 32 bits
	// Data is where a regular file's data starts in the image.
	Data int64

	xattrs, xattrLen int64 // where the attributes lie
	tail             int64 // where the inline data starts, 0 if there is none
}

// A DirEntry is a name in a directory.
type DirEntry struct {
	Name string
	NID  uint64
	Type byte // as in the image: 1 regular, 2 directory, ...
	// Next is the position behind it.
	Next uint64
}

// NewReader returns a Reader of an image whose first size bytes are meta's.
func NewReader(meta io.ReaderAt, size int64) (*Reader, error) {
	r := &Reader{meta: meta, size: size}
	p, err := r.bytes(superOffset, superSize)
	if err != nil {
		return nil, err
	}
	if le.Uint32(p) != superMagic || p[12] != blockBits || le.Uint32(p[80:]) != 0 {
		return nil, fmt.Errorf("%w: superblock", ErrNotOurs)
	}
	return r, nil
}

// Root returns the root directory's place.
func (r *Reader) Root() uint64 { return (superOffset + superSize) / slotSize }

func (r *Reader) bytes(off, n int64) ([]byte, error) {
	if off < 0 || n < 0 || off > r.size-n {
		return nil, fmt.Errorf("%w: %d bytes at %d of %d", ErrNotOurs, n, off, r.size)
	}
	p := make([]byte, n)
	if _, err := r.meta.ReadAt(p, off); err != nil {
		return nil, fmt.Errorf("read image metadata at %d: %w", off, err)
	}
	return p, nil
}

// Node reads an inode.
func (r *Reader) Node(nid uint64) (*Node, error) {
	if nid > uint64(r.size/slotSize) {
		return nil, fmt.Errorf("%w: inode at %d", ErrNotOurs, nid)
	}
	off := int64(nid) * slotSize
	p, err := r.bytes(off, inodeSize)
	if err != nil {
		return nil, err
	}
	format := le.Uint16(p)
	if format&1 != formatExtended {
		return nil, fmt.Errorf("%w: inode of format %#x", ErrNotOurs, format)
	}
	n := &Node{
		NID: nid, Mode: uint32(le.Uint16(p[4:])), Size: int64(le.Uint64(p[8:])), UID: le.Uint32(p[24:]), GID: le.Uint32(p[28:]),
		MtimeSec: int64(le.Uint64(p[32:])), MtimeNsec: le.Uint32(p[40:]), Nlink: le.Uint32(p[44:]),
	}
	if n.Size < 0 {
		return nil, fmt.Errorf("%w: inode of %d bytes", ErrNotOurs, n.Size)
	}
	if slots := le.Uint16(p[2:]); slots > 0 {
		n.xattrs, n.xattrLen = off+inodeSize, xattrHeaderSize+int64(slots-1)*xattrEntrySize
	}
	switch n.Mode & unix.S_IFMT {
	case unix.S_IFCHR, unix.S_IFBLK:
		n.Rdev = le.Uint32(p[16:])
	default:
		n.Data = int64(le.Uint32(p[16:])) << blockBits
	}
	if format>>1 == layoutInline {
		n.tail = off + inodeSize + n.xattrLen
	}
	return n, nil
}

// block returns the i-th block of a directory's or link's data; the last one may be short.
func (r *Reader) block(n *Node, i int64) ([]byte, error) {
	size := min(BlockSize, n.Size-i*BlockSize)
	if size <= 0 {
		return nil, fmt.Errorf("%w: block %d of %d bytes", ErrNotOurs, i, n.Size)
	}
	if n.tail != 0 && (i+1)*BlockSize > n.Size {
		return r.bytes(n.tail, size)
	}
	return r.bytes(n.Data+i*BlockSize, size)
}

// Link returns a symbolic link's target.
func (r *Reader) Link(n *Node) (string, error) {
	p, err := r.block(n, 0)
	return string(p), err
}

// entries reads the entries of a directory block.
type entries []byte

func (b entries) len() (int, error) {
	if len(b) < direntSize {
		return 0, fmt.Errorf("%w: directory block of %d bytes", ErrNotOurs, len(b))
	}
	first := int(le.Uint16(b[8:]))
	if first < direntSize || first%direntSize != 0 || first > len(b) {
		return 0, fmt.Errorf("%w: names of a directory block at %d", ErrNotOurs, first)
	}
	return first / direntSize, nil
}

// at returns entry k of n.
func (b entries) at(k, n int) (DirEntry, error) {
	d := b[k*direntSize:]
	from, to := int(le.Uint16(d[8:])), len(b)
	if k+1 < n {
		to = int(le.Uint16(b[(k+1)*direntSize+8:]))
	}
	if from < n*direntSize || to < from || to > len(b) {
		return DirEntry{}, fmt.Errorf("%w: name at %d to %d of a directory block", ErrNotOurs, from, to)
	}
	name := b[from:to]
	for i, c := range name { // the last name of a full block is padded
		if c == 0 {
			name = name[:i]
			break
		}
	}
	return DirEntry{Name: string(name), NID: le.Uint64(d), Type: d[10]}, nil
}

// Lookup finds a name in a directory.
func (r *Reader) Lookup(n *Node, name string) (e DirEntry, found bool, err error) {
	blocks := int((n.Size + BlockSize - 1) / BlockSize)
	// The last block whose first name is not behind the one wanted has it, if any has.
	i := sort.Search(blocks, func(i int) bool {
		if err != nil {
			return true
		}
		var b entries
		var first DirEntry
		if b, err = r.block(n, int64(i)); err != nil {
			return true
		}
		var k int
		if k, err = b.len(); err == nil {
			first, err = b.at(0, k)
		}
		return err != nil || first.Name > name
	}) - 1
	if err != nil || i < 0 {
		return e, false, err
	}
	p, err := r.block(n, int64(i))
	if err != nil {
		return e, false, err
	}
	b := entries(p)
	k, err := b.len()
	if err != nil {
		return e, false, err
	}
	j := sort.Search(k, func(j int) bool {
		var x DirEntry
		if x, err = b.at(j, k); err != nil {
			return true
		}
		return x.Name >= name
	})
	if err != nil || j == k {
		return e, false, err
	}
	e, err = b.at(j, k)
	return e, err == nil && e.Name == name, err
}

// ReadDir calls yield with the entries of a directory, "." and ".." among them, from a position: 0
// or an earlier entry's Next. It ends when yield returns false.
func (r *Reader) ReadDir(n *Node, from uint64, yield func(DirEntry) bool) error {
	block, k := int64(from>>blockBits), int(from&(BlockSize-1))
	for ; block*BlockSize < n.Size; block, k = block+1, 0 {
		p, err := r.block(n, block)
		if err != nil {
			return err
		}
		b := entries(p)
		count, err := b.len()
		if err != nil {
			return err
		}
		for ; k < count; k++ {
			e, err := b.at(k, count)
			if err != nil {
				return err
			}
			e.Next = uint64(block)<<blockBits | uint64(k+1)
			if !yield(e) {
				return nil
			}
		}
	}
	return nil
}

// Xattrs returns an inode's extended attributes.
func (r *Reader) Xattrs(n *Node) (all []layout.Xattr, err error) {
	if n.xattrLen <= xattrHeaderSize {
		return nil, nil
	}
	p, err := r.bytes(n.xattrs, n.xattrLen)
	if err != nil {
		return nil, err
	}
	for p = p[xattrHeaderSize:]; len(p) >= xattrEntrySize; {
		nameLen, index, valueLen := int(p[0]), p[1], int(le.Uint16(p[2:]))
		used := int(align(int64(xattrEntrySize+nameLen+valueLen), xattrEntrySize))
		prefix, ok := xattrPrefix(index)
		if !ok || used > len(p) {
			return nil, fmt.Errorf("%w: extended attribute", ErrNotOurs)
		}
		name := p[xattrEntrySize : xattrEntrySize+nameLen]
		all = append(all, layout.Xattr{Name: prefix + string(name), Value: p[xattrEntrySize+nameLen : xattrEntrySize+nameLen+valueLen]})
		p = p[used:]
	}
	return all, nil
}

func xattrPrefix(index byte) (string, bool) {
	for _, p := range xattrPrefixes {
		if p.index == index {
			return p.prefix, true
		}
	}
	return "", false
}
