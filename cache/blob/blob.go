package blob

// A Unit is a range of a blob that is decoded as a whole.
type Unit struct {
	Off, Len int64 // bytes of the blob
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
