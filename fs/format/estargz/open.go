package estargz

import (
	"context"
	"fmt"

	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/fs/format"
	"github.com/remora-storage/remora/fs/format/toc"
	"github.com/remora-storage/remora/fs/layout"
)

// Options say what the caller knows of the layer.
type Options struct {
	TOCDigest   digest.Digest // the digest that the manifest promises; required unless Unverified
	Unverified  bool          // take the table as it is: the operator trusts this registry
	OffsetHint  int64         // where the table may start; 0 if unknown
	Limits      layout.Limits
	MinTailRead int64 // bytes of the first read if there is no hint; 0 for a guess by size
}

// Open reads a layer's footer and table, in one round trip unless the table is unusually long,
// and returns what they say. Errors that wrap layout.ErrInvalid are the layer's fault; all
// others come from blob.
func Open(ctx context.Context, blob toc.Blob, opts Options) (*format.Index, error) {
	limits := opts.Limits.WithDefaults()
	if opts.TOCDigest == "" && !opts.Unverified {
		return nil, fmt.Errorf("%w: no digest of the table of contents in the manifest", layout.ErrInvalid)
	}
	size := blob.Size()
	if size < oldFooterSize {
		return nil, fmt.Errorf("%w: blob of %d bytes is too short for a footer", layout.ErrInvalid, size)
	}
	from := tailStart(size, opts)
	tail, err := toc.ReadRange(ctx, blob, limits, from, size-from)
	if err != nil {
		return nil, err
	}
	tocOff, footerLen, err := parseFooter(tail, size)
	if err != nil {
		return nil, err
	}
	if n := size - int64(footerLen) - tocOff; n <= 0 || n > limits.PackedIndex {
		return nil, fmt.Errorf("%w: table of %d packed bytes (limit %d)", layout.ErrInvalid, n, limits.PackedIndex)
	}
	if tocOff < from {
		if err := limits.Ask(size - tocOff); err != nil { // head and tail together
			return nil, err
		}
		head, err := toc.ReadRange(ctx, blob, limits, tocOff, from-tocOff)
		if err != nil {
			return nil, err
		}
		tail = append(head, tail...)
		from = tocOff
	}
	tail = tail[tocOff-from:]
	packed := tail[:len(tail)-footerLen]
	if err := checkTOC(packed, opts.TOCDigest, limits); err != nil {
		return nil, err
	}
	l, err := parseTOC(ctx, packed, tocOff, size, limits)
	if err != nil {
		return nil, err
	}
	return &format.Index{Layout: l, Tail: tail, TailOff: tocOff}, nil
}

// tailStart says where the first read begins. A table takes roughly a hundred packed bytes a
// file; reading a fortieth of the blob finds nearly all of them whole, and at common link
// speeds costs less than a second round trip.
func tailStart(size int64, opts Options) int64 {
	if h := opts.OffsetHint; h > 0 && h < size && size-h <= 16<<20 {
		return h
	}
	n := opts.MinTailRead
	if n == 0 {
		n = min(max(size/40, 256<<10), 4<<20)
	}
	return max(size-n, 0)
}
