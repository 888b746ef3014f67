package zstdchunked

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/fs/layout"
)

// The annotations of a layer's descriptor: their prefix in each generation, and what follows it.
const (
	FirstPrefix  = "io.containers.zstd-chunked."
	SecondPrefix = "io.github.containers.zstd-chunked."

	Checksum = "manifest-checksum" // sha256 of the packed table
	Position = "manifest-position" // offset:packed bytes:plain bytes:type
	TarSplit = "tarsplit-position" // offset:packed bytes:plain bytes
)

// tableType is the only kind of table that there is.
const tableType = 1

// A Table is where a layer's table of contents lies, in bytes of the blob, and its digest.
type Table struct {
	Digest digest.Digest // of the packed bytes; "" if nobody vouches for it
	Off    int64
	Packed int64
	Plain  int64
}

// MediaType is that of layers packed by zstd.
const MediaType = "application/vnd.oci.image.layer.v1.tar+zstd"

// Named returns the table that a layer's annotations name, or ok = false where they name none. With
// annotations of both generations both must name the same.
func Named(annotations map[string]string) (t Table, ok bool, err error) {
	for _, prefix := range []string{FirstPrefix, SecondPrefix} {
		sum, position := annotations[prefix+Checksum], annotations[prefix+Position]
		if sum == "" && position == "" {
			continue
		}
		one, err := parse(sum, position)
		if err != nil {
			return t, true, err
		}
		if ok && one != t {
			return t, true, fmt.Errorf("%w: two tables of contents on one layer", layout.ErrInvalid)
		}
		t, ok = one, true
	}
	return t, ok, nil
}

func parse(sum, position string) (t Table, err error) {
	d, err := digest.Parse(sum)
	if err != nil || d.Algorithm() != digest.SHA256 {
		return t, fmt.Errorf("%w: digest of the table of contents %.80q", layout.ErrInvalid, sum)
	}
	fields := strings.Split(position, ":")
	var numbers [4]int64
	for i := range numbers {
		if len(fields) == len(numbers) && err == nil {
			numbers[i], err = strconv.ParseInt(fields[i], 10, 64)
		}
	}
	if err != nil || len(fields) != len(numbers) {
		return t, fmt.Errorf("%w: position of the table of contents %.80q", layout.ErrInvalid, position)
	}
	t.Off, t.Packed, t.Plain = numbers[0], numbers[1], numbers[2]
	kind := numbers[3]
	if kind != tableType || t.Off < frameHeader || t.Packed <= 0 || t.Plain <= 0 {
		return t, fmt.Errorf("%w: table of contents of %d bytes and type %d at %d", layout.ErrInvalid, t.Packed, kind, t.Off)
	}
	t.Digest = d
	return t, nil
}
