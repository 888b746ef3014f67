package profile

import (
	"bytes"
	"encoding/json"
	"fmt"
	"unsafe"

	"github.com/klauspost/compress/zstd"
)

// Decode reads a profile, packed or as plain JSON, and checks it. It takes no more memory than Memory says.
func Decode(data []byte) (*Profile, error) {
	if len(data) > MaxPlain {
		return nil, fmt.Errorf("%w: %d bytes", ErrInvalid, len(data))
	}
	if len(data) == 0 || data[0] != '{' {
		most := uint64(plainOf(int64(len(data))))
		dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(most), zstd.WithDecoderMaxWindow(MaxPlain))
		if err != nil {
			return nil, err
		}
		defer dec.Close()
		if data, err = dec.DecodeAll(data, nil); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
		}
	}
	var doc struct {
		Profile
		Entries entries `json:"entries"`
	}
	if err := json.Unmarshal(data, &doc); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	p := doc.Profile
	p.Entries = doc.Entries
	if err := p.check(); err != nil {
		return nil, err
	}
	return &p, nil
}

// plainOf returns how many bytes a profile of some packed bytes may have.
func plainOf(packed int64) int64 { return min(freePlain+mostRatio*packed, MaxPlain) }

// Memory returns how many bytes of memory decoding a profile of some bytes, packed or not, takes at most.
func Memory(size int64) int64 { return 6 * max(plainOf(size), size) }

// Kept returns how many bytes of memory the profile takes, about.
func (p *Profile) Kept() int64 {
	n := int64(len(p.Entries)) * int64(unsafe.Sizeof(Entry{}))
	for i := range p.Entries {
		n += int64(len(p.Entries[i].Path) + len(p.Entries[i].Digest))
	}
	return n
}

// entries are decoded one by one, so that what is none does not take memory.
type entries []Entry

// UnmarshalJSON implements json.Unmarshaler.
func (all *entries) UnmarshalJSON(p []byte) error {
	if bytes.Equal(p, []byte("null")) {
		return nil
	}
	*all = nil
	in := json.NewDecoder(bytes.NewReader(p))
	if start, err := in.Token(); err != nil || start != json.Delim('[') {
		return fmt.Errorf("entries are %v, %w", start, err)
	}
	for in.More() {
		if len(*all) == MaxEntries {
			return fmt.Errorf("more than %d entries", MaxEntries)
		}
		var e Entry
		if err := in.Decode(&e); err != nil {
			return err
		}
		if err := e.check(maxRuns); err != nil {
			return err
		}
		*all = append(*all, e)
	}
	return nil
}
