package erofs

import (
	"encoding/binary"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/fs/layout"
	"github.com/remora-storage/remora/internal/wire"
)

// BlockSize is the image's block size in bytes, and the alignment of every file's data.
const BlockSize = 4096

const (
	blockBits   = 12
	superOffset = 1024
	superSize   = 128
	slotSize    = 32 // a nid counts these from the start of the image
	inodeSize   = 64 // of an extended inode
	direntSize  = 12

	superMagic      = 0xE0F5E1E2
	compatChecksum  = 0x1
	compatMtime     = 0x2
	formatExtended  = 1
	layoutFlatPlain = 0
	layoutInline    = 2
	xattrHeaderSize = 12
	xattrEntrySize  = 4
)

var le = binary.LittleEndian

// superblock returns the 128 bytes at offset 1024, its checksum still zero.
//
//	offset size field            offset size field
//	0      4    magic            36     4    blocks
//	4      4    checksum         40     4    first metadata block
//	8      4    compat features  44     4    first shared xattr block
//	12     1    block bits       48     16   uuid
//	14     2    root nid         64     16   volume name
//	16     8    inodes           80     4    incompat features
//	24     8    build time
func superblock(inodes uint64, blocks uint32, uuid [16]byte) []byte {
	p := make([]byte, superSize)
	le.PutUint32(p[0:], superMagic)
	le.PutUint32(p[8:], compatChecksum|compatMtime)
	p[12] = blockBits
	le.PutUint16(p[14:], (superOffset+superSize)/slotSize)
	le.PutUint64(p[16:], inodes)
	le.PutUint32(p[36:], blocks)
	copy(p[48:64], uuid[:])
	return p
}

// sumFirstBlock puts the checksum into the image's first block: CRC32C of everything from the
// superblock to the block's end, without the final inversion.
func sumFirstBlock(block []byte) {
	le.PutUint32(block[superOffset+4:], 0)
	sum := ^wire.Sum(block[superOffset:BlockSize])
	le.PutUint32(block[superOffset+4:], sum)
}

// encodeInode returns the 64 bytes of an extended inode. where is the data's first block, or
// the device number.
//
//	offset size field            offset size field
//	0      2    format           24     4    uid
//	2      2    xattr slots      28     4    gid
//	4      2    mode             32     8    mtime, seconds
//	8      8    size             40     4    mtime, nanoseconds
//	16     4    block or rdev    44     4    links
//	20     4    inode number (of 32-bit stat)
func encodeInode(in *layout.Inode, number uint32, size int64, dataLayout uint16, xattrSlots uint16, where uint32) [inodeSize]byte {
	var p [inodeSize]byte
	le.PutUint16(p[0:], formatExtended|dataLayout<<1)
	le.PutUint16(p[2:], xattrSlots)
	le.PutUint16(p[4:], uint16(in.Mode))
	le.PutUint64(p[8:], uint64(size))
	le.PutUint32(p[16:], where)
	le.PutUint32(p[20:], number)
	le.PutUint32(p[24:], in.UID)
	le.PutUint32(p[28:], in.GID)
	le.PutUint64(p[32:], uint64(in.MtimeSec))
	le.PutUint32(p[40:], in.MtimeNsec)
	le.PutUint32(p[44:], in.Nlink)
	return p
}

// encodeDevice is the kernel's new_encode_dev.
func encodeDevice(major, minor uint32) uint32 {
	return minor&0xff | major<<8 | (minor&^0xff)<<12
}

func fileType(mode uint32) byte {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return 1
	case unix.S_IFDIR:
		return 2
	case unix.S_IFCHR:
		return 3
	case unix.S_IFBLK:
		return 4
	case unix.S_IFIFO:
		return 5
	case unix.S_IFSOCK:
		return 6
	default:
		return 7 // symbolic link
	}
}

// xattrPrefixes are the names that EROFS shortens to an index; no other can be stored.
var xattrPrefixes = []struct {
	index  byte
	prefix string
	exact  bool // the name is the whole prefix
}{
	{2, "system.posix_acl_access", true},
	{3, "system.posix_acl_default", true},
	{1, "user.", false},
	{4, "trusted.", false},
	{6, "security.", false},
}

func splitXattr(name string) (index byte, rest string, ok bool) {
	for _, p := range xattrPrefixes {
		if p.exact && name == p.prefix {
			return p.index, "", true
		}
		if !p.exact && strings.HasPrefix(name, p.prefix) {
			return p.index, name[len(p.prefix):], true
		}
	}
	return 0, "", false
}

func align(n, to int64) int64 { return (n + to - 1) / to * to }

// xattrBytes is the size of an inode's attributes behind it, and 0 without any.
func xattrBytes(in *layout.Inode) int64 {
	n := int64(0)
	for _, x := range in.Xattrs {
		if _, rest, ok := splitXattr(x.Name); ok {
			n += align(int64(xattrEntrySize+len(rest)+len(x.Value)), 4)
		}
	}
	if n == 0 {
		return 0
	}
	return xattrHeaderSize + n
}

// appendXattrs appends what xattrBytes measured: a header of 12 bytes (no shared attributes),
// then entries {name length u8, name index u8, value length u16, name, value, padding to 4}.
func appendXattrs(p []byte, in *layout.Inode) []byte {
	p = append(p, make([]byte, xattrHeaderSize)...)
	for _, x := range in.Xattrs {
		index, rest, ok := splitXattr(x.Name)
		if !ok {
			continue
		}
		p = append(p, byte(len(rest)), index, byte(len(x.Value)), byte(len(x.Value)>>8))
		p = append(p, rest...)
		p = append(p, x.Value...)
		for n := xattrEntrySize + len(rest) + len(x.Value); n%4 != 0; n++ {
			p = append(p, 0)
		}
	}
	return p
}

// Mode returns the type bits of stat(2) for a directory entry's type.
func Mode(t byte) uint32 {
	modes := [...]uint32{0, unix.S_IFREG, unix.S_IFDIR, unix.S_IFCHR, unix.S_IFBLK, unix.S_IFIFO, unix.S_IFSOCK, unix.S_IFLNK}
	if int(t) >= len(modes) {
		return 0
	}
	return modes[t]
}
