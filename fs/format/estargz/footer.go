package estargz

import (
	"encoding/binary"
	"fmt"
	"strconv"

	"github.com/remora-storage/remora/fs/layout"
)

// The footer is an empty gzip member whose extra field holds the offset of the table.
//
//	offset  size  field
//	0       10    gzip header: 1f 8b 08, flags 04 (FEXTRA), the rest ignored
//	10      2     length of the extra field, LE: 26 (22 in the old form)
//	12      2     subfield id "SG"            (absent in the old form)
//	14      2     subfield length, LE: 22     (absent in the old form)
//	16      16    offset of the table in hexadecimal digits
//	32      6     "STARGZ"
//	38      5     an empty stored deflate block
//	43      8     CRC32 and size, both zero
const (
	footerSize    = 51
	oldFooterSize = 47
	magic         = "STARGZ"
	offsetDigits  = 16
)

// parseFooter finds the table's offset in the last bytes of a blob of the given size.
func parseFooter(tail []byte, blobSize int64) (tocOff int64, footerLen int, err error) {
	for _, size := range []int{footerSize, oldFooterSize} {
		if len(tail) < size {
			continue
		}
		off, ok := decodeFooter(tail[len(tail)-size:])
		if !ok {
			continue
		}
		if off > blobSize-int64(size) {
			return 0, 0, fmt.Errorf("%w: footer puts the table at %d in a blob of %d bytes", layout.ErrInvalid, off, blobSize)
		}
		return off, size, nil
	}
	return 0, 0, fmt.Errorf("%w: no eStargz footer", layout.ErrInvalid)
}

func decodeFooter(p []byte) (tocOff int64, ok bool) {
	if p[0] != 0x1f || p[1] != 0x8b || p[2] != 8 || p[3] != 4 {
		return 0, false
	}
	extraLen := int(binary.LittleEndian.Uint16(p[10:]))
	extra := p[12:]
	if len(p) == footerSize {
		if extraLen != 4+offsetDigits+len(magic) || string(extra[:2]) != "SG" ||
			int(binary.LittleEndian.Uint16(extra[2:])) != offsetDigits+len(magic) {
			return 0, false
		}
		extra = extra[4:]
	} else if extraLen != offsetDigits+len(magic) {
		return 0, false
	}
	if string(extra[offsetDigits:offsetDigits+len(magic)]) != magic {
		return 0, false
	}
	off, err := strconv.ParseInt(string(extra[:offsetDigits]), 16, 64)
	return off, err == nil && off >= 0
}
