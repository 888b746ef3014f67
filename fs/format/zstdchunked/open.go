package zstdchunked

import (
	"bytes"
	"context"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/cache/blob"
	"github.com/remora-storage/remora/fs/format"
	"github.com/remora-storage/remora/fs/format/toc"
	"github.com/remora-storage/remora/fs/layout"
)

// Options say what the caller knows of the layer.
type Options struct {
	Table Table // as the manifest names it; the zero value if it names none
	// Unverified takes the table that the footer names where the manifest names none: the operator
	// trusts this registry.
	Unverified bool
	// JSONDigest is the digest of the plain table, if the manifest promises that too.
	JSONDigest digest.Digest
	// Landmarks says that the layer was made with eStargz's landmarks, which are no files then.
	Landmarks bool
	Limits    layout.Limits
}

// newestTable is the highest version of the table that is read.
const newestTable = 2

// smallTail is up to which size what lies behind the table is read with it: the record of the tar's
// headers is of no use here, and as large.
const smallTail = 4 << 10

// Open reads a layer's table in one round trip, two where the manifest does not say where it lies.
// Errors that wrap layout.ErrInvalid are the layer's fault; all others come from blob.
func Open(ctx context.Context, blob toc.Blob, opts Options) (*format.Index, error) {
	limits := opts.Limits.WithDefaults()
	size := blob.Size()
	t := opts.Table
	if t == (Table{}) {
		if !opts.Unverified {
			return nil, fmt.Errorf("%w: no digest of the table of contents in the manifest", layout.ErrInvalid)
		}
		n := min(size, tailSize)
		tail, err := toc.ReadRange(ctx, blob, limits, size-n, n)
		if err != nil {
			return nil, err
		}
		if t, err = parseFooter(tail); err != nil {
			return nil, err
		}
	}
	if t.Packed > limits.PackedIndex || t.Plain > limits.PlainIndex || t.Off > size-t.Packed {
		return nil, fmt.Errorf("%w: table of %d packed bytes, %d plain, at %d of %d (limits %d, %d)", layout.ErrInvalid,
			t.Packed, t.Plain, t.Off, size, limits.PackedIndex, limits.PlainIndex)
	}
	tailOff := t.Off - frameHeader
	n := t.Off + t.Packed - tailOff
	if size-tailOff-n <= smallTail {
		n = size - tailOff
	}
	got, err := toc.ReadRange(ctx, blob, limits, tailOff, n)
	if err != nil {
		return nil, err
	}
	packed := got[frameHeader : frameHeader+t.Packed]
	if t.Digest != "" && t.Digest.Algorithm().FromBytes(packed) != t.Digest {
		return nil, fmt.Errorf("%w: table has digest %s, the manifest says %s", layout.ErrInvalid,
			t.Digest.Algorithm().FromBytes(packed), t.Digest)
	}
	l, err := unpackTable(ctx, packed, t.Plain, tailOff, size, opts, limits)
	if err != nil {
		return nil, err
	}
	index := &format.Index{Layout: l, TailOff: tailOff}
	if n == size-tailOff {
		index.Tail = got
	}
	return index, nil
}

// countedWindow is up to which size whoever calls Open allows for the decoder of the table.
const countedWindow = 2 << 20

// unpackTable turns a packed table into a Layout, once there is memory for the window of its first frame. Later frames, which no
// known writer makes, may have the same.
func unpackTable(
	ctx context.Context, packed []byte, plain, dataEnd, size int64, opts Options, limits layout.Limits,
) (l *layout.Layout, err error) {
	window := blob.Zstd.Window(packed[:min(blob.Zstd.HeadSize(), len(packed))])
	if err := limits.Ask(window - countedWindow); err != nil {
		return nil, err
	}
	err = blob.Decode(blob.Zstd, bytes.NewReader(packed), window, func(r io.Reader) error {
		l, err = parseTable(ctx, r, plain, dataEnd, size, opts, limits)
		return err
	})
	return l, err
}

// parseTable turns a table into a Layout.
func parseTable(
	ctx context.Context, r io.Reader, plain, dataEnd, size int64, opts Options, limits layout.Limits,
) (*layout.Layout, error) {
	sum := digest.SHA256.Digester()
	in := io.TeeReader(io.LimitReader(r, plain), io.MultiWriter(toc.NewCounter(limits.Entries), sum.Hash()))
	l, err := toc.Parse(ctx, in, toc.Options{DataEnd: dataEnd, BlobSize: size, Codec: blob.Zstd, Limits: limits, Version: newestTable,
		Landmarks: opts.Landmarks || opts.JSONDigest != ""})
	if err != nil {
		return nil, err
	}
	if _, err := io.Copy(io.Discard, in); err != nil {
		return nil, fmt.Errorf("%w: table: %w", layout.ErrInvalid, err)
	}
	if want := opts.JSONDigest; want != "" && sum.Digest() != want {
		return nil, fmt.Errorf("%w: plain table has digest %s, the manifest says %s", layout.ErrInvalid, sum.Digest(), want)
	}
	return l, nil
}
