package scan

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"math"
	"strings"

	"crypto/sha256"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/remora-storage/remora/cache/blob"
	"github.com/remora-storage/remora/cache/inflate"
	"github.com/remora-storage/remora/fs/index"
	"github.com/remora-storage/remora/fs/layout"
)

// Options of a Scan. The zero value works.
type Options struct {
	// Data takes the files' data; nil drops it. It is written in the order of the offsets.
	Data io.WriterAt
	// DataStart is the offset at which the first file's data goes. Each file's begins on a multiple of
	// 4096.
	DataStart int64
	// Span is how many plain bytes lie between two places at which decoding can begin; 0 for
	// DefaultSpan.
	Span   int64
	Limits layout.Limits
}

// DefaultSpan costs about 0.3 % of a gzip blob for what lies before each point, and has a reader who
// wants one page decode 2 MiB, some 3 ms.
const DefaultSpan = 2 << 20

const alignment = 4096

// ErrBomb says that a layer decodes to more than it may.
var ErrBomb = errors.New("layer unpacks to more than [limits] plain allows")

// A Layer is what a scan finds.
type Layer struct {
	Layout *layout.Layout
	Blob   digest.Digest // of the packed bytes
	Size   int64         // of them
	DiffID digest.Digest // of the plain bytes

	encode func() []byte
	kept   int64 // bytes of memory that encode keeps, which Limits.Grow was asked for
}

// encodeCost is how much memory it takes to encode an index, as a multiple of what is encoded.
const encodeCost = 3

// EncodeMemory returns how many bytes of memory Index takes, besides those that Limits.Grow was asked for during the scan; 0 if there
// will be no index.
func (l *Layer) EncodeMemory() int64 { return l.kept * encodeCost }

// IndexMemory returns how many bytes Index takes with what the Layer keeps for it: what a caller needs for whom the memory that the
// scan asked for is no longer held.
func (l *Layer) IndexMemory() int64 { return l.kept + l.EncodeMemory() }

// Index returns the index (fs/index) by which the layer's next reader can do without most of it. ok is false
// if it cannot be read by parts.
func (l *Layer) Index() (data []byte, ok bool) {
	if l.encode == nil {
		return nil, false
	}
	return l.encode(), true
}

// CodecOf returns how a layer of a media type is packed, by the types of OCI and Docker.
func CodecOf(mediaType string) (blob.Codec, bool) {
	base, ok := strings.CutPrefix(mediaType, "application/vnd.oci.image.layer.nondistributable.v1.tar")
	if !ok {
		base, ok = strings.CutPrefix(mediaType, "application/vnd.oci.image.layer.v1.tar")
	}
	if ok {
		switch base {
		case "":
			return blob.Plain, true
		case "+gzip":
			return blob.Gzip, true
		case "+zstd":
			return blob.Zstd, true
		}
		return 0, false
	}
	switch mediaType {
	case "application/vnd.docker.image.rootfs.diff.tar", "application/vnd.docker.image.rootfs.foreign.diff.tar":
		return blob.Plain, true
	case "application/vnd.docker.image.rootfs.diff.tar.gzip", "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip":
		return blob.Gzip, true
	case "application/vnd.docker.image.rootfs.diff.tar.zstd":
		return blob.Zstd, true
	}
	return 0, false
}

// Scan reads a layer's blob to its end. Errors that wrap layout.ErrInvalid are the layer's fault, those
// of r and of Data are returned as they are.
func Scan(ctx context.Context, r io.Reader, codec blob.Codec, o Options) (*Layer, error) {
	o.Limits = o.Limits.WithDefaults()
	if o.Span == 0 {
		o.Span = DefaultSpan
	}
	group, gctx := errgroup.WithContext(ctx)
	in := newPieces(gctx, r)
	out := newChunks(gctx, o.Limits.Plain)
	plainSum := sha256.New()
	var points []inflate.Point
	group.Go(in.read)
	group.Go(func() (err error) {
		switch codec {
		case blob.Plain:
			err = decodePlain(in, out, o.Span)
		case blob.Gzip:
			points, err = decodeGzip(in, out, o.Span, &o.Limits)
		case blob.Zstd:
			err = decodeZstd(in, out, o.Span, &o.Limits)
		default:
			err = fmt.Errorf("%w: codec %d", layout.ErrInvalid, codec)
		}
		if err != nil {
			return err // which ends those who wait for more
		}
		out.end()
		return in.drain()
	})
	group.Go(func() error { return out.hash(plainSum) })
	t := &tree{o: o, b: layout.NewBuilder(o.Limits), w: index.NewWriter(), at: o.DataStart, sum: newExtentSum()}
	group.Go(func() error { return t.read(out) })
	if err := group.Wait(); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return nil, cause
		}
		return nil, err
	}
	if in.size == 0 {
		return nil, fmt.Errorf("%w: blob of no bytes", layout.ErrInvalid)
	}
	l, err := t.finish(codec, in.size, points, out)
	if err != nil {
		return nil, err
	}
	layer := &Layer{Layout: l, Blob: sumOf(in.sum), Size: in.size, DiffID: sumOf(plainSum)}
	if l.Codec != blob.Whole {
		layer.kept = t.w.Size()
		for _, p := range points {
			layer.kept += pointCost + int64(len(p.Window))
		}
		layer.encode = func() []byte {
			return t.w.Encode(&index.Blob{
				Digest: layer.Blob, Size: layer.Size, DiffID: layer.DiffID, PlainSize: l.PlainSize, Codec: l.Codec, Points: out.points(points),
			})
		}
	}
	return layer, nil
}

func sumOf(h hash.Hash) digest.Digest { return digest.NewDigest(digest.SHA256, h) }

// finish makes the Layout of what was found.
func (t *tree) finish(codec blob.Codec, size int64, points []inflate.Point, out *chunks) (*layout.Layout, error) {
	units := index.Units(out.points(points), size)
	if codec == blob.Gzip {
		codec = blob.Spans
	}
	if t.whole || out.longest() > blob.MaxUnit || codec == blob.Spans && widest(units) > blob.MaxUnit {
		codec, points, units = blob.Whole, nil, []blob.Unit{{Len: size}}
	}
	l, err := t.b.Finish(codec, units, func(u uint32) uint32 {
		if codec == blob.Whole {
			return 0
		}
		return u
	})
	if err != nil {
		return nil, err
	}
	if codec == blob.Whole {
		for i := range l.Extents {
			l.Extents[i].Inner = 0
		}
	}
	l.Points, l.PlainSize = points, out.size
	return l, nil
}

// widest returns the packed bytes of the largest unit.
func widest(units []blob.Unit) (n int64) {
	for _, u := range units {
		n = max(n, u.Len)
	}
	return n
}

// fits reports whether an offset in a unit can be written down.
func fits(inner int64) bool { return inner <= math.MaxInt32 }
