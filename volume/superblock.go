package volume

import (
	"encoding/binary"
	"fmt"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/internal/wire"
)

const journalVersion = 1

// superblock is what is written down of a journal beside its records.
type superblock struct {
	gen     uint64
	vid, id ID
	size    int64 // of the ring
	start   cursor
}

// formatJournal makes an empty journal.
func formatJournal(disk Disk, vid, id ID) error {
	size := disk.Size() - journalRing
	if size < minRing || size%Block != 0 {
		return fmt.Errorf("journal of %d bytes: at least %d", disk.Size(), minRing+journalRing)
	}
	s := superblock{gen: 1, vid: vid, id: id, size: size, start: journalStart(id)}
	for i := range int64(2) {
		s.gen = uint64(i) + 1
		if _, err := disk.WriteAt(s.encode(), i*Block); err != nil {
			return err
		}
	}
	return disk.Sync()
}

// journalStart is where a journal begins. A first record of another journal does not follow from there.
func journalStart(id ID) cursor { return cursor{seq: 1, prev: wire.Sum(id[:])} }

func (s superblock) encode() []byte {
	p := blockdev.AlignedBuffer(Block)
	b := append(p[:0], superMagic...)
	b = binary.LittleEndian.AppendUint32(b, journalVersion)
	b = binary.LittleEndian.AppendUint64(b, s.gen)
	b = append(b, s.vid[:]...)
	b = append(b, s.id[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(s.size))
	b = binary.LittleEndian.AppendUint64(b, uint64(s.start.pos))
	b = binary.LittleEndian.AppendUint64(b, s.start.seq)
	b = binary.LittleEndian.AppendUint32(b, s.start.prev)
	binary.LittleEndian.AppendUint32(b, wire.Sum(b))
	return p
}

const superSize = 4 + 4 + 8 + 16 + 16 + 8 + 8 + 8 + 4

func decodeSuperblock(p []byte) (s superblock, err error) {
	if len(p) < superSize+4 || string(p[:4]) != superMagic || wire.Sum(p[:superSize]) != binary.LittleEndian.Uint32(p[superSize:]) {
		return s, fmt.Errorf("superblock of a journal: %w", ErrCorrupt)
	}
	if v := binary.LittleEndian.Uint32(p[4:]); v != journalVersion {
		return s, fmt.Errorf("journal of format %d: %w", v, ErrVersion)
	}
	s.gen = binary.LittleEndian.Uint64(p[8:])
	copy(s.vid[:], p[16:])
	copy(s.id[:], p[32:])
	s.size = int64(binary.LittleEndian.Uint64(p[48:]))
	s.start = cursor{int64(binary.LittleEndian.Uint64(p[56:])), binary.LittleEndian.Uint64(p[64:]), binary.LittleEndian.Uint32(p[72:])}
	if s.size <= 0 || s.size%Block != 0 || s.start.pos < 0 || s.start.pos%Block != 0 {
		return s, fmt.Errorf("superblock of a journal: %w", ErrCorrupt)
	}
	return s, nil
}

// openSuperblock reads the newer of a journal's superblocks.
func openSuperblock(disk Disk, vid, id ID) (superblock, error) {
	var best superblock
	var bad error
	for i := range int64(2) {
		p := blockdev.AlignedBuffer(Block)
		if _, err := disk.ReadAt(p, i*Block); err != nil {
			return best, err
		}
		s, err := decodeSuperblock(p)
		if err == nil && (s.vid != vid || s.id != id || s.size != disk.Size()-journalRing) {
			err = fmt.Errorf("it is journal %s of volume %s: %w", s.id, s.vid, ErrCorrupt)
		}
		if err != nil {
			bad = err
		} else if s.gen > best.gen {
			best = s
		}
	}
	if best.gen == 0 {
		return best, bad
	}
	return best, nil
}
