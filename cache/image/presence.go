package image

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/remora-storage/remora/internal/durable"
	"github.com/remora-storage/remora/internal/wire"
)

// The presence record is a log: a header, then entries that say which extents came or went.
// An entry is valid if its checksum is; the first that is not ends the log, since it is what a
// crash left of the last write. All numbers are little-endian.
//
//	offset  size  field
//	0       8     "REMORAPR"
//	8       4     version, 1
//	12      4     the checksum in the extent table's header: the table this record belongs to
//	16      12 an entry: {first extent u32, count u32 (top bit: gone), CRC32C u32}
//
// An entry's checksum covers the table's checksum, the entry's number and its first 8 bytes, so
// that a stray entry of another record, or of this one elsewhere, is not taken for one.
const (
	presenceMagic   = "REMORAPR"
	presenceVersion = 1
	presenceHeader  = 16
	entrySize       = 12
	goneBit         = 1 << 31
)

// presence is an open record.
type presence struct {
	f       *os.File
	table   uint32
	entries uint32
}

// run is a range of extents that came, or went.
type run struct {
	first, count uint32
	gone         bool
}

func entrySum(table, number uint32, body []byte) uint32 {
	var p [8]byte
	le.PutUint32(p[0:], table)
	le.PutUint32(p[4:], number)
	return wire.Sum(p[:], body)
}

// decodePresence applies a record's entries to set and returns how many are valid. It fails if
// the record belongs to another table.
func decodePresence(p []byte, table, extents uint32, set func(run)) (entries uint32, err error) {
	if len(p) < presenceHeader || string(p[:8]) != presenceMagic || le.Uint32(p[8:]) != presenceVersion {
		return 0, fmt.Errorf("%w: presence record without its mark", ErrCorrupt)
	}
	if le.Uint32(p[12:]) != table {
		return 0, fmt.Errorf("%w: presence record of another image", ErrCorrupt)
	}
	for p = p[presenceHeader:]; len(p) >= entrySize; p = p[entrySize:] {
		if entrySum(table, entries, p[:8]) != le.Uint32(p[8:]) {
			break
		}
		count := le.Uint32(p[4:])
		r := run{first: le.Uint32(p), count: count &^ goneBit, gone: count&goneBit != 0}
		if uint64(r.first)+uint64(r.count) > uint64(extents) {
			break
		}
		set(r)
		entries++
	}
	return entries, nil
}

// createPresence writes a record of runs. It returns when the record is on stable storage.
func createPresence(path string, table uint32, runs []run) (*presence, error) {
	f, err := durable.Create(path, 0o600)
	if err != nil {
		return nil, err
	}
	head := make([]byte, presenceHeader)
	copy(head, presenceMagic)
	le.PutUint32(head[8:], presenceVersion)
	le.PutUint32(head[12:], table)
	p := &presence{f: f.File, table: table}
	_, err = f.WriteAt(p.encode(head, runs), 0)
	if err == nil {
		err = f.Commit()
	}
	if err != nil {
		return nil, fmt.Errorf("create %s: %w", path, errors.Join(err, f.Close()))
	}
	p.entries = uint32(len(runs))
	return p, nil
}

// encode appends entries to buf.
func (p *presence) encode(buf []byte, runs []run) []byte {
	for i, r := range runs {
		count := r.count
		if r.gone {
			count |= goneBit
		}
		at := len(buf)
		buf = le.AppendUint32(buf, r.first)
		buf = le.AppendUint32(buf, count)
		buf = le.AppendUint32(buf, entrySum(p.table, p.entries+uint32(i), buf[at:]))
	}
	return buf
}

// openPresence reads the record at path and cuts off what a crash left behind its last entry.
func openPresence(path string, table, extents uint32, set func(run)) (*presence, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	p, err := io.ReadAll(f)
	var n uint32
	if err == nil {
		n, err = decodePresence(p, table, extents, set)
	}
	if err == nil {
		err = f.Truncate(presenceHeader + int64(n)*entrySize)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return &presence{f: f, table: table, entries: n}, nil
}

// append adds entries and returns when they are on stable storage.
func (p *presence) append(runs []run) error {
	if len(runs) == 0 {
		return nil
	}
	buf := p.encode(make([]byte, 0, len(runs)*entrySize), runs)
	if _, err := p.f.WriteAt(buf, presenceHeader+int64(p.entries)*entrySize); err != nil {
		return fmt.Errorf("record presence: %w", err)
	}
	if err := p.f.Sync(); err != nil {
		return fmt.Errorf("record presence: %w", err)
	}
	p.entries += uint32(len(runs))
	return nil
}

// isAt reports whether the file at path is this record.
func (p *presence) isAt(path string) bool {
	there, err := os.Stat(path)
	mine, merr := p.f.Stat()
	return err == nil && merr == nil && os.SameFile(there, mine)
}

func (p *presence) close() error { return p.f.Close() }
