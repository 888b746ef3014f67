package scan

import (
	"archive/tar"
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/remora-storage/remora/cache/blob"
	"github.com/remora-storage/remora/fs/layout"
)

// HeadSize is how many of a blob's first bytes Detect looks at, at most.
const HeadSize = 512

const magicSize = 8

// Detect returns how the layer that r reads from its start is packed, by its first bytes, as containerd does: media types are often
// wrong. Only OCI's type of a plain archive is taken at its word. r has room for HeadSize bytes and loses none. An error that wraps
// layout.ErrInvalid says that the bytes are no layer's, others are those of r.
//
// The formats' first bytes are those of RFC 1952, section 2.3, and of RFC 8878, sections 3.1.1 and 3.1.2.
func Detect(mediaType string, r *bufio.Reader) (blob.Codec, error) {
	magic, err := r.Peek(magicSize)
	if err != nil && err != io.EOF {
		return 0, err
	}
	plain := strings.HasPrefix(mediaType, "application/vnd.oci.image.layer.") && strings.HasSuffix(mediaType, ".tar")
	switch {
	case plain:
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b, 8}):
		return blob.Gzip, nil
	case bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}),
		len(magic) == magicSize && magic[0]&0xf0 == 0x50 && bytes.Equal(magic[1:4], []byte{0x2a, 0x4d, 0x18}):
		return blob.Zstd, nil
	}
	head, err := r.Peek(HeadSize)
	if err != nil && err != io.EOF {
		return 0, err
	}
	switch _, err := tar.NewReader(bytes.NewReader(head)).Next(); {
	case err == nil, err == io.EOF, err == io.ErrUnexpectedEOF: // the last of a long name, which comes later
		return blob.Plain, nil
	case errors.Is(err, tar.ErrHeader):
		return 0, fmt.Errorf("%w: neither an archive nor packed by gzip or zstd", layout.ErrInvalid)
	default:
		return 0, fmt.Errorf("%w: %w", layout.ErrInvalid, err)
	}
}
