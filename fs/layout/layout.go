package layout

import (
	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/cache/blob"
	"github.com/remora-storage/remora/cache/inflate"
)

// Root is the index of the root directory in Layout.Inodes.
const Root = 0

// A Layout is one layer: its tree and where its bytes are.
type Layout struct {
	Inodes  []Inode
	Extents []Extent    // grouped by file, in file order
	Units   []blob.Unit // in blob order; together they cover the whole blob
	Codec   blob.Codec  // how every unit is compressed

	// Points say for a layer of Codec Spans where each unit begins. PlainSize is the bytes of all
	// units, decoded.
	Points    []inflate.Point
	PlainSize int64

	// Prefetch lists units in the order in which the image's author wants them present.
	Prefetch []uint32

	// Implicit lists directories that the layer does not list itself. They take the
	// attributes that they have in the layers below; see Fill.
	Implicit []ImplicitDir
}

// An ImplicitDir is a directory that exists only because something in it is listed.
type ImplicitDir struct {
	Path  string // relative, without leading slash
	Inode uint32
}

// An Inode is a file, directory or special file. Times are of the last modification.
type Inode struct {
	Mode      uint32 // type and permission bits as in stat(2)
	UID, GID  uint32
	Nlink     uint32
	Size      int64 // bytes; regular files and symbolic links
	MtimeSec  int64
	MtimeNsec uint32
	Major     uint32 // of the device, for character and block devices
	Minor     uint32
	Target    string   // symbolic links
	Xattrs    []Xattr  // sorted by name
	Entries   []Dirent // directories; sorted by name, without . and ..
	Parent    uint32   // directories

	// Data is where a regular file's data lies in the image already, in bytes; 0 leaves that to the
	// image's writer.
	Data int64

	// Extents[FirstExtent:FirstExtent+NumExtents] hold the file's data in file order. A
	// range that no extent covers is a hole and reads as zeros.
	FirstExtent, NumExtents uint32
}

// IsDir reports whether the inode is a directory.
func (i *Inode) IsDir() bool { return i.Mode&unix.S_IFMT == unix.S_IFDIR }

// IsRegular reports whether the inode is a regular file.
func (i *Inode) IsRegular() bool { return i.Mode&unix.S_IFMT == unix.S_IFREG }

// IsSymlink reports whether the inode is a symbolic link.
func (i *Inode) IsSymlink() bool { return i.Mode&unix.S_IFMT == unix.S_IFLNK }

// IsDevice reports whether the inode is a character or block device.
func (i *Inode) IsDevice() bool {
	t := i.Mode & unix.S_IFMT
	return t == unix.S_IFCHR || t == unix.S_IFBLK
}

// Xattr is one extended attribute, its name with the prefix ("user.", "security.", ...).
type Xattr struct {
	Name  string
	Value []byte
}

// A Dirent is a name in a directory.
type Dirent struct {
	Name  string
	Inode uint32
}

// An Extent is a range of one file with one source and one digest.
type Extent struct {
	FileOff int64 // bytes from the start of the file
	Len     int64 // bytes, more than zero
	Unit    uint32
	Inner   int64 // where the extent starts in the decoded unit
	Digest  [32]byte
}

// Limits bound what a layer's index may ask of us. A zero value is replaced by the default.
type Limits struct {
	PackedIndex int64 // bytes of the index as it lies in the blob
	PlainIndex  int64 // bytes of the decoded index
	Entries     int   // entries in the index
	Path        int   // bytes of one path
	Name        int   // bytes of one name
	XattrValue  int   // bytes of one extended attribute's value
	Extent      int64 // bytes of one extent
	Image       int64 // bytes of all file data together, holes included
	Plain       int64 // bytes that a layer which is imported may decode to
	Nodes       int   // files and directories, those that no entry lists included
	Paths       int64 // bytes of the paths and link targets of all entries together
	Tree        int64 // bytes of memory that the tree may take, about

	// Grow is asked before a tree takes some bytes of memory more, if it is not nil. Its error refuses the layer.
	Grow func(n int64) error
}

// WithDefaults returns l with every zero replaced.
func (l Limits) WithDefaults() Limits {
	set := func(v *int64, d int64) {
		if *v == 0 {
			*v = d
		}
	}
	setInt := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	set(&l.PackedIndex, 64<<20)
	set(&l.PlainIndex, 512<<20)
	setInt(&l.Entries, 4<<20)
	setInt(&l.Path, 4095)
	setInt(&l.Name, 255)
	setInt(&l.XattrValue, 64<<10)
	set(&l.Extent, 64<<20)
	set(&l.Image, 8<<40)
	set(&l.Plain, 256<<30)
	// A file takes some 1,000 bytes until the image is made. These are several times as many files as the largest layers in use
	// have. A layer beyond is unpacked by containerd, which keeps the paths of its entries in memory until it has ended. One that
	// was claimed before is unpacked by remorad, which allows twice as much and counts it.
	setInt(&l.Nodes, 2<<20)
	set(&l.Tree, 2<<30)
	set(&l.Paths, 512<<20)
	return l
}
