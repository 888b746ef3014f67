package blob

import (
	"math"

	"github.com/klauspost/compress/zstd"
)

// A Room is the memory in which a unit is decoded. The zero value has no end.
type Room struct {
	// Window is what its decoder may take, as Window returns it; 0 for the most that there is. A unit that needs more fails with
	// ErrWindow.
	Window int64
	// More is asked for bytes of memory that the unit can do without, in which what no extent holds is kept. nil for no end.
	More func(n int64) bool
}

func (r *Room) more(n int64) bool { return r.More == nil || r.More(n) }

// HeadSize is how many bytes of a unit say what its decoder takes, if it has as many.
func (c Codec) HeadSize() int {
	if c == Zstd {
		return zstd.HeaderMaxSize
	}
	return 0
}

// windows are the sizes, in bytes, of which a decoder of zstd is for one: frames of files that are packed one by one, of usual levels,
// and the largest that are decoded.
var windows = [...]int64{256 << 10, 1 << 20, 8 << 20, maxWindow}

// besidesWindow is what a decoder of zstd takes besides its window, in bytes.
const besidesWindow = 640 << 10

// MaxWindow returns the bytes of memory that a decoder of the codec takes at most, besides what comes out of it.
func (c Codec) MaxWindow() int64 {
	if c == Zstd {
		return maxWindow + besidesWindow
	}
	return 0
}

// Window returns the bytes of memory that the decoder of a unit takes, besides what comes out of it, by the unit's first HeadSize
// bytes. If several frames are in the unit, later ones may need more.
func (c Codec) Window(head []byte) int64 {
	if c != Zstd {
		return 0
	}
	size, err := FrameWindow(head)
	if err != nil || size == 0 {
		return c.MaxWindow()
	}
	return windows[class(size)] + besidesWindow
}

// FrameWindow returns how many bytes of what was decoded a frame of zstd wants kept, given its first zstd.HeaderMaxSize bytes, or
// all that there are: one of a single segment wants as many as its content has. 0 if the frame is to be skipped.
func FrameWindow(head []byte) (int64, error) {
	var h zstd.Header
	if err := h.Decode(head); err != nil || h.Skippable {
		return 0, err
	}
	size := h.WindowSize
	if h.SingleSegment {
		size = h.FrameContentSize
	}
	return int64(min(max(size, zstd.MinWindowSize), math.MaxInt64)), nil
}

// class returns which of windows a window of some bytes is decoded in; the last is for those that are refused, too.
func class(size int64) int {
	for i, w := range windows {
		if size <= w {
			return i
		}
	}
	return len(windows) - 1
}
