package volume

import (
	"sync"

	"github.com/remora-storage/remora/wire"
)

// blockSums remembers the checksums of the blocks of frames that were read and found whole, so that a part of one can be read,
// and checked, without the rest of it. What was not asked for lately is forgotten.
type blockSums struct {
	half int // frames that each of the maps has at most

	mu         sync.Mutex // guards the fields below
	young, old map[framePlace]frameSums
}

// framePlace says which frame of all that a volume has ever had.
type framePlace struct {
	seq    uint64
	random uint32
	off    uint32 // in the segment
}

func placeOf(ref SegmentRef, e extent) framePlace {
	return framePlace{ref.Seq, ref.Random, uint32(e.place.off)}
}

type frameSums [maxFrame]uint32

// frameSumsCost is what a frame takes in a map that has grown, about, in bytes.
const frameSumsCost = 320

func newBlockSums(memory int64) *blockSums {
	return &blockSums{half: int(memory / frameSumsCost / 2), young: map[framePlace]frameSums{}}
}

func (s *blockSums) get(at framePlace) (frameSums, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sums, ok := s.young[at]; ok {
		return sums, true
	}
	sums, ok := s.old[at]
	if ok {
		s.putLocked(at, sums)
	}
	return sums, ok
}

// put remembers the checksums of a frame's blocks. Several parts of one frame may be read at once: they are summed once.
func (s *blockSums) put(at framePlace, blocks []byte) {
	if _, ok := s.get(at); ok {
		return
	}
	var sums frameSums
	for i := range len(blocks) / Block {
		sums[i] = wire.Sum(blocks[i*Block:][:Block])
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.putLocked(at, sums)
}

func (s *blockSums) putLocked(at framePlace, sums frameSums) {
	if len(s.young) >= s.half {
		s.old, s.young = s.young, map[framePlace]frameSums{}
	}
	s.young[at] = sums
}
