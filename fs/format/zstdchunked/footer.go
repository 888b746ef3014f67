package zstdchunked

import (
	"encoding/binary"
	"fmt"

	"github.com/remora-storage/remora/fs/layout"
)

// A blob ends with a skippable frame: its header, and as payload little-endian numbers of 8 bytes and
// a mark.
//
//	first generation   table's offset, packed, plain, type, mark                        40 bytes
//	second generation  table's offset, packed, plain, type, tar-split's three, mark     64 bytes
const (
	frameHeader  = 8
	firstFooter  = 40
	secondFooter = 64
	firstMark    = "GnUlInUx"
	secondMark   = "GNUlInUx"

	skippable = 0x184D2A50 // the first four bytes of a skippable frame, little-endian
)

var le = binary.LittleEndian

// tailSize is the longest footer with its frame's header.
const tailSize = frameHeader + secondFooter

// parseFooter reads the footer at the end of a blob's last bytes.
func parseFooter(tail []byte) (t Table, err error) {
	for _, g := range []struct {
		size int
		mark string
	}{{secondFooter, secondMark}, {firstFooter, firstMark}} {
		if len(tail) < frameHeader+g.size || string(tail[len(tail)-len(g.mark):]) != g.mark {
			continue
		}
		frame := tail[len(tail)-frameHeader-g.size:]
		if le.Uint32(frame) != skippable || le.Uint32(frame[4:]) != uint32(g.size) {
			continue
		}
		p := frame[frameHeader:]
		off, packed, plain, kind := le.Uint64(p), le.Uint64(p[8:]), le.Uint64(p[16:]), le.Uint64(p[24:])
		if kind != tableType || off < frameHeader || off > 1<<62 || packed == 0 || packed > 1<<62 || plain == 0 || plain > 1<<62 {
			return t, fmt.Errorf("%w: footer with a table of %d bytes and type %d at %d", layout.ErrInvalid, packed, kind, off)
		}
		return Table{Off: int64(off), Packed: int64(packed), Plain: int64(plain)}, nil
	}
	return t, fmt.Errorf("%w: no footer of zstd:chunked", layout.ErrInvalid)
}

// appendFooter appends a skippable frame with a footer: of the second generation if there is a record
// of the tar's headers.
func appendFooter(p []byte, t Table, split *[3]int64) []byte {
	numbers := []int64{t.Off, t.Packed, t.Plain, tableType}
	size, mark := uint32(firstFooter), firstMark
	if split != nil {
		numbers = append(numbers, split[:]...)
		size, mark = secondFooter, secondMark
	}
	p = le.AppendUint32(p, skippable)
	p = le.AppendUint32(p, size)
	for _, v := range numbers {
		p = le.AppendUint64(p, uint64(v))
	}
	return append(p, mark...)
}
