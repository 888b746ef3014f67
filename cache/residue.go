package cache

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/klauspost/compress/zstd"

	"github.com/remora-storage/remora/cache/blob"
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
//	              2 if zstd of what those bytes may be: another layer's (see guessResidue)
//	8       4     length of the payload
//	12      4     CRC32C of the 12 bytes before and the payload
//	16            payload
const (
	residueHeader = 16
	residueStep   = 16 << 10 // bytes of budget that are taken at a time

	residueAround = 0
	residuePacked = 1
	residueGuess  = 2
)

// residue is the open log. Its zero value has no records.
type residue struct {
	reserved atomic.Int64 // bytes of the budget

	mu    sync.Mutex // guards the fields below
	f     *os.File
	size  int64
	known []uint64 // a bit a unit
	over  bool     // closed
	// index is where records lie, if somebody asked for that, up to size indexed.
	index   map[uint32]residueAt
	indexed int64
	asked   bool // since trim
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
	c.dec, _ = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(2*blob.MaxRest), zstd.WithDecoderLowmem(true))
}

func (r *residue) has(u uint32) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.known != nil && r.known[u/64]&(1<<(u%64)) != 0
}

func (r *residue) noteLocked(u uint32, units int) {
	if r.known == nil {
		r.known = make([]uint64, (units+63)/64)
	}
	r.known[u/64] |= 1 << (u % 64)
}

func (r *residue) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.over = true
	if r.f != nil {
		r.f.Close()
	}
}

// gaps returns what plain+rest holds besides the unit's extents, in order.
func (f *File) gaps(unit uint32, plain, rest []byte) []byte {
	n, at := f.t.unitExtents(unit)
	var out []byte
	pos := uint32(0)
	for k := range n {
		e := f.t.extent(at(k))
		if e.Inner > pos {
			out = append(out, plain[pos:e.Inner]...)
		}
		pos = max(pos, e.Inner+e.Len)
	}
	return append(out, rest...)
}

// keepResidue adds a record. Failing is not an error: see above.
func (f *File) keepResidue(unit uint32, payload []byte, packed bool) {
	if packed {
		f.keepRecord(unit, residuePacked, payload)
		return
	}
	f.keepRecord(unit, residueAround, f.c.residues.enc.EncodeAll(payload, nil))
}

// keepRecord adds a record. A later record of the same unit holds instead of an earlier one.
func (f *File) keepRecord(unit, flag uint32, payload []byte) {
	r := &f.residue
	need := int64(len(payload)) + residueHeader
	r.mu.Lock()
	grow := max(0, (r.size+need+residueStep-1)/residueStep*residueStep-r.reserved.Load())
	r.mu.Unlock()
	if grow > 0 && !f.c.budget.Reserve(grow) { // may evict, so no lock is held
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over {
		f.c.budget.Add(-grow)
		return
	}
	if r.reserved.Add(grow) < r.size+need {
		return // others took the space meanwhile
	}
	if r.f == nil {
		file, err := os.OpenFile(filepath.Join(f.dir, residueFile), os.O_RDWR|os.O_CREATE, 0o600)
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
	r.noteLocked(unit, f.t.nUnits)
}

// loadResidue finds the valid records.
func (f *File) loadResidue() {
	r := &f.residue
	r.mu.Lock()
	defer r.mu.Unlock()
	file, err := os.OpenFile(filepath.Join(f.dir, residueFile), os.O_RDWR, 0)
	if err != nil {
		return
	}
	r.f = file
	f.scanResidueLocked(func(unit uint32, _ residueAt) { r.noteLocked(unit, f.t.nUnits) })
	r.reserved.Store(pages(r.size))
}

// scanResidueLocked reads records until the first that is not valid, which ends the log.
func (f *File) scanResidueLocked(yield func(unit uint32, at residueAt)) {
	r := &f.residue
	r.size = 0
	st, err := r.f.Stat()
	if err != nil {
		return
	}
	head := make([]byte, residueHeader)
	in := io.NewSectionReader(r.f, 0, st.Size())
	var payload []byte
	for {
		if _, err := in.ReadAt(head, r.size); err != nil {
			return
		}
		unit, flag, n := le.Uint32(head), le.Uint32(head[4:]), int64(le.Uint32(head[8:]))
		if int(unit) >= f.t.nUnits || flag > residueGuess || n > st.Size()-r.size-residueHeader {
			return
		}
		if int64(cap(payload)) < n {
			payload = make([]byte, n)
		}
		payload = payload[:n]
		if _, err := in.ReadAt(payload, r.size+residueHeader); err != nil {
			return
		}
		if wire.Sum(head[:12], payload) != le.Uint32(head[12:]) {
			return
		}
		yield(unit, residueAt{off: r.size + residueHeader, n: int(n), flag: flag})
		r.size += residueHeader + n
	}
}

// residueAt is where a record's payload lies.
type residueAt struct {
	off  int64
	n    int
	flag uint32
}

// residueIndex maps units to their records.
func (f *File) residueIndex() map[uint32]residueAt {
	r := &f.residue
	r.mu.Lock()
	defer r.mu.Unlock()
	index := map[uint32]residueAt{}
	if r.f != nil {
		f.scanResidueLocked(func(unit uint32, at residueAt) { index[unit] = at })
	}
	return index
}

// readResidue returns a record's payload, decompressed unless it is a packed unit.
func (f *File) readResidue(at residueAt) ([]byte, error) {
	p := make([]byte, at.n)
	if _, err := f.residue.f.ReadAt(p, at.off); err != nil {
		return nil, err
	}
	if at.flag == residuePacked {
		return p, nil
	}
	out, err := f.c.residues.dec.DecodeAll(p, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: residue: %w", ErrCorrupt, err)
	}
	return out, nil
}

// surelyAround returns what a unit holds besides its extents, if that is known and no guess.
func (f *File) surelyAround(u uint32) ([]byte, bool) {
	f.residue.mu.Lock()
	at, ok := f.residue.places(f)[u]
	f.residue.mu.Unlock()
	if !ok || at.flag != residueAround {
		return nil, false
	}
	rest, err := f.readResidue(at)
	return rest, err == nil
}

// places maps units to their records, and keeps the map for the next call. The caller holds mu.
func (r *residue) places(f *File) map[uint32]residueAt {
	if r.f == nil || r.over {
		return nil
	}
	r.asked = true
	if r.index == nil || r.indexed != r.size {
		r.index = map[uint32]residueAt{}
		f.scanResidueLocked(func(unit uint32, at residueAt) { r.index[unit] = at })
		r.indexed = r.size
	}
	return r.index
}

// dropGuesses forgets what was supposed, and reports whether there was anything.
func (f *File) dropGuesses() bool {
	index := f.residueIndex()
	r := &f.residue
	r.mu.Lock()
	defer r.mu.Unlock()
	any := false
	for u, at := range index {
		if at.flag == residueGuess && r.known != nil {
			r.known[u/64] &^= 1 << (u % 64)
			any = true
		}
	}
	return any
}

// trim gives the map's memory back if nobody has asked since the last time.
func (r *residue) trim() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.asked {
		r.index = nil
	}
	r.asked = false
}
