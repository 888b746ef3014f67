package volume

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/remora-storage/remora/internal/wire"
)

// ErrCorrupt says that bytes are not what was written.
var ErrCorrupt = errors.New("corrupt")

// ErrVersion says that something was written by a newer version of this program.
var ErrVersion = errors.New("made by a newer remorad")

// seal makes an object of the small, mutable kind: a line that says what it is, in which version, and the CRC32C of
// the JSON that follows.
func seal(kind string, version int, v any) ([]byte, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	body = append(body, '\n')
	return append(fmt.Appendf(nil, "remora-%s %d %08x\n", kind, version, wire.Sum(body)), body...), nil
}

// unseal reads what seal made.
func unseal(kind string, version int, p []byte, v any) error {
	line, body, ok := bytes.Cut(p, []byte("\n"))
	if !ok || len(line) > 100 {
		return fmt.Errorf("%s: %w: no first line", kind, ErrCorrupt)
	}
	var gotKind string
	var gotVersion int
	var sum uint32
	if n, err := fmt.Sscanf(string(line), "remora-%s %d %x", &gotKind, &gotVersion, &sum); n != 3 || err != nil ||
		gotKind != kind || gotVersion < 1 {
		return fmt.Errorf("%s: %w: it begins with %.60q", kind, ErrCorrupt, line)
	}
	if gotVersion > version {
		return fmt.Errorf("%s of format %d, this is %d: %w", kind, gotVersion, version, ErrVersion)
	}
	if wire.Sum(body) != sum {
		return fmt.Errorf("%s: %w: its checksum is wrong", kind, ErrCorrupt)
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("%s: %w: %w", kind, ErrCorrupt, err)
	}
	return nil
}
