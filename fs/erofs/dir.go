package erofs

import (
	"github.com/remora-storage/remora/fs/layout"
)

// A directory is blocks of {entries of 12 bytes, then their names}; names are sorted over all
// blocks, "." and ".." among them. Every block but the last counts as full.
//
// An entry is {nid u64, offset of the name in the block u16, file type u8, reserved u8}.

// dirBlocks calls block with the entries of each block in turn, as ranges of the names that
// dirNames yields.
func dirBlocks(in *layout.Inode, block func(from, to, used int)) {
	n := len(in.Entries) + 2
	start, used := 0, 0
	k := 0
	dirNames(in, func(name string) {
		need := direntSize + len(name)
		if used+need > BlockSize {
			block(start, k, used)
			start, used = k, 0
		}
		used += need
		k++
	})
	if start < n {
		block(start, n, used)
	}
}

// dirNames yields all names of a directory in order.
func dirNames(in *layout.Inode, yield func(string)) {
	dots := []string{".", ".."}
	for _, e := range in.Entries {
		for len(dots) > 0 && dots[0] < e.Name {
			yield(dots[0])
			dots = dots[1:]
		}
		yield(e.Name)
	}
	for _, d := range dots {
		yield(d)
	}
}

func dirSize(in *layout.Inode) int64 {
	var size, last int64
	dirBlocks(in, func(_, _, used int) {
		size += BlockSize
		last = int64(used)
	})
	return size - BlockSize + last
}

// dirBytes returns a directory's data, i_size bytes.
func (p *Plan) dirBytes(i uint32) []byte {
	in := &p.l.Inodes[i]
	type named struct {
		name  string
		inode uint32
	}
	all := make([]named, 0, len(in.Entries)+2)
	k := 0
	dirNames(in, func(name string) {
		switch name {
		case ".":
			all = append(all, named{name, i})
		case "..":
			all = append(all, named{name, in.Parent})
		default:
			all = append(all, named{name, in.Entries[k].Inode})
			k++
		}
	})
	out := make([]byte, 0, p.at[i].size)
	dirBlocks(in, func(from, to, _ int) {
		if pad := len(out) % BlockSize; pad > 0 {
			out = append(out, make([]byte, BlockSize-pad)...)
		}
		nameOff := (to - from) * direntSize
		for _, e := range all[from:to] {
			var d [direntSize]byte
			le.PutUint64(d[0:], p.nid(e.inode))
			le.PutUint16(d[8:], uint16(nameOff))
			d[10] = fileType(p.l.Inodes[e.inode].Mode)
			out = append(out, d[:]...)
			nameOff += len(e.name)
		}
		for _, e := range all[from:to] {
			out = append(out, e.name...)
		}
	})
	return out
}
