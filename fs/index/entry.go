package index

import (
	"fmt"

	"github.com/remora-storage/remora/cache/inflate"
	"github.com/remora-storage/remora/fs/layout"
)

// MaxExtent is the size of a file's extents, of which the last one, and those at whose end a unit ends, are
// smaller.
const MaxExtent = 4 << 20

// An Entry is what an archive says of one name.
type Entry struct {
	Name  string
	Inode layout.Inode // without extents; Mode has the file type, but for a hard link
	// Link is the name that a hard link names; "" for all else.
	Link string
	// Pos is where a regular file's data begins, in plain bytes, and Parts which ranges of the file that
	// is, one behind the other.
	Pos   int64
	Parts []Part
}

// A Part is a range of a file that the archive holds, in bytes.
type Part struct{ Off, Len int64 }

// Place adds an entry to a tree. For one that has an inode of its own it returns a handle for the extents;
// whiteout marks have none, nor has their data.
func (e *Entry) Place(b *layout.Builder) (handle uint32, kept bool, err error) {
	if e.Link != "" {
		return 0, false, b.Link(e.Name, e.Link, e.Inode)
	}
	return b.Add(e.Name, e.Inode)
}

// cuts splits ranges of the plain bytes into extents: at the points, and each MaxExtent.
type cuts struct {
	points []inflate.Point
	unit   uint32
}

// extents calls yield with each extent of a file's data.
func (c *cuts) extents(e *Entry, yield func(layout.Extent) error) error {
	pos := e.Pos
	for _, p := range e.Parts {
		for off := int64(0); off < p.Len; {
			for int(c.unit)+1 < len(c.points) && c.points[c.unit+1].Plain <= pos {
				c.unit++
			}
			n := min(p.Len-off, MaxExtent)
			if int(c.unit)+1 < len(c.points) {
				n = min(n, c.points[c.unit+1].Plain-pos)
			}
			if err := yield(layout.Extent{FileOff: p.Off + off, Len: n, Unit: c.unit, Inner: pos - c.points[c.unit].Plain}); err != nil {
				return err
			}
			off, pos = off+n, pos+n
		}
	}
	return nil
}

// checkParts insists on parts of a file that follow each other.
func checkParts(size int64, parts []Part) error {
	end := int64(0)
	for _, p := range parts {
		if p.Off < end || p.Len <= 0 || p.Off > size-p.Len {
			return fmt.Errorf("%w: part %d+%d of a file of %d bytes", layout.ErrInvalid, p.Off, p.Len, size)
		}
		end = p.Off + p.Len
	}
	return nil
}
