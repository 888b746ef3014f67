package inflate

// A Point is a place in a gzip file at which decoding can begin.
type Point struct {
	Plain int64 // plain bytes before it
	Off   int64 // packed bytes before it, those of a byte that it lies in included
	// Bits is how many of the byte before Off, its highest ones, belong to what follows the point; they
	// are the lowest of Value. 0 to 7.
	Bits, Value uint8
	// Window is what of the bytes before the point is referred to behind it.
	Window Sparse
}

// Status says what a Stream wants.
type Status int

// What it may want.
const (
	NeedInput  Status = iota // Feed
	NeedOutput               // Output, after Chunk was taken
	Done                     // nothing: the file has ended
)

// Headroom is what Feed wants to be free before new input.
const Headroom = 1 << 10

// BufferSize returns how large a buffer for about n plain bytes at a time must be.
func BufferSize(n int) int { return Window + n + slack }

// A Stream decodes a gzip file with all its members. It is used by one goroutine.
type Stream struct {
	b       blocks
	spacing int64
	frame   frame
	off     int64 // of the file, of in[0]
	plain   int64 // of the whole output, of out[0]
	points  []Point
}

// NewStream returns a Stream that notes a Point at the first block that begins spacing plain bytes or
// more behind the last one; 0 for none. The file's start is the first Point.
func NewStream(spacing int64) *Stream {
	s := &Stream{spacing: spacing, points: []Point{{}}}
	return s
}

// Points returns the points so far. The window of the last one may not be known until Window bytes
// more are decoded.
func (s *Stream) Points() []Point { return s.points }

// Feed gives input: buf[from:], of which the Headroom bytes before from are used for what is left of
// earlier input. buf belongs to the Stream until it needs input again. last says that none follows.
func (s *Stream) Feed(buf []byte, from int, last bool) {
	left := len(s.b.in) - s.b.r
	copy(buf[from-left:from], s.b.in[s.b.r:])
	s.off += int64(s.b.r)
	s.b.in, s.b.r, s.b.last = buf[from-left:], 0, last
}

// Output gives a buffer for what comes next, of BufferSize bytes. The one before is the caller's again.
func (s *Stream) Output(buf []byte) {
	k := min(Window, s.b.w-s.b.low)
	copy(buf[Window-k:Window], s.b.out[s.b.w-k:s.b.w])
	shift := s.b.w - Window
	s.plain += int64(shift)
	if s.b.watch != nil {
		s.b.watch.at -= shift
	}
	s.b.out, s.b.w, s.b.low = buf, Window, Window-k
}

// Chunk returns what was decoded into the buffer.
func (s *Stream) Chunk() []byte {
	if s.b.out == nil {
		return nil
	}
	return s.b.out[Window:s.b.w]
}

// Run decodes as far as it can.
func (s *Stream) Run() (Status, error) {
	if s.b.out == nil {
		return NeedOutput, nil
	}
	for {
		if !s.frame.inData {
			st, err := s.frame.header(&s.b)
			if st != frameData || err != nil {
				return frameStatus(st), err
			}
		}
		st, err := s.b.run()
		switch {
		case err != nil:
			return NeedInput, err
		case st == needInput:
			return NeedInput, nil
		case st == needOutput:
			return NeedOutput, nil
		case st == streamEnd:
			s.frame.inData = false
		case st == blockStart:
			s.notePoint()
		}
	}
}

// notePoint makes a point of the place that the decoder is at, the beginning of a block, if the last
// one is far enough before.
func (s *Stream) notePoint() {
	b := &s.b
	plain := s.plain + int64(b.w)
	last := &s.points[len(s.points)-1]
	if s.spacing == 0 || plain-last.Plain < s.spacing {
		return
	}
	if b.watch != nil {
		b.watch.finish()
		b.watch = nil
	}
	s.points = append(s.points, Point{Plain: plain, Off: s.off + int64(b.r), Bits: uint8(b.n), Value: uint8(b.bits)})
	if k := min(Window, b.w-b.low); k > 0 {
		window := make([]byte, Window)
		copy(window[Window-k:], b.out[b.w-k:b.w])
		i := len(s.points) - 1
		b.watch = &watch{at: b.w, window: window, done: func(w Sparse) { s.points[i].Window = w }}
	}
}

// Finish makes the last point whole. It is called when the file has ended.
func (s *Stream) Finish() {
	if s.b.watch != nil {
		s.b.watch.finish()
		s.b.watch = nil
	}
}

// watch finds out which bytes before a point are referred to behind it.
type watch struct {
	at     int // of the point, in the output buffer
	window []byte
	used   [Window]bool
	done   func(Sparse)
}

// refers notes a reference to length bytes at from.
func (w *watch) refers(from, length int) {
	i := from - w.at + Window
	for ; length > 0 && i < Window; i++ {
		w.used[i] = true
		length--
	}
}

func (w *watch) finish() { w.done(makeSparse(w.window, &w.used)) }
