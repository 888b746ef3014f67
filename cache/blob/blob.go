package blob

import "math"

// A Unit is a range of a blob that is decoded as a whole.
type Unit struct {
	Off, Len int64 // bytes of the blob
}

// MaxUnit bounds what of a unit is decoded into memory, in bytes: all up to its last extent. A reader of one byte waits for
// that, and pays for it.
const MaxUnit = 64 << 20

// MaxPlain returns how many plain bytes a unit of some packed bytes can have at most.
func (c Codec) MaxPlain(packed int64) int64 {
	switch c {
	case Gzip, Spans:
		return ratio(packed, 1032) // a match of 258 bytes takes two bits
	case Zstd:
		return ratio(packed, 32<<10) // a block of 128 KiB of one byte takes four
	case Plain:
		return packed
	}
	return math.MaxInt64
}

// ratio allows for what lies in the bytes before and behind a unit.
func ratio(packed, times int64) int64 {
	if packed > math.MaxInt64/times-64 {
		return math.MaxInt64
	}
	return (packed + 64) * times
}

// Codec says how the units of a blob are compressed.
type Codec uint32

// The codecs. Their numbers are written to disk.
const (
	Plain Codec = 0
	Gzip  Codec = 1
	Zstd  Codec = 2
	// Spans is gzip that is decoded from points in the middle of it.
	Spans Codec = 3
	// Whole is what cannot be decoded by parts. There is one unit, and nothing says where in it an extent lies. What was
	// imported so cannot be fetched again.
	Whole Codec = 4
)
