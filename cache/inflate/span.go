package inflate

// mostOut is how many bytes come of one at most: a match of 258 takes two bits.
const mostOut = 1032

// Inflate returns the n plain bytes behind the point, given the packed bytes behind it: those up to
// the next point, or the file's end.
func (p *Point) Inflate(packed []byte, n int) ([]byte, error) {
	out, err := p.inflate(packed, n, false)
	if err == nil && len(out) != n {
		return nil, ErrCorrupt
	}
	return out, err
}

// InflateSome returns the first n plain bytes behind the point, given the first packed ones. It fails if they do not give as many.
func (p *Point) InflateSome(packed []byte, n int) ([]byte, error) {
	out, err := p.inflate(packed, n, true)
	if err != nil {
		return nil, err
	}
	return out[:n:n], nil
}

// inflate returns the plain bytes behind the point, n and perhaps a few more. What comes behind them may be wrong, or missing, if only some
// are wanted.
func (p *Point) inflate(packed []byte, n int, some bool) ([]byte, error) {
	if int64(n) > mostOut*int64(len(packed)+1) {
		return nil, ErrCorrupt // there are no bytes for so many: they need no memory
	}
	var s Stream
	s.b.out, s.b.w, s.b.low = make([]byte, BufferSize(n)), Window, Window
	s.b.in, s.b.last = packed, true
	if p.Off > 0 {
		if p.Bits > 7 || !p.Window.expand(s.b.out[:Window]) {
			return nil, ErrCorrupt
		}
		s.b.bits, s.b.n = uint64(p.Value)&(1<<p.Bits-1), uint(p.Bits)
		if len(p.Window) > 0 {
			s.b.low = 0
		}
		s.frame.inData, s.frame.members = true, 1
	}
	for {
		if !s.frame.inData {
			switch st, err := s.frame.header(&s.b); {
			case err != nil:
				return nil, err
			case st != frameData:
				return nil, ErrCorrupt
			}
		}
		st, err := s.b.run()
		enough := s.b.w-Window >= n
		switch {
		case err != nil && !(some && enough):
			return nil, err
		case st == streamEnd:
			s.frame.inData = false
		case st != blockStart && !(some && enough):
			return nil, ErrCorrupt // more than n bytes
		}
		if enough {
			return s.b.out[Window:s.b.w:s.b.w], nil
		}
	}
}
