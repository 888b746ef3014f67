package inflate

import "math/bits"

// A table maps the next bits of the input, the first one lowest, to an entry. Codes longer than the
// table's own bits lead to a subtable behind it.
//
//	entry   bits  meaning
//	literal 31    set; 16-23 the byte; 0-7 the code's length
//	length  16-24 the base; 8-11 the code's length; 0-7 the same and the extra bits
//	        15,13 set: end of block; 0-7 the code's length
//	any     15,14 set: a subtable at 16-30; 8-11 its bits; 0-7 the bits that led there
//	offset  16-30 the base; 8-11 the code's length; 0-7 the same and the extra bits
//	none    15    set alone: no code begins like this
const (
	isLiteral   = 1 << 31
	exceptional = 1 << 15
	isSubtable  = 1 << 14
	isEnd       = 1 << 13

	litBits  = 11
	distBits = 8
	// What the tables need at most for 288 symbols and 11 bits, 32 and 8, with codes of 15 bits
	// (zlib's "enough"), rounded up to powers of two, so that a mask makes any index valid.
	litSize  = 4096 // 2342
	distSize = 512  // 402

	maxCode = 15
)

type (
	litTable  [litSize]uint32
	distTable [distSize]uint32
)

var (
	lengthBase  = [29]uint16{3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258}
	lengthExtra = [29]uint8{0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0}
	distBase    = [30]uint16{1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 769, 1025, 1537, 2049, 3073,
		4097, 6145, 8193, 12289, 16385, 24577}
	distExtra = [30]uint8{0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13}
	// the order in which a block gives the lengths of the codes for lengths
	lengthOrder = [19]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

	litEntries  = makeLitEntries()
	distEntries = makeDistEntries()
)

// makeLitEntries returns the entries of literals and lengths without the codes' lengths.
func makeLitEntries() (e [288]uint32) {
	for i := range 256 {
		e[i] = isLiteral | uint32(i)<<16
	}
	e[256] = exceptional | isEnd
	for i := range lengthBase {
		e[257+i] = uint32(lengthBase[i])<<16 | uint32(lengthExtra[i])
	}
	e[286], e[287] = exceptional, exceptional
	return e
}

func makeDistEntries() (e [32]uint32) {
	for i := range distBase {
		e[i] = uint32(distBase[i])<<16 | uint32(distExtra[i])
	}
	e[30], e[31] = exceptional, exceptional
	return e
}

// withLength completes an entry for a code of some bits, of which the table's own have been consumed.
func withLength(e uint32, n uint32) uint32 {
	if e&isLiteral != 0 || e&exceptional != 0 {
		return e | n
	}
	return e + n | n<<8
}

// build fills a table from the lengths of the codes of all symbols, and reports whether they are a
// code: complete, or of no symbol or a single one, as zlib has it.
func build(table []uint32, own uint, lens []uint8, entries []uint32) bool {
	var count [maxCode + 1]int
	for _, n := range lens {
		count[n]++
	}
	count[0] = 0
	longest := maxCode
	for longest > 0 && count[longest] == 0 {
		longest--
	}
	left := 1
	var next [maxCode + 2]int // where the symbols of a length begin in order
	for n := 1; n <= maxCode; n++ {
		if left = left<<1 - count[n]; left < 0 {
			return false // oversubscribed
		}
		next[n+1] = next[n] + count[n]
	}
	main := table[:1<<own]
	if left > 0 {
		if longest > 1 {
			return false
		}
		for i := range main {
			main[i] = exceptional
		}
		if longest == 0 {
			return true
		}
	}
	var order [288]uint16
	for s, n := range lens {
		if n != 0 {
			order[next[n]] = uint16(s)
			next[n]++
		}
	}
	code := uint32(0) // the first bit highest
	at := 0
	free := 1 << own // where the next subtable goes
	var sub []uint32
	subPrefix, subBits := uint32(1)<<31, uint(0)
	for n := 1; n <= longest; n++ {
		for k := count[n]; k > 0; k-- {
			e := entries[order[at]]
			at++
			rev := bits.Reverse32(code) >> (32 - n)
			if uint(n) <= own {
				e = withLength(e, uint32(n))
				for i := rev; i < 1<<own; i += 1 << n {
					main[i] = e
				}
			} else {
				prefix := rev & (1<<own - 1)
				if prefix != subPrefix {
					subPrefix, subBits = prefix, uint(n)-own
					for used := k; used < 1<<subBits && own+subBits < uint(longest); {
						subBits++
						used = used<<1 + count[own+subBits]
					}
					sub = table[free : free+1<<subBits]
					main[prefix] = exceptional | isSubtable | uint32(free)<<16 | uint32(subBits)<<8 | uint32(own)
					free += 1 << subBits
				}
				e = withLength(e, uint32(n)-uint32(own))
				for i := rev >> own; i < 1<<subBits; i += 1 << (uint(n) - own) {
					sub[i] = e
				}
			}
			code++
		}
		code <<= 1
	}
	return true
}

var fixedLit, fixedDist = makeFixed()

func makeFixed() (*litTable, *distTable) {
	var lens [288]uint8
	for i := range lens {
		switch {
		case i < 144:
			lens[i] = 8
		case i < 256:
			lens[i] = 9
		case i < 280:
			lens[i] = 7
		default:
			lens[i] = 8
		}
	}
	var dists [32]uint8
	for i := range dists {
		dists[i] = 5
	}
	l, d := new(litTable), new(distTable)
	build(l[:], litBits, lens[:], litEntries[:])
	build(d[:], distBits, dists[:], distEntries[:])
	return l, d
}
