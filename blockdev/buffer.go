package blockdev

import "unsafe"

const pageSize = 4096

// aligned reports whether direct I/O can use p.
func aligned(p []byte) bool {
	return len(p) == 0 || uintptr(unsafe.Pointer(&p[0]))%pageSize == 0
}

// AlignedBuffer returns n bytes that begin on a page, as direct I/O wants them.
func AlignedBuffer(n int) []byte {
	b := make([]byte, n)
	if aligned(b) { // those of whole pages are
		return b
	}
	b = make([]byte, n+pageSize)
	skip := pageSize - int(uintptr(unsafe.Pointer(&b[0]))%pageSize)
	return b[skip : skip+n : skip+n]
}
