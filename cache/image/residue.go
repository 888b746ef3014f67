package image

import (
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"github.com/klauspost/compress/zstd"

	"github.com/remora-storage/remora/cache/blob"
	"github.com/remora-storage/remora/cache/budget"
	"github.com/remora-storage/remora/internal/wire"
)

// What a unit holds besides extents (the headers of the archive) is needed once more: to compute
// the digest of the whole plain blob, its diffID, when all extents are here. It is kept in a log
// of records. Nothing but that computation reads it, and a lost record costs one more fetch, so
// it is not synced.
//
//	offset  size  field
//	0       4     unit
//	4       4     1 if the payload is the whole packed unit, 0 if zstd of the bytes around the extents,
//	              2 if zstd of what those bytes may be: another layer's (see Guess)
//	8       4     length of the payload
//	12      4     CRC32C of the 12 bytes before and the payload
//	16            payload
const (
	residueHeader = 16
	residueStep   = 16 << 10 // bytes of budget that are taken at a time

	residueAround = 0
	residuePacked = 1
	residueGuess  = 2

	residuePlain = 2 * blob.MaxRest // bytes of a record at most, decompressed
)

// A Residue is the open log of an image.
type Residue struct {
	path   string
	units  int
	budget *budget.Budget
	codec  *residueCodec

	reserved atomic.Int64 // bytes of the budget

	mu    sync.Mutex // guards the fields below
	f     *os.File
	size  int64
	known []uint64 // a bit a unit
	over  bool     // closed
	// Where the latest record of each unit has its payload, once somebody asked for one: as far as indexed in the log. 0 is none.
	payloads []int64
	indexed  int64
	asked    bool // since trim
	head     [residueHeader]byte
}

// residueCodec compresses records.
type residueCodec struct {
	enc *zstd.Encoder
	dec *zstd.Decoder
}

func (c *residueCodec) init() {
	// Options that are constant and valid cannot fail.
	c.enc, _ = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
		zstd.WithWindowSize(64<<10), zstd.WithLowerEncoderMem(true))
	c.dec, _ = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(residuePlain), zstd.WithDecoderLowmem(true))
}

// Has reports whether there is a record of a unit.
func (r *Residue) Has(u uint32) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.known != nil && r.known[u/64]&(1<<(u%64)) != 0
}

func (r *Residue) noteLocked(u uint32) {
	if r.known == nil {
		r.known = make([]uint64, (r.units+63)/64)
	}
	r.known[u/64] |= 1 << (u % 64)
}

func (r *Residue) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.over = true
	if r.f != nil {
		r.f.Close()
	}
}

// keep adds a record of the bytes around a unit's extents, which may be a guess. Failing is not an error: see above.
func (r *Residue) keep(unit uint32, around []byte, guess bool) {
	flag := uint32(residueAround)
	if guess {
		flag = residueGuess
	}
	r.add(unit, flag, r.codec.enc.EncodeAll(around, nil))
}

// add adds a record. A later record of the same unit holds instead of an earlier one.
func (r *Residue) add(unit, flag uint32, payload []byte) {
	need := int64(len(payload)) + residueHeader
	r.mu.Lock()
	grow := max(0, (r.size+need+residueStep-1)/residueStep*residueStep-r.reserved.Load())
	r.mu.Unlock()
	if grow > 0 && !r.budget.Reserve(grow) { // may evict, so no lock is held
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over {
		r.budget.Add(-grow)
		return
	}
	if r.reserved.Add(grow) < r.size+need {
		return // others took the space meanwhile
	}
	if r.f == nil {
		file, err := os.OpenFile(r.path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return
		}
		r.f = file
	}
	rec := make([]byte, 12, residueHeader+len(payload))
	le.PutUint32(rec[0:], unit)
	le.PutUint32(rec[4:], flag)
	le.PutUint32(rec[8:], uint32(len(payload)))
	rec = le.AppendUint32(rec, wire.Sum(rec[:12], payload))
	rec = append(rec, payload...)
	if _, err := r.f.WriteAt(rec, r.size); err != nil {
		return
	}
	r.size += int64(len(rec))
	r.noteLocked(unit)
}

// load finds the valid records.
func (r *Residue) load() {
	r.mu.Lock()
	defer r.mu.Unlock()
	file, err := os.OpenFile(r.path, os.O_RDWR, 0)
	if err != nil {
		return
	}
	r.f = file
	r.scanLocked(r.noteLocked)
	r.reserved.Store(pages(r.size))
}

// scanLocked reads records until the first that is not valid, which ends the log.
func (r *Residue) scanLocked(yield func(unit uint32)) {
	r.size = 0
	st, err := r.f.Stat()
	if err != nil {
		return
	}
	head := make([]byte, residueHeader)
	in := io.NewSectionReader(r.f, 0, st.Size())
	buf := make([]byte, 32<<10)
	for {
		if _, err := in.ReadAt(head, r.size); err != nil {
			return
		}
		unit, flag, n := le.Uint32(head), le.Uint32(head[4:]), int64(le.Uint32(head[8:]))
		if int(unit) >= r.units || flag > residueGuess || n > st.Size()-r.size-residueHeader {
			return
		}
		sum := wire.NewSum()
		sum.Write(head[:12]) // no hash fails
		payload := io.NewSectionReader(r.f, r.size+residueHeader, n)
		if _, err := io.CopyBuffer(sum, struct{ io.Reader }{payload}, buf); err != nil || sum.Sum32() != le.Uint32(head[12:]) {
			return
		}
		yield(unit)
		r.size += residueHeader + n
	}
}

// A Record is where a record's payload lies, and what it is.
type Record struct {
	off  int64
	n    int
	flag uint32
}

// Packed reports whether the payload is the whole packed unit.
func (at Record) Packed() bool { return at.flag == residuePacked }

// Guess reports whether the payload is only what is supposed.
func (at Record) Guess() bool { return at.flag == residueGuess }

// At returns a unit's record, if it has one.
func (r *Residue) At(u uint32) (at Record, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.atLocked(u)
}

func (r *Residue) atLocked(u uint32) (at Record, ok bool) {
	if r.f == nil || r.over || int(u) >= r.units {
		return at, false
	}
	r.asked = true
	r.indexLocked()
	off := r.payloads[u]
	if off == 0 {
		return at, false
	}
	h, err := r.headLocked(off - residueHeader)
	return h.at, err == nil && h.unit == u
}

// indexLocked notes where the records lie that were added since the last time. They were valid when they were added or loaded.
func (r *Residue) indexLocked() {
	if r.payloads == nil {
		r.payloads, r.indexed = make([]int64, r.units), 0
	}
	for r.indexed < r.size {
		h, err := r.headLocked(r.indexed)
		if err != nil {
			return // what lies behind is fetched instead
		}
		r.payloads[h.unit] = h.at.off
		r.indexed = h.at.off + int64(h.at.n)
	}
}

type residueHead struct {
	unit uint32
	at   Record
}

// headLocked reads a record's header.
func (r *Residue) headLocked(off int64) (h residueHead, err error) {
	head := r.head[:]
	if _, err := r.f.ReadAt(head, off); err != nil {
		return h, err
	}
	h = residueHead{le.Uint32(head), Record{off: off + residueHeader, n: int(le.Uint32(head[8:])), flag: le.Uint32(head[4:])}}
	if int(h.unit) >= r.units || h.at.flag > residueGuess || int64(h.at.n) > r.size-h.at.off {
		return h, fmt.Errorf("%w: residue: header at %d", ErrCorrupt, off)
	}
	return h, nil
}

// Takes returns how many bytes of memory Read takes.
func (r *Residue) Takes(at Record) int64 {
	if at.flag == residuePacked {
		return int64(at.n)
	}
	head := make([]byte, min(at.n, zstd.HeaderMaxSize))
	var h zstd.Header
	if _, err := r.f.ReadAt(head, at.off); err != nil || h.Decode(head) != nil {
		return int64(at.n) + residuePlain
	}
	return int64(at.n) + int64(min(max(h.FrameContentSize, 256), residuePlain)) // the encoder leaves out smaller sizes
}

// Read returns a record's payload, decompressed unless it is a packed unit.
func (r *Residue) Read(at Record) ([]byte, error) {
	p := make([]byte, at.n)
	if _, err := r.f.ReadAt(p, at.off); err != nil {
		return nil, err
	}
	if at.flag == residuePacked {
		return p, nil
	}
	out, err := r.codec.dec.DecodeAll(p, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: residue: %w", ErrCorrupt, err)
	}
	return out, nil
}

// surely returns what a unit holds besides its extents, if that is known and no guess, and take gives the memory.
func (r *Residue) surely(u uint32, take func(int64) bool) ([]byte, bool) {
	at, ok := r.At(u)
	if !ok || at.flag != residueAround || !take(r.Takes(at)) {
		return nil, false
	}
	rest, err := r.Read(at)
	return rest, err == nil
}

// DropGuesses forgets what was supposed, and reports whether there was anything.
func (r *Residue) DropGuesses() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	any := false
	for u := range uint32(r.units) {
		if at, ok := r.atLocked(u); ok && at.Guess() && r.known != nil {
			r.known[u/64] &^= 1 << (u % 64)
			any = true
		}
	}
	return any
}

// trim gives the memory of the places back if nobody has asked since the last time.
func (r *Residue) trim() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.asked {
		r.payloads = nil
	}
	r.asked = false
}
