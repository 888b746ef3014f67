package inflate

import (
	"encoding/binary"
	"errors"
)

// ErrCorrupt says that bytes are not DEFLATE, or not gzip.
var ErrCorrupt = errors.New("corrupt gzip data")

const (
	// Window is how far back DEFLATE refers, in bytes.
	Window = 32 << 10

	// slack is what must be free behind the output for a symbol to be decoded without asking for each
	// byte: a match, what a copy by words writes beyond it, and literals before.
	slack = 258 + 8 + 16
	// headBytes is what a block's header takes at most: 17 bits, the code of lengths, and 320 lengths.
	headBytes = (17 + 19*3 + 320*(7+7) + 7) / 8
)

// status says why blocks were not decoded further.
type status int

const (
	needInput  status = iota // and no symbol that is here whole is left
	needOutput               // less than slack is free
	blockStart               // a block begins here
	streamEnd                // the last block has ended
)

type phase int

const (
	atBlock phase = iota
	inStored
	inCodes
	ended
)

var le = binary.LittleEndian

// blocks decodes a sequence of DEFLATE blocks from in to out.
type blocks struct {
	in   []byte
	r    int // read so far, what is in bits included
	last bool
	bits uint64
	n    uint // how many bits hold

	out []byte
	w   int // written so far
	low int // where what may be referred to begins

	phase  phase
	final  bool // the block is the last one
	stored int  // bytes left of a stored block

	lit  *litTable
	dist *distTable
	// own tables, filled for each block that brings its own codes
	ownLit  litTable
	ownDist distTable

	// watch, if not nil, is told of every reference.
	watch *watch
}

// run decodes until it cannot go on, or to the beginning of a block. In bits and n whole bytes are
// given back then: n is less than 8.
func (b *blocks) run() (status, error) {
	for {
		switch b.phase {
		case atBlock:
			st, err := b.header()
			if st != blockStart || err != nil {
				return st, err
			}
		case inStored:
			k := min(b.stored, len(b.in)-b.r, len(b.out)-slack-b.w)
			if k > 0 {
				copy(b.out[b.w:], b.in[b.r:b.r+k])
				b.w, b.r, b.stored = b.w+k, b.r+k, b.stored-k
			}
			switch {
			case b.stored == 0:
				return b.blockEnds(), nil
			case b.r == len(b.in):
				return b.starved()
			}
			return needOutput, nil
		case inCodes:
			st, err := b.codes()
			b.giveBack()
			if err != nil || st != blockStart {
				return st, err
			}
			return b.blockEnds(), nil
		case ended:
			return streamEnd, nil
		}
	}
}

func (b *blocks) blockEnds() status {
	if b.final {
		b.phase = ended
		return streamEnd
	}
	b.phase = atBlock
	return blockStart
}

func (b *blocks) starved() (status, error) {
	if b.last {
		return needInput, ErrCorrupt // cut short
	}
	return needInput, nil
}

// giveBack returns whole bytes from bits to the input.
func (b *blocks) giveBack() {
	b.r -= int(b.n >> 3)
	b.n &= 7
	b.bits &= 1<<b.n - 1
}

// refill has at least 56 bits in bits, or all that is left.
func (b *blocks) refill() {
	for b.n < 56 && b.r < len(b.in) {
		b.bits |= uint64(b.in[b.r]) << b.n
		b.r++
		b.n += 8
	}
}

func (b *blocks) take(k uint) uint32 {
	v := uint32(b.bits & (1<<k - 1))
	b.bits >>= k
	b.n -= k
	return v
}

// header reads a block's header. blockStart says that the block's data can be read.
func (b *blocks) header() (status, error) {
	if !b.last && len(b.in)-b.r < headBytes {
		return needInput, nil
	}
	b.refill()
	if b.n < 3 {
		return needInput, ErrCorrupt
	}
	b.final = b.take(1) == 1
	switch b.take(2) {
	case 0:
		b.giveBack()
		b.bits, b.n = 0, 0 // to the next byte
		if len(b.in)-b.r < 4 {
			return needInput, ErrCorrupt
		}
		size, check := le.Uint16(b.in[b.r:]), le.Uint16(b.in[b.r+2:])
		if size != ^check {
			return needInput, ErrCorrupt
		}
		b.r += 4
		b.stored, b.phase = int(size), inStored
	case 1:
		b.lit, b.dist, b.phase = fixedLit, fixedDist, inCodes
	case 2:
		if !b.readCodes() {
			return needInput, ErrCorrupt
		}
		b.lit, b.dist, b.phase = &b.ownLit, &b.ownDist, inCodes
	default:
		return needInput, ErrCorrupt
	}
	b.giveBack()
	return blockStart, nil
}

// readCodes reads the codes that a block brings.
func (b *blocks) readCodes() bool {
	b.refill()
	if b.n < 14 {
		return false
	}
	nlit, ndist, nlen := int(b.take(5))+257, int(b.take(5))+1, int(b.take(4))+4
	if nlit > 286 || ndist > 30 {
		return false
	}
	var short [19]uint8
	for _, i := range lengthOrder[:nlen] {
		b.refill()
		if b.n < 3 {
			return false
		}
		short[i] = uint8(b.take(3))
	}
	var table [128]uint32
	if !build(table[:], 7, short[:], litEntries[:19]) {
		return false
	}
	var lens [286 + 30]uint8
	for i := 0; i < nlit+ndist; {
		b.refill()
		e := table[b.bits&127]
		k := uint(e & 0xff)
		if e&exceptional != 0 || k > b.n {
			return false
		}
		b.take(k)
		s := uint8(e >> 16)
		if s < 16 {
			lens[i] = s
			i++
			continue
		}
		var value uint8
		var extra uint
		times := 3
		switch s {
		case 16:
			if i == 0 {
				return false
			}
			value, extra = lens[i-1], 2
		case 17:
			extra = 3
		case 18:
			extra, times = 7, 11
		}
		if extra > b.n {
			return false
		}
		times += int(b.take(extra))
		if i+times > nlit+ndist {
			return false
		}
		for ; times > 0; times-- {
			lens[i] = value
			i++
		}
	}
	return lens[256] != 0 && // or the block would not end
		build(b.ownLit[:], litBits, lens[:nlit], litEntries[:]) && build(b.ownDist[:], distBits, lens[nlit:nlit+ndist], distEntries[:])
}

// codes decodes symbols. blockStart says that the block has ended.
func (b *blocks) codes() (status, error) {
	for {
		if b.watch != nil && b.w >= b.watch.at+Window {
			b.watch.finish()
			b.watch = nil
		}
		if b.watch == nil {
			if done, err := b.fast(); done || err != nil {
				return blockStart, err
			}
		}
		if b.w > len(b.out)-slack {
			return needOutput, nil
		}
		st, err := b.one()
		if err != nil || st != needOutput {
			return st, err
		}
	}
}

// one decodes one symbol. needOutput says that it did.
func (b *blocks) one() (status, error) {
	b.refill()
	bits, n := b.bits, b.n // taken back if the symbol is not here whole
	e := b.lit[bits&(1<<litBits-1)]
	if e&(exceptional|isSubtable|isLiteral) == exceptional|isSubtable {
		if !b.drop(e) {
			b.bits, b.n = bits, n
			return b.starved()
		}
		e = b.lit[(e>>16+uint32(b.bits)&(1<<(e>>8&0xf)-1))&(litSize-1)]
	}
	saved := b.bits
	if !b.drop(e) {
		b.bits, b.n = bits, n
		return b.starved()
	}
	if e&isLiteral != 0 {
		b.out[b.w] = byte(e >> 16)
		b.w++
		return needOutput, nil
	}
	if e&exceptional != 0 {
		if e&isEnd == 0 {
			return needInput, ErrCorrupt
		}
		return blockStart, nil
	}
	length := int(e>>16 + uint32(saved&(1<<(e&0xff)-1)>>(e>>8&0xf)))
	d := b.dist[b.bits&(1<<distBits-1)]
	if d&(exceptional|isSubtable) == exceptional|isSubtable {
		if !b.drop(d) {
			b.bits, b.n = bits, n
			return b.starved()
		}
		d = b.dist[(d>>16+uint32(b.bits)&(1<<(d>>8&0xf)-1))&(distSize-1)]
	}
	saved = b.bits
	if !b.drop(d) {
		b.bits, b.n = bits, n
		return b.starved()
	}
	if d&exceptional != 0 {
		return needInput, ErrCorrupt
	}
	dist := int(d>>16 + uint32(saved&(1<<(d&0xff)-1)>>(d>>8&0xf)))
	if dist > b.w-b.low {
		return needInput, ErrCorrupt
	}
	if b.watch != nil {
		b.watch.refers(b.w-dist, length)
	}
	for i := b.w; i < b.w+length; i++ {
		b.out[i] = b.out[i-dist]
	}
	b.w += length
	return needOutput, nil
}

// drop consumes an entry's bits, and reports whether there were as many.
func (b *blocks) drop(e uint32) bool {
	k := uint(e & 0xff)
	if k > b.n {
		return false
	}
	b.bits >>= k
	b.n -= k
	return true
}

// fast decodes symbols while there is plenty of input and output left, and reports whether the
// block has ended.
func (b *blocks) fast() (done bool, err error) {
	in, out, lit, dist := b.in, b.out, b.lit, b.dist
	r, w, bits, n := b.r, b.w, b.bits, b.n
	low := b.low
	inEnd, outEnd := len(in)-16, len(out)-slack
loop:
	for r <= inEnd && w <= outEnd {
		// 56 bits or more: what is above n in bits is the input's too, and comes once more.
		bits |= le.Uint64(in[r:]) << (n & 63)
		r += int((63 - n) >> 3)
		n |= 56
		e := lit[bits&(1<<litBits-1)]
		if e&isLiteral != 0 {
			bits >>= e & 63
			n -= uint(e & 63)
			out[w] = byte(e >> 16)
			w++
			e = lit[bits&(1<<litBits-1)]
			if e&isLiteral != 0 {
				bits >>= e & 63
				n -= uint(e & 63)
				out[w] = byte(e >> 16)
				w++
				e = lit[bits&(1<<litBits-1)]
				if e&isLiteral != 0 {
					bits >>= e & 63
					n -= uint(e & 63)
					out[w] = byte(e >> 16)
					w++
					continue
				}
			}
		}
		if e&exceptional != 0 {
			if e&isSubtable != 0 {
				bits >>= e & 63
				n -= uint(e & 63)
				e = lit[(e>>16+uint32(bits)&(1<<(e>>8&0xf)-1))&(litSize-1)]
				if e&isLiteral != 0 {
					bits >>= e & 63
					n -= uint(e & 63)
					out[w] = byte(e >> 16)
					w++
					continue
				}
			}
			if e&exceptional != 0 {
				if e&isEnd == 0 {
					err = ErrCorrupt
					break loop
				}
				bits >>= e & 63
				n -= uint(e & 63)
				done = true
				break loop
			}
		}
		length := int(e>>16 + uint32(bits&(1<<(e&63)-1)>>(e>>8&0xf)))
		bits >>= e & 63
		n -= uint(e & 63)
		bits |= le.Uint64(in[r:]) << (n & 63)
		r += int((63 - n) >> 3)
		n |= 56
		d := dist[bits&(1<<distBits-1)]
		if d&exceptional != 0 {
			if d&isSubtable != 0 {
				bits >>= d & 63
				n -= uint(d & 63)
				d = dist[(d>>16+uint32(bits)&(1<<(d>>8&0xf)-1))&(distSize-1)]
			}
			if d&exceptional != 0 {
				err = ErrCorrupt
				break loop
			}
		}
		back := int(d>>16 + uint32(bits&(1<<(d&63)-1)>>(d>>8&0xf)))
		bits >>= d & 63
		n -= uint(d & 63)
		if back > w-low {
			err = ErrCorrupt
			break loop
		}
		src, end := w-back, w+length
		switch {
		case back >= 8:
			for w < end {
				le.PutUint64(out[w:], le.Uint64(out[src:]))
				w += 8
				src += 8
			}
		case back == 1:
			word := uint64(out[src]) * 0x0101010101010101
			for w < end {
				le.PutUint64(out[w:], word)
				w += 8
			}
		default:
			for ; w < end; w++ {
				out[w] = out[src]
				src++
			}
		}
		w = end
	}
	b.r, b.w, b.n = r, w, n
	b.bits = bits & (1<<n - 1)
	return done, err
}
