package index

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/cache/blob"
	"github.com/remora-storage/remora/cache/inflate"
	"github.com/remora-storage/remora/fs/layout"
	"github.com/remora-storage/remora/internal/wire"
)

var le = binary.LittleEndian

func putDigest(p []byte, d digest.Digest) {
	// Callers have SHA-256 digests alone; another one gives zeros, which no layer has.
	_, _ = hex.Decode(p[:sha256.Size], []byte(d.Encoded()))
}

func getDigest(p []byte) digest.Digest {
	return digest.NewDigestFromBytes(digest.SHA256, p[:sha256.Size])
}

// Head is what an index says before it is decoded. Sizes are in bytes.
type Head struct {
	Digest    digest.Digest
	DiffID    digest.Digest
	Size      int64 // of the packed blob
	PlainSize int64
	Codec     blob.Codec
	Entries   int
	Points    int
	Extents   int
	// Tree, Windows and Digests are the shares of the index: entries, points with what lies before them,
	// and digests.
	Tree, Windows, Digests int64
}

// ReadHead reads the head of a layer's index, and checks that the rest is as long as it says.
func ReadHead(p []byte) (h Head, err error) {
	if len(p) < layerHeader || string(p[:8]) != layerMagic {
		return h, fmt.Errorf("%w: index without its mark", layout.ErrInvalid)
	}
	if v := le.Uint32(p[8:]); v != layerVersion {
		return h, fmt.Errorf("%w: index of version %d", layout.ErrInvalid, v)
	}
	h = Head{
		Digest: getDigest(p[16:]), DiffID: getDigest(p[48:]), Codec: blob.Codec(le.Uint32(p[12:])),
		Size: int64(le.Uint64(p[80:])), PlainSize: int64(le.Uint64(p[88:])),
		Points: int(le.Uint32(p[104:])), Extents: int(le.Uint32(p[108:])),
		Tree: int64(le.Uint32(p[112:])), Windows: int64(le.Uint32(p[116:])), Digests: int64(le.Uint32(p[120:])),
	}
	entries := le.Uint64(p[96:])
	h.Entries = int(min(entries, math.MaxInt32))
	switch {
	case h.Codec != blob.Plain && h.Codec != blob.Zstd && h.Codec != blob.Spans:
		return h, fmt.Errorf("%w: index of codec %d", layout.ErrInvalid, h.Codec)
	case h.Size <= 0 || h.PlainSize < 0 || h.Points < 1 || h.Digests != int64(h.Extents)*sha256.Size,
		layerHeader+h.Tree+h.Windows+h.Digests != int64(len(p)):
		return h, fmt.Errorf("%w: index whose sizes do not fit", layout.ErrInvalid)
	}
	return h, nil
}

// Decode turns a layer's index into a Layout. Errors wrap layout.ErrInvalid, unless ctx has ended or limits.Grow failed.
func Decode(ctx context.Context, p []byte, limits layout.Limits) (*layout.Layout, error) {
	limits = limits.WithDefaults()
	h, err := ReadHead(p)
	if err != nil {
		return nil, err
	}
	if h.Entries > limits.Entries || int64(len(p)) > limits.PackedIndex {
		return nil, fmt.Errorf("%w: index of %d bytes, %d entries (limits %d, %d)", layout.ErrInvalid, len(p), h.Entries,
			limits.PackedIndex, limits.Entries)
	}
	b := layout.NewBuilder(limits)
	treeBytes, pointBytes := le.Uint32(p[124:]), le.Uint32(p[128:])
	if err := b.Take(int64(treeBytes) + int64(pointBytes)); err != nil {
		return nil, err
	}
	body := p[layerHeader:]
	tree, err := unpack(body[:h.Tree], treeBytes, limits.PlainIndex)
	if err != nil {
		return nil, err
	}
	rest, err := unpack(body[h.Tree:h.Tree+h.Windows], pointBytes, limits.PlainIndex)
	if err != nil {
		return nil, err
	}
	if h.Points > limits.Entries || h.Points > len(rest)/leastPoint {
		return nil, fmt.Errorf("%w: index of %d points in %d bytes (limit %d)", layout.ErrInvalid, h.Points, len(rest), limits.Entries)
	}
	if err := b.TakeUnits(h.Points); err != nil {
		return nil, err
	}
	points, units, err := decodePoints(rest, &h)
	if err != nil {
		return nil, err
	}
	r := reader{h: &h, b: b, digests: body[h.Tree+h.Windows:], cuts: cuts{points: points}}
	if err := r.read(ctx, tree); err != nil {
		return nil, err
	}
	l, err := r.b.Finish(h.Codec, units, func(u uint32) uint32 { return u })
	if err != nil {
		return nil, err
	}
	l.PlainSize = h.PlainSize
	if h.Codec == blob.Spans {
		l.Points = points
	}
	return l, nil
}

func unpack(p []byte, n uint32, limit int64) ([]byte, error) {
	if int64(n) > limit {
		return nil, fmt.Errorf("%w: section of %d bytes (limit %d)", layout.ErrInvalid, n, limit)
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxMemory(uint64(max(n, 1<<10))))
	if err != nil {
		return nil, err
	}
	defer dec.Close()
	out, err := dec.DecodeAll(p, make([]byte, 0, min(int64(n), int64(len(p))*64)))
	if err != nil {
		return nil, fmt.Errorf("%w: section: %w", layout.ErrInvalid, err)
	}
	if len(out) != int(n) {
		return nil, fmt.Errorf("%w: section of %d bytes, not %d", layout.ErrInvalid, len(out), n)
	}
	return out, nil
}

// Units returns the units of a blob of size bytes that begin at the points.
func Units(points []inflate.Point, size int64) []blob.Unit {
	units := make([]blob.Unit, len(points))
	for i, p := range points {
		end := size
		if i+1 < len(points) {
			end = points[i+1].Off
		}
		units[i] = blob.Unit{Off: p.Off, Len: end - p.Off}
	}
	return units
}

// leastPoint is the fewest bytes of a point: a number each.
const leastPoint = 5

func decodePoints(p []byte, h *Head) (points []inflate.Point, units []blob.Unit, err error) {
	bad := fmt.Errorf("%w: points", layout.ErrInvalid)
	points = make([]inflate.Point, h.Points)
	lengths := make([]uint64, h.Points)
	in := wire.Read(p)
	var plain, packed int64
	for i := range points {
		plain, packed = in.Add(plain), in.Add(packed)
		bits, value := in.Next(), in.Next()
		lengths[i] = in.Next()
		if bits > 7 || value > 255 {
			return nil, nil, bad
		}
		points[i] = inflate.Point{Plain: plain, Off: packed, Bits: uint8(bits), Value: uint8(value)}
	}
	for i, n := range lengths {
		if n > 0 {
			points[i].Window = in.Bytes(n)
		}
	}
	units = Units(points, h.Size)
	for i, u := range units {
		plainEnd := h.PlainSize
		if i+1 < len(points) {
			plainEnd = points[i+1].Plain
		}
		if u.Len <= 0 || plainEnd < points[i].Plain || plainEnd-points[i].Plain > blob.MaxUnit ||
			i == 0 && (u.Off != 0 || points[i].Plain != 0) {
			return nil, nil, bad
		}
	}
	if in.Bad() || in.Len() > 0 {
		return nil, nil, bad
	}
	return points, units, nil
}

// reader turns columns into a tree.
type reader struct {
	h       *Head
	b       *layout.Builder
	cols    [columns]wire.Reader
	digests []byte
	cuts    cuts
	dict    []layout.Inode

	name  string
	sec   int64
	end   int64
	since int64
}

func (r *reader) read(ctx context.Context, tree []byte) error {
	in := wire.Read(tree)
	for i := range r.cols {
		r.cols[i] = wire.Read(in.Bytes(in.Next()))
	}
	if in.Bad() || in.Len() > 0 || r.cols[colKinds].Len() != r.h.Entries {
		return fmt.Errorf("%w: columns", layout.ErrInvalid)
	}
	for i, kind := range r.cols[colKinds].Rest() {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		e, err := r.entry(kind)
		for _, c := range r.cols {
			if c.Bad() {
				err = fmt.Errorf("%w: a column ends early", layout.ErrInvalid)
			}
		}
		if err == nil {
			err = r.place(e)
		}
		if err != nil {
			return fmt.Errorf("entry %d: %w", i, err)
		}
	}
	if len(r.digests) > 0 {
		return fmt.Errorf("%w: more digests than extents", layout.ErrInvalid)
	}
	return nil
}

func (r *reader) place(e *Entry) error {
	handle, data, err := e.Place(r.b)
	if err != nil || len(e.Parts) == 0 {
		return err
	}
	return r.cuts.extents(e, func(x layout.Extent) error {
		if len(r.digests) < sha256.Size {
			return fmt.Errorf("%w: more extents than digests", layout.ErrInvalid)
		}
		copy(x.Digest[:], r.digests)
		r.digests = r.digests[sha256.Size:]
		if !data {
			return nil
		}
		return r.b.AddExtent(handle, x)
	})
}

func (r *reader) entry(kind byte) (*Entry, error) {
	names := &r.cols[colNames]
	same := names.Next()
	if same > uint64(len(r.name)) {
		return nil, fmt.Errorf("%w: name with %d bytes of one of %d", layout.ErrInvalid, same, len(r.name))
	}
	e := &Entry{Name: r.name[:same] + names.Text()}
	r.name = e.Name
	if len(e.Name) > 1<<16 {
		return nil, fmt.Errorf("%w: name of %d bytes", layout.ErrInvalid, len(e.Name))
	}
	if err := r.attrs(&e.Inode); err != nil {
		return nil, err
	}
	t := r.cols[colTimes].Next()
	r.sec += int64(t>>2) ^ -int64(t>>1&1)
	e.Inode.MtimeSec = r.sec
	if t&1 != 0 {
		e.Inode.MtimeNsec = uint32(min(r.cols[colTimes].Next(), math.MaxUint32))
	}
	r.since++
	links := &r.cols[colLinks]
	switch kind {
	case kindFile, kindSparse:
		return e, r.file(e, kind == kindSparse)
	case kindDir:
		e.Inode.Mode |= unix.S_IFDIR
	case kindSymlink:
		e.Inode.Mode |= unix.S_IFLNK
		e.Inode.Target = links.Text()
	case kindLink:
		if e.Link = links.Text(); e.Link == "" {
			return nil, fmt.Errorf("%w: hard link to nothing", layout.ErrInvalid)
		}
	case kindChar, kindBlock:
		if e.Inode.Mode |= unix.S_IFCHR; kind == kindBlock {
			e.Inode.Mode = e.Inode.Mode&^unix.S_IFMT | unix.S_IFBLK
		}
		e.Inode.Major, e.Inode.Minor = uint32(min(links.Next(), math.MaxUint32)), uint32(min(links.Next(), math.MaxUint32))
	case kindFifo:
		e.Inode.Mode |= unix.S_IFIFO
	default:
		return nil, fmt.Errorf("%w: entry of kind %d", layout.ErrInvalid, kind)
	}
	return e, nil
}

// file reads a regular file's size and where its data is.
func (r *reader) file(e *Entry, sparse bool) error {
	e.Inode.Mode |= unix.S_IFREG
	size := r.cols[colSizes].Next()
	if size > math.MaxInt64 {
		return fmt.Errorf("%w: file of %d bytes", layout.ErrInvalid, size)
	}
	e.Inode.Size = int64(size)
	switch {
	case sparse:
		in := &r.cols[colSparse]
		n := in.Next()
		if n > uint64(in.Len()) || n > uint64(len(r.digests)/sha256.Size) { // each part has an extent at least
			return fmt.Errorf("%w: sparse file of %d parts", layout.ErrInvalid, n)
		}
		end := int64(0)
		for range n {
			p := Part{Off: in.Add(end)}
			end = in.Add(p.Off)
			p.Len = end - p.Off
			e.Parts = append(e.Parts, p)
		}
	case size > 0:
		e.Parts = []Part{{0, e.Inode.Size}}
	}
	if err := checkParts(e.Inode.Size, e.Parts); err != nil || len(e.Parts) == 0 {
		return err
	}
	blocks := r.cols[colPlaces].Signed()
	if blocks < -1<<40 || blocks > 1<<50 {
		return fmt.Errorf("%w: data %d blocks further", layout.ErrInvalid, blocks)
	}
	e.Pos = r.end + (blocks+r.since)*tarBlock
	n := int64(0)
	for _, p := range e.Parts {
		n += p.Len
	}
	if e.Pos < r.end || e.Pos > r.h.PlainSize || n > r.h.PlainSize-e.Pos {
		return fmt.Errorf("%w: data at %d+%d of %d, behind %d", layout.ErrInvalid, e.Pos, n, r.h.PlainSize, r.end)
	}
	r.end, r.since = (e.Pos+n+tarBlock-1)/tarBlock*tarBlock, 0
	return nil
}

// maxXattrs is more than the attributes that an inode of an image has room for.
const maxXattrs = 16 << 10

// attrs reads an entry's attributes, those that are new from the dictionary.
func (r *reader) attrs(in *layout.Inode) error {
	i := r.cols[colAttrs].Next()
	if i > uint64(len(r.dict)) {
		return fmt.Errorf("%w: attributes %d of %d", layout.ErrInvalid, i, len(r.dict))
	}
	if i == uint64(len(r.dict)) {
		d := &r.cols[colDict]
		mode, uid, gid, n := d.Next(), d.Next(), d.Next(), d.Next()
		if mode > 0o7777 || uid > math.MaxUint32 || gid > math.MaxUint32 || n > uint64(d.Len()) {
			return fmt.Errorf("%w: mode %#o, owner %d:%d, %d attributes", layout.ErrInvalid, mode, uid, gid, n)
		}
		one := layout.Inode{Mode: uint32(mode), UID: uint32(uid), GID: uint32(gid)}
		for range n {
			x := layout.Xattr{Name: d.Text(), Value: []byte(d.Text())}
			// In order, as they were written.
			if k := len(one.Xattrs); k > 0 && x.Name <= one.Xattrs[k-1].Name {
				return fmt.Errorf("%w: attribute %.64q follows %.64q", layout.ErrInvalid, x.Name, one.Xattrs[k-1].Name)
			}
			if len(one.Xattrs) == maxXattrs {
				return fmt.Errorf("%w: an entry of more than %d attributes", layout.ErrInvalid, maxXattrs)
			}
			one.Xattrs = append(one.Xattrs, x)
		}
		var err error
		if one.Xattrs, err = r.b.Shared(one.Xattrs); err != nil {
			return err
		}
		r.dict = append(r.dict, one)
	}
	x := r.dict[i]
	in.Mode, in.UID, in.GID, in.Xattrs = x.Mode, x.UID, x.GID, x.Xattrs
	return nil
}
