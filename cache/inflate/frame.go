package inflate

import "bytes"

// frame reads what gzip puts around DEFLATE: a header before each member and a trailer behind it.
type frame struct {
	inData  bool
	stage   stage
	flags   byte
	skip    int  // bytes of the extra field that are left
	members int  // headers read so far
	trailer bool // one is due before the next header
}

type stage int

const (
	stageFixed stage = iota
	stageExtraLen
	stageExtra
	stageName
	stageComment
	stageSum
)

const (
	hasSum, hasExtra, hasName, hasComment = 1 << 1, 1 << 2, 1 << 3, 1 << 4
	reservedFlags                         = 0xe0
	headerFixed                           = 10
	trailerSize                           = 8
)

type frameState int

const (
	frameInput frameState = iota
	frameData
	frameEnd
)

func frameStatus(st frameState) Status {
	if st == frameEnd {
		return Done
	}
	return NeedInput
}

// header reads what lies before a member's data, a piece at a time.
func (f *frame) header(b *blocks) (frameState, error) {
	b.giveBack()
	b.bits, b.n = 0, 0
	if f.members > 0 && !f.trailer && f.stage == stageFixed {
		if len(b.in)-b.r < trailerSize {
			return f.starved(b)
		}
		b.r += trailerSize
		f.trailer = true
	}
	for {
		rest := b.in[b.r:]
		switch f.stage {
		case stageFixed:
			if f.members > 0 && (b.last && len(rest) < headerFixed || len(rest) >= 2 && (rest[0] != 0x1f || rest[1] != 0x8b)) {
				b.r = len(b.in)
				return frameEnd, nil // padding, which gzip ignores
			}
			if len(rest) < headerFixed {
				return f.starved(b)
			}
			if rest[0] != 0x1f || rest[1] != 0x8b || rest[2] != 8 || rest[3]&reservedFlags != 0 {
				return frameInput, ErrCorrupt
			}
			f.flags = rest[3]
			b.r += headerFixed
			f.stage = stageExtraLen
		case stageExtraLen:
			if f.flags&hasExtra != 0 {
				if len(rest) < 2 {
					return f.starved(b)
				}
				f.skip = int(le.Uint16(rest))
				b.r += 2
			}
			f.stage = stageExtra
		case stageExtra:
			k := min(f.skip, len(rest))
			b.r += k
			if f.skip -= k; f.skip > 0 {
				return f.starved(b)
			}
			f.stage = stageName
		case stageName, stageComment:
			flag := byte(hasName)
			if f.stage == stageComment {
				flag = hasComment
			}
			if f.flags&flag != 0 {
				end := bytes.IndexByte(rest, 0)
				if end < 0 {
					b.r = len(b.in)
					return f.starved(b)
				}
				b.r += end + 1
			}
			f.stage++
		case stageSum:
			if f.flags&hasSum != 0 {
				if len(rest) < 2 {
					return f.starved(b)
				}
				b.r += 2
			}
			f.stage, f.inData, f.trailer = stageFixed, true, false
			f.members++
			b.phase, b.low = atBlock, b.w
			return frameData, nil
		}
	}
}

func (f *frame) starved(b *blocks) (frameState, error) {
	if b.last {
		return frameInput, ErrCorrupt // cut short
	}
	return frameInput, nil
}
