package estargz

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/cache/blob"
	"github.com/remora-storage/remora/fs/format/toc"
	"github.com/remora-storage/remora/fs/layout"
)

// openTOC returns the plain JSON of a packed table.
func openTOC(packed []byte, limits layout.Limits) (io.Reader, error) {
	zr, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, fmt.Errorf("%w: table is not gzip: %w", layout.ErrInvalid, err)
	}
	zr.Multistream(false)
	tr := tar.NewReader(io.LimitReader(zr, limits.PlainIndex+1<<20))
	h, err := tr.Next()
	if err != nil {
		return nil, fmt.Errorf("%w: table is not a tar: %w", layout.ErrInvalid, err)
	}
	if h.Name != toc.Name {
		return nil, fmt.Errorf("%w: table is called %.64q", layout.ErrInvalid, h.Name)
	}
	if h.Size < 0 || h.Size > limits.PlainIndex {
		return nil, fmt.Errorf("%w: table of %d bytes (limit %d)", layout.ErrInvalid, h.Size, limits.PlainIndex)
	}
	return tr, nil
}

// checkTOC compares the table with its digest and counts its entries, without keeping any of
// it, so that a table which must be refused costs no memory.
func checkTOC(packed []byte, want digest.Digest, limits layout.Limits) error {
	r, err := openTOC(packed, limits)
	if err != nil {
		return err
	}
	h := sha256.New()
	count := toc.NewCounter(limits.Entries + 1) // the table itself is one more
	if _, err := io.CopyBuffer(io.MultiWriter(h, count), r, make([]byte, 64<<10)); err != nil {
		if errors.Is(err, layout.ErrInvalid) {
			return err
		}
		return fmt.Errorf("%w: read table: %w", layout.ErrInvalid, err)
	}
	if want == "" {
		return nil // the caller was told to take it unverified
	}
	if got := digest.NewDigestFromBytes(digest.SHA256, h.Sum(nil)); got != want {
		return fmt.Errorf("%w: table has digest %s, the manifest says %s", layout.ErrInvalid, got, want)
	}
	return nil
}

// parseTOC turns a packed table into a Layout.
func parseTOC(ctx context.Context, packed []byte, tocOff, blobSize int64, limits layout.Limits) (*layout.Layout, error) {
	r, err := openTOC(packed, limits)
	if err != nil {
		return nil, err
	}
	return toc.Parse(ctx, r, toc.Options{
		DataEnd: tocOff, BlobSize: blobSize, Codec: blob.Gzip, Limits: limits, Version: 1, Landmarks: true,
	})
}
