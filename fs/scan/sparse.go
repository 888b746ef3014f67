package scan

import (
	"archive/tar"
	"bytes"
	"fmt"
	"strconv"
	"strings"

	"github.com/remora-storage/remora/fs/index"
	"github.com/remora-storage/remora/fs/layout"
)

const (
	blockSize = 512

	paxSparseMap   = "GNU.sparse.map"
	paxSparseMajor = "GNU.sparse.major"
	paxSparseCount = "GNU.sparse.numblocks"
)

// parts returns which ranges of a file the archive holds. raw is what was read of the entry's
// headers. archive/tar knows the ranges of a sparse file and does not tell; it has checked them.
//
// The forms are those of GNU tar's manual, "Storing Sparse Files": the old one in the header itself, PAX
// 0.0 and 0.1 in records, PAX 1.0 before the data.
func parts(h *tar.Header, raw []byte) ([]index.Part, error) {
	var numbers []string
	switch {
	case h.Typeflag == tar.TypeGNUSparse:
		all, err := oldSparse(lastHeader(raw))
		if err != nil {
			return nil, err
		}
		return checkParts(h, all)
	case h.PAXRecords[paxSparseMajor] == "1":
		body := lastHeader(raw)
		if len(body) < blockSize {
			return nil, badSparse(h)
		}
		lines := strings.Split(string(bytes.TrimRight(body[blockSize:], "\x00")), "\n")
		n, err := strconv.Atoi(lines[0])
		if err != nil || n < 0 || n > len(lines) || len(lines) < 1+2*n {
			return nil, badSparse(h)
		}
		numbers = lines[1 : 1+2*n]
	case h.PAXRecords[paxSparseMajor] != "" || h.PAXRecords[paxSparseMap] != "" || h.PAXRecords[paxSparseCount] != "":
		if m := h.PAXRecords[paxSparseMap]; m != "" {
			numbers = strings.Split(m, ",")
		}
	default:
		if h.Size == 0 {
			return nil, nil
		}
		return []index.Part{{Len: h.Size}}, nil
	}
	var all []index.Part
	for i := 0; i+1 < len(numbers); i += 2 {
		off, err1 := strconv.ParseInt(numbers[i], 10, 64)
		n, err2 := strconv.ParseInt(numbers[i+1], 10, 64)
		if err1 != nil || err2 != nil {
			return nil, badSparse(h)
		}
		all = append(all, index.Part{Off: off, Len: n})
	}
	return checkParts(h, all)
}

func badSparse(h *tar.Header) error {
	return fmt.Errorf("%w: sparse file %.64q has a map that cannot be read", layout.ErrInvalid, h.Name)
}

func checkParts(h *tar.Header, all []index.Part) (kept []index.Part, err error) {
	end := int64(0)
	for _, f := range all {
		if f.Off < end || f.Len < 0 || f.Off > h.Size-f.Len {
			return nil, badSparse(h)
		}
		if f.Len > 0 {
			kept = append(kept, f)
		}
		end = f.Off + f.Len
	}
	return kept, nil
}

// lastHeader returns an entry's own header and what was read behind it: the headers of extensions,
// which come before, are skipped with their data.
func lastHeader(raw []byte) []byte {
	for len(raw) >= blockSize {
		switch raw[156] {
		case tar.TypeXHeader, tar.TypeXGlobalHeader, tar.TypeGNULongName, tar.TypeGNULongLink:
		default:
			return raw
		}
		n, ok := number(raw[124:136])
		skip := blockSize + (n+blockSize-1)/blockSize*blockSize
		if !ok || skip > int64(len(raw)) || n > maxRaw {
			return nil
		}
		raw = raw[skip:]
	}
	return nil
}

// oldSparse reads the map of a header of type S: four entries, and 21 in each block that follows.
func oldSparse(raw []byte) (all []index.Part, err error) {
	bad := fmt.Errorf("%w: sparse file with a map that cannot be read", layout.ErrInvalid)
	if len(raw) < blockSize {
		return nil, bad
	}
	entries, more := raw[386:482], raw[482] != 0
	for {
		for ; len(entries) >= 24 && entries[0] != 0; entries = entries[24:] {
			off, ok1 := number(entries[:12])
			n, ok2 := number(entries[12:24])
			if !ok1 || !ok2 {
				return nil, bad
			}
			all = append(all, index.Part{Off: off, Len: n})
		}
		if !more {
			return all, nil
		}
		if raw = raw[blockSize:]; len(raw) < blockSize {
			return nil, bad
		}
		entries, more = raw[:504], raw[504] != 0
	}
}

// number reads a number of a header: octal, or, with the first bit set, binary.
func number(b []byte) (int64, bool) {
	if b[0]&0x80 != 0 {
		n := int64(b[0] & 0x7f)
		for _, c := range b[1:] {
			if n>>55 != 0 {
				return 0, false
			}
			n = n<<8 | int64(c)
		}
		return n, true
	}
	s := strings.Trim(string(b), " \x00")
	if s == "" {
		return 0, true
	}
	n, err := strconv.ParseInt(s, 8, 64)
	return n, err == nil && n >= 0
}
