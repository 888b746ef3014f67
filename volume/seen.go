package volume

import "fmt"

// Seen is what a node has seen of a volume's head, and keeps. A store that shows an older head, or one of another history, was put back
// to an earlier state, though nothing that it holds says so.
type Seen struct {
	Epoch   uint64 `json:"epoch"`
	Gen     uint64 `json:"gen"`
	Write   uint64 `json:"write"`
	Segment uint64 `json:"segment"`          // the last of the log, 0 if it was in the map already
	Random  uint32 `json:"random,omitempty"` // of it
}

// Seen returns what is to be kept of a head.
func (h *Head) Seen() Seen {
	s := Seen{Epoch: h.Epoch, Gen: h.Gen, Write: h.Write}
	if n := len(h.Tail); n > 0 {
		s.Segment, s.Random = h.Tail[n-1].Seq, h.Tail[n-1].Random
	}
	return s
}

// follows fails with ErrLoss if a head is older than what was seen, or has gone on otherwise from before.
func (h *Head) follows(s Seen) error {
	missing := "what was written since is missing"
	if s.Write > h.Write {
		missing = fmt.Sprintf("writes %d to %d are missing", h.Write+1, s.Write)
	}
	if h.Epoch < s.Epoch || h.Gen < s.Gen || h.Write < s.Write {
		return fmt.Errorf("%w: the store has generation %d of its head (epoch %d), and this node has seen %d (epoch %d): the store was put back "+
			"to an earlier state, and %s", ErrLoss, h.Gen, h.Epoch, s.Gen, s.Epoch, missing)
	}
	for _, r := range h.Tail {
		if r.Seq == s.Segment && r.Random != s.Random {
			return fmt.Errorf("%w: segment %d is not the one that this node has seen: the store was put back to an earlier state, and went on "+
				"from there", ErrLoss, r.Seq)
		}
	}
	return nil
}
