package inflate

// A Sparse holds ranges of a window of Window bytes: usually a tenth of it, or less, is referred to.
//
//	offset  size  field
//	0       2     offset in the window, little-endian
//	2       2     length - 1
//	4             bytes
//	...           the next range, behind this one
type Sparse []byte

const (
	rangeHeader = 4
	// A gap of this many bytes or fewer costs less than another range.
	smallGap = 4
)

func makeSparse(window []byte, used *[Window]bool) Sparse {
	var s Sparse
	for i := 0; i < Window; i++ {
		if !used[i] {
			continue
		}
		end := i + 1
		for k := end; k < Window && k-end <= smallGap; k++ {
			if used[k] {
				end = k + 1
			}
		}
		s = le.AppendUint16(s, uint16(i))
		s = le.AppendUint16(s, uint16(end-i-1))
		s = append(s, window[i:end]...)
		i = end
	}
	return s
}

// expand writes the ranges to a window, and reports whether they are right.
func (s Sparse) expand(window []byte) bool {
	last := 0
	for len(s) > 0 {
		if len(s) < rangeHeader {
			return false
		}
		off, n := int(le.Uint16(s)), int(le.Uint16(s[2:]))+1
		s = s[rangeHeader:]
		if off < last || off+n > Window || n > len(s) {
			return false
		}
		copy(window[off:], s[:n])
		s, last = s[n:], off+n
	}
	return true
}
