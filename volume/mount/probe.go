package mount

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/bits"
	"os"
	"strings"
)

// A Content is what the bytes of a device are.
type Content struct {
	// Kind is the name that blkid(8) has for a file system or whatever else it is, or for the kind of a partition table; "" if
	// no signature is there.
	Kind  string
	Table bool  // it is a partition table
	Size  int64 // bytes of an ext4, xfs or btrfs by its own account, 0 if it has none that can be
	// Suspect is an ext4 that has noted errors, or that was not unmounted and has no journal: e2fsck has to look at it first.
	Suspect bool
	// Used is an ext4 that was mounted before. It was made to its end.
	Used bool
	// Half is an xfs whose mkfs has not come to its end, as its superblock says.
	Half bool
	// Sector are the bytes of an xfs's sectors: its device must not have larger ones. 0 for others.
	Sector int

	least int64 // bytes that an ext4 can grow by: fewer make no new group
}

// String names it, for people.
func (c Content) String() string {
	switch {
	case c.Table:
		return "a partition table (" + c.Kind + ")"
	case c.Kind == "":
		return "nothing that is known"
	}
	return c.Kind
}

// remnant reports whether it may be all that a maker of a kind has left that was killed. mkfs.xfs notes its end in the superblock, and
// mkfs.btrfs writes its signature last; no ext4 says that it is whole before it is mounted.
func (c Content) remnant(kind string) bool {
	return c.Kind == "" || c.Kind == kind && (c.Kind == "ext4" || c.Half)
}

// ErrAmbiguous says that a device has signatures of several kinds, one of which is a left-over.
var ErrAmbiguous = errors.New("signatures of several kinds are on it; wipefs(8) shows them, and removes the one that is left over")

// Probe's reads: a device's first bytes have all signatures but those that lie at the end.
const (
	headBytes = 68 << 10
	tailBytes = 12 << 10
)

// A signature is bytes at a place by which something is known.
type signature struct {
	kind, magic string
	at          int64 // from the end if it is negative
}

// signatures are of what may lie on a device beside the file systems that volumes have. Of what lies at several places each has a
// row.
var signatures = []signature{
	{"xfs", "XFSB", 0},
	{"btrfs", "_BHRfS_M", btrfsAt + 0x40},
	{"crypto_LUKS", "LUKS\xba\xbe", 0}, {"crypto_LUKS", "SKUL\xba\xbe", 0x4000}, {"crypto_LUKS", "SKUL\xba\xbe", 0x8000},
	{"crypto_LUKS", "SKUL\xba\xbe", 0x10000},
	{"LVM2_member", "LVM2 001", 0x18}, {"LVM2_member", "LVM2 001", 0x218}, {"LVM2_member", "LVM2 001", 0x418},
	{"LVM2_member", "LVM2 001", 0x618},
	{"linux_raid_member", "\xfc\x4e\x2b\xa9", 0}, {"linux_raid_member", "\xfc\x4e\x2b\xa9", 4096},
	{"linux_raid_member", "\xfc\x4e\x2b\xa9", -8192},
	{"bcache", "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81", 0x1018},
	{"squashfs", "hsqs", 0}, {"erofs", "\xe2\xe1\xf5\xe0", 1024}, {"f2fs", "\x10\x20\xf5\xf2", 1024},
	{"ntfs", "NTFS    ", 3}, {"exfat", "EXFAT   ", 3}, {"vfat", "FAT32   ", 82}, {"vfat", "FAT16   ", 54}, {"vfat", "FAT12   ", 54},
	{"iso9660", "CD001", 32769},
	{"swap", "SWAPSPACE2", 4<<10 - 10}, {"swap", "SWAPSPACE2", 8<<10 - 10}, {"swap", "SWAPSPACE2", 16<<10 - 10},
	{"swap", "SWAPSPACE2", 64<<10 - 10}, {"swap", "SWAP-SPACE", 4<<10 - 10}, {"swsuspend", "S1SUSPEND", 4<<10 - 10},
	{"swsuspend", "LINHIB0001", 4<<10 - 10},
}

// tables are signatures of partition tables, the backups at the end included.
var tables = []signature{
	{"gpt", "EFI PART", 512}, {"gpt", "EFI PART", 4096}, {"gpt", "EFI PART", -512}, {"gpt", "EFI PART", -4096},
}

// Probe says what a device of size bytes holds. What cannot be read is an error, never a device without a signature.
func Probe(dev io.ReaderAt, size int64) (Content, error) {
	if size <= 0 {
		return Content{}, errors.New("it has no bytes: a device that has gone")
	}
	var b ends
	var err error
	b.size = size
	if b.head, err = readAll(dev, 0, min(size, headBytes)); err != nil {
		return Content{}, err
	}
	if b.tail, err = readAll(dev, max(0, size-tailBytes), min(size, tailBytes)); err != nil {
		return Content{}, err
	}
	var found []Content
	if c, ok := b.ext(); ok {
		found = append(found, c)
	}
	for _, s := range signatures {
		if b.has(s) && (len(found) == 0 || found[len(found)-1].Kind != s.kind) {
			found = append(found, Content{Kind: s.kind, Size: b.sizeOf(s.kind), Sector: b.sectorOf(s.kind), Half: b.halfOf(s.kind)})
		}
	}
	switch len(found) {
	case 0:
		return b.table(), nil
	case 1:
		return found[0], nil
	}
	var kinds []string
	for _, c := range found {
		kinds = append(kinds, c.Kind)
	}
	return Content{}, fmt.Errorf("%s: %w", strings.Join(kinds, ", "), ErrAmbiguous)
}

// ProbeDevice says what a block device, or a file, holds.
func ProbeDevice(path string) (Content, int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return Content{}, 0, err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return Content{}, 0, err
	}
	c, err := Probe(f, size)
	if err != nil {
		return c, size, fmt.Errorf("what %s holds cannot be told: %w", path, err)
	}
	return c, size, nil
}

func readAll(dev io.ReaderAt, off, n int64) ([]byte, error) {
	p := make([]byte, n)
	got, err := dev.ReadAt(p, off)
	if int64(got) == n {
		return p, nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return nil, fmt.Errorf("read %d+%d: %w", off, n, err)
}

// ends are the first and the last bytes of a device.
type ends struct {
	head, tail []byte
	size       int64
}

// at returns n bytes at a place, nil if they are not all in what was read.
func (b ends) at(off int64, n int) []byte {
	from := b.head
	if off < 0 {
		from, off = b.tail, int64(len(b.tail))+off
	}
	if off < 0 || off+int64(n) > int64(len(from)) {
		return nil
	}
	return from[off : off+int64(n)]
}

func (b ends) has(s signature) bool { return string(b.at(s.at, len(s.magic))) == s.magic }

// table says which partition table there is.
func (b ends) table() Content {
	for _, s := range tables {
		if b.has(s) {
			return Content{Kind: s.kind, Table: true}
		}
	}
	if string(b.at(510, 2)) != "\x55\xaa" {
		return Content{}
	}
	for i := range int64(4) {
		if entry := b.at(446+16*i, 16); entry[0]&0x7f != 0 {
			return Content{} // the code of a boot loader
		}
	}
	return Content{Kind: "dos", Table: true}
}

// sizeOf returns how many bytes an xfs or a btrfs has.
func (b ends) sizeOf(kind string) int64 {
	switch kind {
	case "xfs":
		if sb := b.at(0, 16); sb != nil {
			return product(binary.BigEndian.Uint64(sb[8:]), uint64(binary.BigEndian.Uint32(sb[4:])))
		}
	case "btrfs":
		if sb := b.at(btrfsAt+0x70, 8); sb != nil {
			return product(binary.LittleEndian.Uint64(sb), 1)
		}
	}
	return 0
}

// sectorOf returns how many bytes the sectors of an xfs have.
func (b ends) sectorOf(kind string) int {
	if sb := b.at(102, 2); kind == "xfs" && sb != nil {
		return int(binary.BigEndian.Uint16(sb))
	}
	return 0
}

// halfOf reports whether an xfs is being made, or was and never will be.
func (b ends) halfOf(kind string) bool {
	sb := b.at(126, 1)
	return kind == "xfs" && sb != nil && sb[0] != 0
}

const btrfsAt = 64 << 10 // where its superblock lies

// product returns a*b, or 0 if that is no size.
func product(a, b uint64) int64 {
	if hi, lo := bits.Mul64(a, b); hi == 0 && lo <= math.MaxInt64 {
		return int64(lo)
	}
	return 0
}
