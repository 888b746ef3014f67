package faultdev

import (
	"encoding/gob"
	"fmt"
	"io"
)

// saved is a Recorder in a file.
type saved struct {
	Size    int64
	Whole   [2]int64 // from, to
	Flushes []int
	Changes int // how many savedChange follow
}

// savedChange is a change in a file.
type savedChange struct {
	Off, N int64
	Data   []byte // empty for zeros
	Zeros  bool
	Sync   bool
}

// Save writes down what was recorded, so that Load can cut it again.
func (r *Recorder) Save(w *gob.Encoder) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	err := w.Encode(saved{Size: r.size, Whole: [2]int64{r.whole.off, r.whole.end}, Flushes: r.flushes, Changes: len(r.changes)})
	for _, c := range r.changes {
		if err == nil {
			err = w.Encode(savedChange{Off: c.off, N: c.n, Data: c.data, Zeros: c.data == nil, Sync: c.sync})
		}
	}
	if err != nil {
		return fmt.Errorf("save a recording: %w", err)
	}
	return nil
}

// Load reads what Save wrote.
func Load(r *gob.Decoder) (*Recorder, error) {
	var s saved
	if err := r.Decode(&s); err != nil {
		return nil, fmt.Errorf("load a recording: %w", err)
	}
	rec := &Recorder{size: s.Size, whole: span{s.Whole[0], s.Whole[1]}, flushes: s.Flushes}
	for range s.Changes {
		var c savedChange
		if err := r.Decode(&c); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, fmt.Errorf("load a recording: %w", err)
		}
		if c.Zeros {
			c.Data = nil
		} else if c.Data == nil {
			c.Data = []byte{} // gob has no empty slices
		}
		rec.changes = append(rec.changes, change{off: c.Off, n: c.N, data: c.Data, sync: c.Sync})
	}
	return rec, nil
}
