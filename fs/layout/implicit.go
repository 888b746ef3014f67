package layout

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Attributes are what an implicit directory takes from the layers below.
type Attributes struct {
	Mode      uint32
	UID, GID  uint32
	MtimeSec  int64
	MtimeNsec uint32
	Xattrs    []Xattr
}

// Fill gives implicit directories the attributes that below returns for their paths. A path
// that below does not know keeps 0755, owned by root, as containerd's unpacker makes it.
//
// What comes from below is another layer's, so it keeps the limits that a layer's own attributes keep. An error that wraps
// ErrInvalid says which it breaks.
func (l *Layout) Fill(limits Limits, below func(path string) (Attributes, bool, error)) error {
	limits = limits.WithDefaults()
	taken := newTally(limits)
	for _, d := range l.Implicit {
		a, found, err := below(d.Path)
		if err != nil {
			return err
		}
		if !found {
			continue
		}
		in := &l.Inodes[d.Inode]
		opaque := in.isOpaque()
		if a.Mode&unix.S_IFMT != unix.S_IFDIR || a.MtimeNsec >= 1e9 {
			return fmt.Errorf("%w: below, %.64q has mode %#o and %d nanoseconds", ErrInvalid, d.Path, a.Mode, a.MtimeNsec)
		}
		in.Mode, in.UID, in.GID = a.Mode, a.UID, a.GID
		in.MtimeSec, in.MtimeNsec, in.Xattrs = a.MtimeSec, a.MtimeNsec, a.Xattrs
		if err := limits.checkXattrs(d.Path, in); err != nil {
			return fmt.Errorf("below: %w", err)
		}
		if opaque {
			setOpaque(in)
		}
		if err := taken.xattrs(in.Xattrs); err != nil {
			return fmt.Errorf("attributes of %d unlisted directories, from below: %w", len(l.Implicit), err)
		}
	}
	return nil
}
