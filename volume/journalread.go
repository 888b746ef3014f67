package volume

import (
	"cmp"
	"fmt"
	"slices"
	"sync"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/internal/wire"
)

// read reads the blocks of an extent that lies in the journal, and checks them.
func (j *journal) read(e extent, p []byte) error {
	return j.readAll([]wanted{{e, p}})
}

// wanted is an extent that lies in the journal, and where its blocks are to be put.
type wanted struct {
	extent
	to []byte
}

const (
	journalGap  = 64 << 10 // bytes that nobody asked for and that are read rather than making two requests
	journalMost = 1 << 20  // bytes of one request
)

// readAll reads extents, in as few requests as can be, and checks them. It sorts all by their places.
func (j *journal) readAll(all []wanted) error {
	var missing []wanted
	for _, w := range all {
		if !j.window.read(w.place.off+int64(w.place.skip)*Block, w.to) {
			missing = append(missing, w)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	slices.SortFunc(missing, func(a, b wanted) int { return cmp.Compare(a.place.off, b.place.off) })
	buf := journalBuffers.Get().(*[]byte)
	defer journalBuffers.Put(buf)
	for len(missing) > 0 {
		from, to := missing[0].place.off, missing[0].placeEnd()
		n := 1
		for ; n < len(missing); n++ {
			w := missing[n]
			end := max(to, w.placeEnd())
			if w.place.off > to+journalGap || end-from > journalMost || ringPlace(j.ring, w.place.off) < ringPlace(j.ring, from) {
				break
			}
			to = end
		}
		p := (*buf)[:to-from]
		if _, err := j.disk.ReadAt(p, ringPlace(j.ring, from)); err != nil {
			return err
		}
		for _, w := range missing[:n] {
			whole := p[w.place.off-from : w.placeEnd()-from]
			if wire.Sum(whole) != w.place.crc {
				return fmt.Errorf("journal at %d: %w: its checksum is wrong", w.place.off, ErrCorrupt)
			}
			copy(w.to, whole[int(w.place.skip)*Block:])
		}
		missing = missing[n:]
	}
	return nil
}

// placeEnd returns the position behind the entry that e is of.
func (e extent) placeEnd() int64 { return e.place.off + int64(e.place.whole)*Block }

var journalBuffers = sync.Pool{New: func() any {
	p := blockdev.AlignedBuffer(journalMost)
	return &p
}}
