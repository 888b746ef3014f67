package volume

import (
	"sync"

	"github.com/golang/groupcache/lru"

	"github.com/remora-storage/remora/internal/wire"
)

// blockSums remembers the checksums of the blocks of frames that were read and found whole, so that a part of one can be read,
// and checked, without the rest of it. What was not asked for lately is forgotten.
type blockSums struct {
	mu     sync.Mutex // guards frames
	frames *lru.Cache // *frameSums by framePlace
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

// frameSumsCost is what a frame takes in the cache, about, in bytes.
const frameSumsCost = 320

func newBlockSums(memory int64) *blockSums {
	return &blockSums{frames: lru.New(max(int(memory/frameSumsCost), 1))}
}

// get returns the checksums of a frame's blocks, which nobody may change, or nil.
func (s *blockSums) get(at framePlace) *frameSums {
	s.mu.Lock()
	defer s.mu.Unlock()
	sums, ok := s.frames.Get(at)
	if !ok {
		return nil
	}
	return sums.(*frameSums)
}

// put remembers the checksums of a frame's blocks. Several parts of one frame may be read at once: they are summed once.
func (s *blockSums) put(at framePlace, blocks []byte) {
	if s.get(at) != nil {
		return
	}
	sums := new(frameSums)
	for i := range len(blocks) / Block {
		sums[i] = wire.Sum(blocks[i*Block:][:Block])
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.frames.Add(at, sums)
}
