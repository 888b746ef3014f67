package layout

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/cache/blob"
)

// ErrInvalid marks an index that breaks the rules of its format or our limits.
var ErrInvalid = errors.New("invalid layer index")

// ErrBeyond is an ErrInvalid of a layer that asks for more than the Limits: the same bytes will ask for it again.
var ErrBeyond error = beyond{ErrInvalid}

type beyond struct{ error }

func (b beyond) Unwrap() error { return b.error }

const (
	whiteoutPrefix = ".wh."
	whiteoutMeta   = ".wh..wh."
	whiteoutOpaque = ".wh..wh..opq"

	overlayXattrs  = "trusted.overlay."
	overlayOpaque  = "trusted.overlay.opaque"
	maxSymlinks    = 40
	maxInode       = math.MaxUint32 - 1
	blockSize      = 4096
	maxXattrTotal  = 128 << 10 // bytes of all attributes of one inode, what EROFS can index
	maxLinkTarget  = 4095
	implicitDirMod = unix.S_IFDIR | 0o755
)

// A Builder turns a sequence of archive entries into a Layout.
type Builder struct {
	limits Limits
	tally  *tally
	nodes  []node
	data   int64

	// The directory that was found last: entries of one follow each other. "" for none.
	lastPath string
	lastDir  uint32
}

// node is an inode in the making.
type node struct {
	Inode
	children map[string]uint32 // directories
	implicit bool
	opaque   bool // directories; Finish makes an attribute of it, once, however many marks there are
	extents  []Extent
}

// NewBuilder returns a Builder whose tree holds only the root directory.
func NewBuilder(limits Limits) *Builder {
	limits = limits.WithDefaults()
	b := &Builder{limits: limits, tally: newTally(limits)}
	// containerd creates a layer's root itself, 0755, and ignores what the archive says of it.
	b.nodes = append(b.nodes, node{Inode: Inode{Mode: implicitDirMod}, children: map[string]uint32{}})
	return b
}

// Add adds one entry. name is the archive's name for it; in.Mode holds the file type. For a
// regular file in.Size is the size and the extents come by AddExtent. It returns a handle for
// AddExtent, or ok = false where the entry has no inode of its own (whiteout marks, the root).
func (b *Builder) Add(name string, in Inode) (handle uint32, ok bool, err error) {
	if err := b.tally.entry(len(name)); err != nil {
		return 0, false, err
	}
	dir, base, err := b.locate(name)
	if err != nil {
		return 0, false, err
	}
	if base == "" { // the root
		b.nodes[Root].MtimeSec, b.nodes[Root].MtimeNsec = in.MtimeSec, in.MtimeNsec
		return 0, false, nil
	}
	switch {
	case base == whiteoutOpaque:
		b.nodes[dir].opaque = true
		return 0, false, b.tally.Take(xattrCost)
	case strings.HasPrefix(base, whiteoutMeta):
		return 0, false, nil // AUFS's own bookkeeping
	case strings.HasPrefix(base, whiteoutPrefix):
		base = base[len(whiteoutPrefix):]
		if base == "" || base == "." || base == ".." {
			return 0, false, fmt.Errorf("%w: whiteout %q names nothing", ErrInvalid, name)
		}
		_, err := b.replace(dir, base, Inode{Mode: unix.S_IFCHR, MtimeSec: in.MtimeSec, MtimeNsec: in.MtimeNsec})
		return 0, false, err
	}
	if err := b.checkInode(name, &in); err != nil {
		return 0, false, err
	}
	handle, err = b.replace(dir, base, in)
	return handle, err == nil, err
}

// Link adds another name for the entry that target names. The inode takes the owner, the
// permissions and the time that the link's own entry has, as it does where a tar is unpacked.
func (b *Builder) Link(name, target string, in Inode) error {
	if err := b.tally.entry(len(name) + len(target)); err != nil {
		return err
	}
	dir, base, err := b.locate(name)
	if err != nil {
		return err
	}
	tdir, tbase, err := b.locate(target)
	if err != nil {
		return err
	}
	ino, found := b.nodes[tdir].children[tbase]
	if !found || base == "" {
		return fmt.Errorf("%w: hard link %q names %q, which is not in the layer before it", ErrInvalid, name, target)
	}
	if b.nodes[ino].IsDir() {
		return fmt.Errorf("%w: hard link %q names directory %q", ErrInvalid, name, target)
	}
	if err := b.name(dir, base, ino); err != nil {
		return err
	}
	n := &b.nodes[ino].Inode
	n.Mode = n.Mode&unix.S_IFMT | in.Mode&^unix.S_IFMT
	n.UID, n.GID, n.MtimeSec, n.MtimeNsec = in.UID, in.GID, in.MtimeSec, in.MtimeNsec
	return nil
}

// AddExtent adds the next range of a file that Add returned the handle of.
func (b *Builder) AddExtent(handle uint32, e Extent) error {
	n := &b.nodes[handle]
	end := int64(0)
	if k := len(n.extents); k > 0 {
		end = n.extents[k-1].FileOff + n.extents[k-1].Len
	}
	switch {
	case !n.IsRegular():
		return fmt.Errorf("%w: data for what is not a regular file", ErrInvalid)
	case e.Len <= 0 || e.Len > b.limits.Extent:
		return fmt.Errorf("%w: extent of %d bytes (limit %d)", ErrInvalid, e.Len, b.limits.Extent)
	case e.FileOff < end || e.FileOff > n.Size-e.Len:
		return fmt.Errorf("%w: extent at %d+%d does not fit a file of %d bytes after %d", ErrInvalid, e.FileOff, e.Len, n.Size, end)
	case e.Inner < 0 || e.Inner > math.MaxInt32:
		return fmt.Errorf("%w: offset %d in a unit", ErrInvalid, e.Inner)
	}
	if err := b.tally.Take(extentCost); err != nil {
		return err
	}
	n.extents = append(n.extents, e)
	return nil
}

func (b *Builder) checkInode(name string, in *Inode) error {
	switch in.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		if in.Size < 0 || in.Size > b.limits.Image-b.data {
			return fmt.Errorf("%w: %q of %d bytes makes the layer larger than %d", ErrInvalid, name, in.Size, b.limits.Image)
		}
		b.data += (in.Size + blockSize - 1) / blockSize * blockSize
	case unix.S_IFLNK:
		if in.Target == "" || len(in.Target) > maxLinkTarget || strings.ContainsRune(in.Target, 0) {
			return fmt.Errorf("%w: symbolic link %q has a target of %d bytes", ErrInvalid, name, len(in.Target))
		}
		in.Size = int64(len(in.Target))
	case unix.S_IFCHR, unix.S_IFBLK:
		if in.Major >= 1<<12 || in.Minor >= 1<<20 {
			return fmt.Errorf("%w: device %d:%d of %q", ErrInvalid, in.Major, in.Minor, name)
		}
	case unix.S_IFDIR, unix.S_IFIFO, unix.S_IFSOCK:
	default:
		return fmt.Errorf("%w: %q has mode %#o", ErrInvalid, name, in.Mode)
	}
	if in.MtimeNsec >= 1e9 {
		return fmt.Errorf("%w: %q has %d nanoseconds", ErrInvalid, name, in.MtimeNsec)
	}
	return b.limits.checkXattrs(name, in)
}

// Shared counts attributes, in order of their names, that a caller of Add keeps for several entries, and returns those that a layer may
// have. All these entries may have the same slice then: it stays as it is.
func (b *Builder) Shared(all []Xattr) ([]Xattr, error) {
	if err := b.tally.xattrs(all); err != nil {
		return nil, err
	}
	return allowed(all), nil
}

// allowed drops, in place, attributes that a layer must not have: overlayfs keeps its own state in these, and a layer must not forge it.
func allowed(all []Xattr) []Xattr {
	return slices.DeleteFunc(all, func(x Xattr) bool { return strings.HasPrefix(x.Name, overlayXattrs) })
}

func byName(a, b Xattr) int { return cmp.Compare(a.Name, b.Name) }

// checkXattrs drops attributes that a layer must not have, and refuses those that an image cannot hold. What is Shared it leaves as it
// is.
func (l *Limits) checkXattrs(name string, in *Inode) error {
	in.Xattrs = allowed(in.Xattrs)
	total := 0
	for _, x := range in.Xattrs {
		if len(x.Name) > 255 || strings.ContainsRune(x.Name, 0) || len(x.Value) > min(l.XattrValue, 65535) {
			return fmt.Errorf("%w: extended attribute %.64q of %q has %d bytes", ErrInvalid, x.Name, name, len(x.Value))
		}
		total += len(x.Name) + len(x.Value) + 8
	}
	if total > maxXattrTotal {
		return fmt.Errorf("%w: %q has %d bytes of extended attributes", ErrInvalid, name, total)
	}
	if !slices.IsSortedFunc(in.Xattrs, byName) {
		slices.SortFunc(in.Xattrs, byName)
	}
	in.Xattrs = slices.CompactFunc(in.Xattrs, func(a, b Xattr) bool { return a.Name == b.Name })
	return nil
}

// locate finds the directory that name lies in, making implicit directories on the way, and
// the last part of the name. Symbolic links on the way are followed inside the layer, as
// containerd's unpacker does.
func (b *Builder) locate(name string) (dir uint32, base string, err error) {
	if len(name) > b.limits.Path+2 || strings.ContainsRune(name, 0) {
		return 0, "", fmt.Errorf("%w: path of %d bytes", ErrInvalid, len(name))
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return 0, "", fmt.Errorf("%w: path %q leaves its directory", ErrInvalid, name)
		}
		if len(part) > b.limits.Name {
			return 0, "", fmt.Errorf("%w: name of %d bytes in %.64q", ErrInvalid, len(part), name)
		}
	}
	clean := path.Clean("/" + name)
	if clean == "/" {
		return Root, "", nil
	}
	parent, base := path.Split(clean)
	if parent == b.lastPath {
		return b.lastDir, base, nil
	}
	if dir, err = b.walk(parent, 0); err == nil {
		b.lastPath, b.lastDir = parent, dir
	}
	return dir, base, err
}

func (b *Builder) walk(dirPath string, links int) (uint32, error) {
	at := uint32(Root)
	rest := strings.Trim(dirPath, "/")
	for rest != "" {
		part, more, _ := strings.Cut(rest, "/")
		rest = more
		if links > 0 {
			if err := b.tally.step(1, dirPath); err != nil {
				return 0, err
			}
		}
		if part == "" || part == "." {
			continue
		}
		if part == ".." { // only out of a link's target; the root is its own parent
			at = b.nodes[at].Parent
			continue
		}
		child, ok := b.nodes[at].children[part]
		if !ok {
			var err error
			if child, err = b.newNode(Inode{Mode: implicitDirMod, Parent: at}); err != nil {
				return 0, err
			}
			b.nodes[child].implicit = true
			if err := b.name(at, part, child); err != nil {
				return 0, err
			}
		}
		n := &b.nodes[child]
		if n.IsSymlink() {
			if links++; links > maxSymlinks {
				return 0, fmt.Errorf("%w: too many symbolic links in %q", ErrInvalid, dirPath)
			}
			if path.IsAbs(n.Target) {
				at = Root
			}
			rest = n.Target + "/" + rest
			if err := b.tally.step(len(rest)/stepBytes, dirPath); err != nil {
				return 0, err
			}
			continue
		}
		if !n.IsDir() {
			return 0, fmt.Errorf("%w: %q lies under something that is not a directory", ErrInvalid, dirPath)
		}
		at = child
	}
	return at, nil
}

func (b *Builder) newNode(in Inode) (uint32, error) {
	if err := b.tally.node(&in); err != nil {
		return 0, err
	}
	n := node{Inode: in}
	if in.IsDir() {
		n.children = map[string]uint32{}
	}
	b.nodes = append(b.nodes, n)
	return uint32(len(b.nodes) - 1), nil
}

// name puts an inode into a directory.
func (b *Builder) name(dir uint32, base string, ino uint32) error {
	if err := b.tally.Take(int64(nameCost + len(base))); err != nil {
		return err
	}
	b.nodes[dir].children[strings.Clone(base)] = ino // base alone, not the path that it is a part of
	return nil
}

// replace puts an inode at dir/base. A directory over a directory keeps what is in it.
func (b *Builder) replace(dir uint32, base string, in Inode) (uint32, error) {
	in.Parent = dir
	if _, ok := b.nodes[dir].children[base]; ok {
		b.lastPath = "" // a directory of it may lead elsewhere now
	}
	if old, ok := b.nodes[dir].children[base]; ok && b.nodes[old].IsDir() && in.IsDir() {
		n := &b.nodes[old]
		n.Inode, n.implicit = in, false
		return old, b.tally.xattrs(in.Xattrs)
	}
	ino, err := b.newNode(in)
	if err != nil {
		return 0, err
	}
	return ino, b.name(dir, base, ino)
}

// Finish returns the Layout. units must be in blob order. unitOf says which of them an extent
// lies in, given the Unit that the extent was added with.
func (b *Builder) Finish(codec blob.Codec, units []blob.Unit, unitOf func(uint32) uint32) (*Layout, error) {
	l := &Layout{Codec: codec, Units: units}
	if len(b.nodes) > maxInode {
		return nil, fmt.Errorf("%w: %d inodes", ErrInvalid, len(b.nodes))
	}
	// Breadth first from the root, so that what was replaced is left out and the numbers of
	// a directory's children are neighbours.
	const unseen = math.MaxUint32
	renumber := make([]uint32, len(b.nodes))
	for i := range renumber {
		renumber[i] = unseen
	}
	renumber[Root] = Root
	order := make([]uint32, 1, len(b.nodes))
	lengths := make([]uint32, 1, len(b.nodes)) // of paths, in bytes
	names := make([]string, 1, len(b.nodes))   // the first that each inode has
	pathBytes := int64(0)
	l.Inodes = make([]Inode, 1, len(b.nodes))
	for at := 0; at < len(order); at++ {
		n := &b.nodes[order[at]]
		in := n.Inode
		in.Nlink = l.Inodes[at].Nlink
		in.Parent = l.Inodes[at].Parent
		if n.opaque {
			setOpaque(&in)
		}
		if n.implicit {
			if int(lengths[at]) > b.limits.Path {
				return nil, fmt.Errorf("%w: an unlisted directory has a path of %d bytes", ErrInvalid, lengths[at])
			}
			pathBytes += int64(lengths[at])
			if err := b.tally.paths(pathBytes); err != nil {
				return nil, err
			}
			l.Implicit = append(l.Implicit, ImplicitDir{Path: pathOf(l.Inodes, names, uint32(at)), Inode: uint32(at)})
		}
		if in.IsDir() {
			in.Nlink = 2
			in.Entries = make([]Dirent, 0, len(n.children))
			for _, name := range slices.Sorted(maps.Keys(n.children)) {
				old := n.children[name]
				to := renumber[old]
				if to == unseen {
					to = uint32(len(order))
					renumber[old] = to
					order = append(order, old)
					names = append(names, name)
					lengths = append(lengths, lengths[at]+uint32(len(name))+min(lengths[at], 1))
					l.Inodes = append(l.Inodes, Inode{Parent: uint32(at)})
				}
				if b.nodes[old].IsDir() {
					in.Nlink++
				} else {
					l.Inodes[to].Nlink++
				}
				in.Entries = append(in.Entries, Dirent{Name: name, Inode: to})
			}
		}
		in.FirstExtent, in.NumExtents = uint32(len(l.Extents)), uint32(len(n.extents))
		for _, e := range n.extents {
			e.Unit = unitOf(e.Unit)
			if int(e.Unit) >= len(units) {
				return nil, fmt.Errorf("%w: extent in unit %d of %d", ErrInvalid, e.Unit, len(units))
			}
			l.Extents = append(l.Extents, e)
		}
		l.Inodes[at] = in
	}
	if err := b.checkUnits(l); err != nil {
		return nil, err
	}
	return l, nil
}

// pathOf returns the path of a directory, whose parents' names are known.
func pathOf(inodes []Inode, names []string, dir uint32) string {
	var parts []string
	for ; dir != Root; dir = inodes[dir].Parent {
		parts = append(parts, names[dir])
	}
	slices.Reverse(parts)
	return strings.Join(parts, "/")
}

// isOpaque reports whether a directory hides what the layers below have of it.
func (i *Inode) isOpaque() bool {
	return slices.ContainsFunc(i.Xattrs, func(x Xattr) bool { return x.Name == overlayOpaque })
}

// setOpaque makes a directory one that is opaque, whose other attributes may be shared.
func setOpaque(in *Inode) {
	in.Xattrs = append(slices.Clip(in.Xattrs), Xattr{Name: overlayOpaque, Value: []byte("y")})
	slices.SortFunc(in.Xattrs, byName)
}
