package erofs

import (
	"bufio"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/fs/layout"
)

// WriteTo writes the image's metadata, MetaSize bytes.
func (p *Plan) WriteTo(w io.Writer) (int64, error) {
	out := &metaWriter{w: bufio.NewWriterSize(w, 256<<10)}
	out.put(make([]byte, superOffset))
	out.put(superblock(uint64(len(p.l.Inodes)), uint32(p.Size>>blockBits), p.uuid))
	var tail []byte
	for i := range p.l.Inodes {
		in, at := &p.l.Inodes[i], &p.at[i]
		out.padTo(at.off)
		tail = tail[:0]
		tail = p.appendInode(tail, uint32(i), in, at)
		out.put(tail)
	}
	out.padTo(align(p.inode, BlockSize))
	for i := range p.l.Inodes {
		in, at := &p.l.Inodes[i], &p.at[i]
		if in.IsRegular() || at.data == 0 {
			continue
		}
		out.padTo(at.data)
		data := p.inodeData(uint32(i), in)
		out.put(data[:at.size-at.inline])
	}
	out.padTo(p.MetaSize)
	return out.n, out.flush()
}

func (p *Plan) appendInode(b []byte, i uint32, in *layout.Inode, at *place) []byte {
	dataLayout := uint16(layoutFlatPlain)
	where := uint32(at.data >> blockBits)
	if at.inline > 0 {
		dataLayout = layoutInline
	}
	switch in.Mode & unix.S_IFMT {
	case unix.S_IFCHR, unix.S_IFBLK:
		where = encodeDevice(in.Major, in.Minor)
	}
	slots := uint16(0)
	if at.xattr > 0 {
		slots = uint16((at.xattr-xattrHeaderSize)/xattrEntrySize + 1)
	}
	head := encodeInode(in, i+1, at.size, dataLayout, slots, where)
	b = append(b, head[:]...)
	if at.xattr > 0 {
		b = appendXattrs(b, in)
	}
	if at.inline > 0 {
		data := p.inodeData(i, in)
		b = append(b, data[at.size-at.inline:]...)
	}
	return b
}

// inodeData returns the data of a directory or symbolic link.
func (p *Plan) inodeData(i uint32, in *layout.Inode) []byte {
	if in.IsDir() {
		return p.dirBytes(i)
	}
	return []byte(in.Target)
}

// metaWriter pads, counts, keeps the first error, and holds the first block back until its
// checksum is known.
type metaWriter struct {
	w     *bufio.Writer
	n     int64
	first []byte
	err   error
}

func (m *metaWriter) put(p []byte) {
	m.n += int64(len(p))
	if room := BlockSize - len(m.first); room > 0 {
		k := min(room, len(p))
		m.first = append(m.first, p[:k]...)
		p = p[k:]
		if len(m.first) == BlockSize {
			sumFirstBlock(m.first)
			m.write(m.first)
		}
	}
	m.write(p)
}

func (m *metaWriter) write(p []byte) {
	if m.err == nil && len(p) > 0 {
		_, m.err = m.w.Write(p)
	}
}

var zeros [BlockSize]byte

func (m *metaWriter) padTo(off int64) {
	if off < m.n {
		panic(fmt.Sprintf("erofs: metadata at %d overlaps %d", off, m.n)) // our own invariant
	}
	for m.n < off {
		m.put(zeros[:min(off-m.n, BlockSize)])
	}
}

func (m *metaWriter) flush() error {
	if m.err != nil {
		return fmt.Errorf("write EROFS metadata: %w", m.err)
	}
	if err := m.w.Flush(); err != nil {
		return fmt.Errorf("write EROFS metadata: %w", err)
	}
	return nil
}
