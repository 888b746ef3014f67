package volume

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/internal/wire"
)

// replayed is what is known of a journal after its records were read.
type replayed struct {
	super superblock
	end   cursor // behind the last record
	write uint64 // sequence number of the last write, 0 if there is none
	epoch uint64 // of the last record
}

// replay reads a journal's records and calls apply for each, whose entries' data are valid until it returns. It stops
// at the first that is bad, out of sequence or not its predecessor's successor. That is how a journal ends, unless
// a later record proves that there was more: sameBoot says that everything acknowledged must be there, since no
// power cut came between. With the head that names the journal it fails with ErrLoss at a record that does not continue what the
// store has: with a hole before it, or of another history. The head may be nil.
func replay(disk Disk, vid, id ID, h *Head, sameBoot bool, apply func(first uint64, entries []entry, end cursor)) (*replayed, error) {
	super, err := openSuperblock(disk, vid, id)
	if err != nil {
		return nil, err
	}
	r := &replayed{super: super, end: super.start}
	var buf recordBuffer
	for {
		b, epoch, err := scanRecord(disk, &super, r.end, &buf)
		if err != nil {
			return nil, err
		}
		if b == nil || epoch < r.epoch || b.first <= r.write || epoch == r.epoch && b.first != r.write+1 {
			break // an epoch may begin later: the store can have writes whose records a power cut has taken
		}
		if h != nil {
			if err := h.continues(b, epoch, r.write); err != nil {
				return nil, fmt.Errorf("journal %s: %w", id, err)
			}
		}
		apply(b.first, b.entries, b.next)
		r.epoch, r.write, r.end = epoch, b.first+uint64(len(b.entries))-1, b.next
	}
	// What is before the journal's start was let go once the store had it.
	if h != nil && h.Journal != nil && h.Journal.Record != 0 && super.start.seq > h.Journal.Record {
		return nil, fmt.Errorf("journal %s: %w: its records %d to %d were let go when the store had them, and it has them no longer: the store "+
			"was put back to an earlier state", id, ErrLoss, h.Journal.Record, super.start.seq-1)
	}
	return r, mustEnd(disk, &super, r.end, sameBoot)
}

// recordBuffer is memory for one record: most are far smaller than they may be.
type recordBuffer []byte

// sized returns n bytes, which hold until the next call.
func (b *recordBuffer) sized(n int64) []byte {
	if int64(len(*b)) < n {
		*b = blockdev.AlignedBuffer(int(max(n, min(2*int64(len(*b)), Block+maxRecord))))
	}
	return (*b)[:n]
}

// mustEnd fails if records behind a journal's end show that the end is damage, not where writing stopped.
func mustEnd(disk Disk, super *superblock, end cursor, sameBoot bool) error {
	const ahead = (journalAhead + 1) * (maxRecord + Block)
	buf := blockdev.AlignedBuffer(Block)
	for pos := end.pos; pos < end.pos+ahead && pos < super.start.pos+super.size; pos += Block {
		if _, err := disk.ReadAt(buf, ringPlace(super.size, pos)); err != nil {
			return err
		}
		b, _, synced, ok := decodeRecordHeader(buf, super)
		if !ok || b.at.seq <= end.seq {
			continue
		}
		if synced > end.seq || sameBoot && b.at.seq > end.seq+journalAhead {
			return fmt.Errorf("record %d of the journal: %w: record %d was written after it was safe", end.seq, ErrCorrupt, b.at.seq)
		}
	}
	return nil
}

// scanRecord reads the record at a cursor, nil if there is none.
func scanRecord(disk Disk, super *superblock, at cursor, buf *recordBuffer) (*batch, uint64, error) {
	ring := super.size
	for i, pos := range []int64{at.pos, at.pos + ring - at.pos%ring} { // or at the ring's beginning, where it did not fit
		if i > 0 && pos == at.pos || pos >= super.start.pos+ring {
			continue
		}
		header := buf.sized(Block)
		if _, err := disk.ReadAt(header, ringPlace(ring, pos)); err != nil {
			return nil, 0, err
		}
		b, epoch, _, ok := decodeRecordHeader(header, super)
		if !ok || b.at.seq != at.seq || b.at.prev != at.prev || ringFit(ring, at.pos, Block+b.size) != pos {
			continue
		}
		b.at.pos, b.next.pos = pos, pos+Block+b.size
		data := buf.sized(b.size)
		if b.size > 0 {
			if _, err := disk.ReadAt(data, ringPlace(ring, pos+Block)); err != nil && !errors.Is(err, io.EOF) {
				return nil, 0, err
			}
		}
		off := int64(0)
		for i := range b.entries {
			e := &b.entries[i]
			e.pos = pos + Block + off
			if !e.hole {
				e.data = data[off : off+int64(e.blocks)*Block]
				off += int64(e.blocks) * Block
			}
			if wire.Sum(e.data) != e.sum {
				return nil, 0, nil
			}
		}
		return b, epoch, nil
	}
	return nil, 0, nil
}

// decodeRecordHeader reads the block that a record begins with.
func decodeRecordHeader(p []byte, super *superblock) (b *batch, epoch, synced uint64, ok bool) {
	if string(p[:4]) != recordMagic || wire.Sum(p[8:Block]) != binary.LittleEndian.Uint32(p[4:]) {
		return nil, 0, 0, false
	}
	if ID(p[8:24]) != super.vid || ID(p[24:40]) != super.id {
		return nil, 0, 0, false
	}
	b = &batch{}
	epoch = binary.LittleEndian.Uint64(p[40:])
	b.at = cursor{seq: binary.LittleEndian.Uint64(p[48:]), prev: binary.LittleEndian.Uint32(p[56:])}
	b.next = cursor{seq: b.at.seq + 1, prev: binary.LittleEndian.Uint32(p[4:])}
	count := binary.LittleEndian.Uint32(p[60:])
	b.first = binary.LittleEndian.Uint64(p[64:])
	synced = binary.LittleEndian.Uint64(p[72:])
	b.size = int64(binary.LittleEndian.Uint64(p[80:]))
	if count == 0 || count > maxEntries || b.size < 0 || b.size > maxRecord {
		return nil, 0, 0, false
	}
	var sum int64
	for i := range int(count) {
		q := p[recordHeader+i*entrySize:]
		e := entry{lba: binary.LittleEndian.Uint64(q), blocks: binary.LittleEndian.Uint32(q[8:]), sum: binary.LittleEndian.Uint32(q[16:])}
		e.hole = binary.LittleEndian.Uint32(q[12:]) == 1
		if e.blocks == 0 || e.lba > MaxSize/Block || !e.hole && e.blocks > maxFrame {
			return nil, 0, 0, false
		}
		if !e.hole {
			sum += int64(e.blocks) * Block
		}
		b.entries = append(b.entries, e)
	}
	return b, epoch, synced, sum == b.size
}
