package mount

import "encoding/binary"

// The superblock of ext2, ext3 and ext4 (the kernel's fs/ext4/ext4.h).
const (
	extAt    = 1024
	extMagic = 0xef53

	extValid  = 1 // of s_state: it was unmounted
	extErrors = 2

	compatJournal       = 0x4
	incompatJournalDev  = 0x8
	incompat64          = 0x80
	incompatOfExt3      = 0x2 | 0x4 | 0x10 // file types, recovery, meta_bg
	roCompatOfExt3      = 0x1 | 0x2 | 0x4  // sparse_super, large_file, btree_dir
	extTrailingSlack    = 50               // blocks that resize2fs wants in a last group beyond what it needs for itself
	extOldInode         = 128
	extOldGroupDescBits = 32
)

// ext returns what an ext2, ext3 or ext4 is, if there is one. The kernel's driver of ext4 mounts them all.
func (b ends) ext() (c Content, ok bool) {
	sb := b.at(extAt, 1024)
	if sb == nil || binary.LittleEndian.Uint16(sb[0x38:]) != extMagic {
		return c, false
	}
	u16 := func(at int) uint64 { return uint64(binary.LittleEndian.Uint16(sb[at:])) }
	u32 := func(at int) uint64 { return uint64(binary.LittleEndian.Uint32(sb[at:])) }
	state, compat, incompat, roCompat := u16(0x3a), u32(0x5c), u32(0x60), u32(0x64)
	journal := compat&compatJournal != 0
	switch {
	case incompat&incompatJournalDev != 0:
		return Content{Kind: "jbd"}, true
	case incompat&^incompatOfExt3 != 0 || roCompat&^roCompatOfExt3 != 0:
		c.Kind = "ext4"
	case journal:
		c.Kind = "ext3"
	default:
		c.Kind = "ext2"
	}
	c.Used = u32(0x2c) != 0 || u16(0x34) != 0 // when it was mounted last, and how often
	c.Suspect = state&extErrors != 0 || !journal && state&extValid == 0
	log := u32(0x18)
	if log > 6 { // 64 KiB are the largest blocks
		return c, true
	}
	blocks, block := u32(0x4), uint64(1024)<<log
	if incompat&incompat64 != 0 {
		blocks |= u32(0x150) << 32
	}
	c.Size = product(blocks, block)
	c.least = product(extGroupNeeds(u16, u32, blocks, block), block)
	return c, true
}

// extGroupNeeds returns how many blocks a last group of its own has at least: resize2fs leaves fewer unused. Groups without a copy of
// the superblock get by with less, which here does not matter.
func extGroupNeeds(u16, u32 func(at int) uint64, blocks, block uint64) uint64 {
	perGroup, inodes, inode, desc := u32(0x20), u32(0x28), u16(0x58), u16(0xfe)
	if perGroup == 0 {
		return 0
	}
	if inode == 0 {
		inode = extOldInode
	}
	if desc == 0 {
		desc = extOldGroupDescBits
	}
	descriptors := (blocks/perGroup + 2) * desc / block
	return 3 + inodes*inode/block + 1 + descriptors + 1 + u16(0xce) + extTrailingSlack
}
