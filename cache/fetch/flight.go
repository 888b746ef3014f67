package fetch

// wholeFlight is all that may be under way: the window of bytes that fits the way to the source.
const wholeFlight = 1 << 36

// shareOf returns which part of the flight a request of n bytes takes where a window of bytes fits. One that is larger
// than the window is alone. Windows change while requests run, as the way is measured.
func shareOf(window, n int64) int64 {
	return min(n, window) * wholeFlight / window // below 1 << 61
}

// bytes returns the packed bytes of a batch, gaps included.
func (b batch) bytes() int64 {
	last := b.f.t.Unit(b.units[len(b.units)-1])
	return last.Off + last.Len - b.f.t.Unit(b.units[0]).Off
}
