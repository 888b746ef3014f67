package layout

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
func (l *Layout) Fill(below func(path string) (Attributes, bool, error)) error {
	for _, d := range l.Implicit {
		a, found, err := below(d.Path)
		if err != nil {
			return err
		}
		if !found {
			continue
		}
		in := &l.Inodes[d.Inode]
		opaque, isOpaque := xattr(in, overlayOpaque)
		in.Mode, in.UID, in.GID = a.Mode, a.UID, a.GID
		in.MtimeSec, in.MtimeNsec, in.Xattrs = a.MtimeSec, a.MtimeNsec, a.Xattrs
		if isOpaque {
			setXattr(in, overlayOpaque, opaque)
		}
	}
	return nil
}
