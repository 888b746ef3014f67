package volume

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
)

// An ID is 16 random bytes: of a volume, a journal, a node, one life of a node, or one write of a head.
type ID [16]byte

// NewID returns one that nobody else has.
func NewID() ID {
	var id ID
	rand.Read(id[:]) // never fails
	return id
}

// ParseID reads what String writes.
func ParseID(s string) (ID, error) {
	var id ID
	if err := id.UnmarshalText([]byte(s)); err != nil {
		return ID{}, err
	}
	return id, nil
}

func (id ID) String() string { return hex.EncodeToString(id[:]) }

// MarshalText implements encoding.TextMarshaler.
func (id ID) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, id[:]), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (id *ID) UnmarshalText(p []byte) error {
	if len(p) != 2*len(id) {
		return fmt.Errorf("id %.40q: want %d hexadecimal digits", p, 2*len(id))
	}
	_, err := hex.Decode(id[:], p)
	return err
}
