package index

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"strings"
	"sync"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/cache/blob"
	"github.com/remora-storage/remora/cache/inflate"
	"github.com/remora-storage/remora/fs/layout"
)

// The columns of the entries. What is like what came before is one zero byte in each, and packs to next to
// nothing. Numbers are unsigned LEB128; signed ones are zigzag.
const (
	colKinds  = iota // a byte an entry: see kinds
	colNames         // bytes in common with the name before, bytes that follow, these
	colAttrs         // number in colDict; the first that is not there yet is new
	colTimes         // seconds since the entry before, signed, doubled, plus 1 if nanoseconds follow
	colSizes         // of regular files
	colPlaces        // of data: blocks of 512 since the data before, less the entries since, signed
	colLinks         // bytes that follow, a target; of devices: major, minor
	colDict          // mode, uid, gid, attributes: count, each name and value with its length
	colSparse        // of sparse files: parts, each the gap before and its length
	columns
)

// The kinds of entries.
const (
	kindFile = iota
	kindDir
	kindSymlink
	kindLink
	kindChar
	kindBlock
	kindFifo
	kindSparse
	kinds
)

const tarBlock = 512

// A Writer makes a layer's index of its entries, in the archive's order.
type Writer struct {
	cols    [columns][]byte
	n       uint64
	digests []byte

	dicts int64 // bytes of the keys of dict
	name  string
	sec   int64
	end   int64 // of the data before, rounded up to a block
	since int64 // entries since then
	dict  map[string]uint64
}

// NewWriter returns a Writer of an empty index.
func NewWriter() *Writer { return &Writer{dict: map[string]uint64{}} }

// Digest adds the digest of the next extent. Extents come in the order of the plain bytes.
func (w *Writer) Digest(sum [sha256.Size]byte) { w.digests = append(w.digests, sum[:]...) }

// Add adds an entry. kept says that the digests of its extents are added, too.
func (w *Writer) Add(e *Entry, kept bool) {
	w.n++
	kind := kindOf(e)
	same := 0
	for same < len(w.name) && same < len(e.Name) && w.name[same] == e.Name[same] {
		same++
	}
	w.name = e.Name
	w.put(colNames, uint64(same))
	w.text(colNames, e.Name[same:])
	w.attrs(&e.Inode)
	delta := zigzag(e.Inode.MtimeSec - w.sec)
	w.sec = e.Inode.MtimeSec
	if e.Inode.MtimeNsec != 0 {
		w.put(colTimes, delta<<1|1)
		w.put(colTimes, uint64(e.Inode.MtimeNsec))
	} else {
		w.put(colTimes, delta<<1)
	}
	w.since++
	switch kind {
	case kindFile, kindSparse:
		if !kept {
			e = &Entry{Inode: e.Inode} // a name that is none, whose data is nobody's
			e.Inode.Size, kind = 0, kindFile
		}
		w.put(colSizes, uint64(e.Inode.Size))
		if kind == kindSparse {
			w.put(colSparse, uint64(len(e.Parts)))
			end := int64(0)
			for _, p := range e.Parts {
				w.put(colSparse, uint64(p.Off-end))
				w.put(colSparse, uint64(p.Len))
				end = p.Off + p.Len
			}
		}
		if len(e.Parts) > 0 {
			w.put(colPlaces, zigzag((e.Pos-w.end)/tarBlock-w.since))
			w.end, w.since = e.Pos, 0
			for _, p := range e.Parts {
				w.end += p.Len
			}
			w.end = (w.end + tarBlock - 1) / tarBlock * tarBlock
		}
	case kindSymlink:
		w.text(colLinks, e.Inode.Target)
	case kindLink:
		w.text(colLinks, e.Link)
	case kindChar, kindBlock:
		w.put(colLinks, uint64(e.Inode.Major))
		w.put(colLinks, uint64(e.Inode.Minor))
	}
	w.cols[colKinds] = append(w.cols[colKinds], byte(kind))
}

// dictCost is what an entry of a Writer's dictionary takes besides its bytes.
const dictCost = 64

// Size returns how many bytes of memory the index takes so far.
func (w *Writer) Size() int64 {
	n := w.dicts + int64(cap(w.digests))
	for _, c := range w.cols {
		n += int64(cap(c))
	}
	return n
}

func kindOf(e *Entry) int {
	if e.Link != "" {
		return kindLink
	}
	switch e.Inode.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return kindDir
	case unix.S_IFLNK:
		return kindSymlink
	case unix.S_IFCHR:
		return kindChar
	case unix.S_IFBLK:
		return kindBlock
	case unix.S_IFIFO:
		return kindFifo
	}
	if whole := e.Inode.Size > 0 && slices.Equal(e.Parts, []Part{{0, e.Inode.Size}}); whole || e.Inode.Size == 0 {
		return kindFile
	}
	return kindSparse
}

func (w *Writer) attrs(in *layout.Inode) {
	var b []byte
	for _, v := range []uint64{uint64(in.Mode &^ unix.S_IFMT), uint64(in.UID), uint64(in.GID), uint64(len(in.Xattrs))} {
		b = binary.AppendUvarint(b, v)
	}
	xattrs := slices.Clone(in.Xattrs)
	slices.SortFunc(xattrs, func(a, b layout.Xattr) int { return strings.Compare(a.Name, b.Name) })
	for _, x := range xattrs {
		b = append(binary.AppendUvarint(b, uint64(len(x.Name))), x.Name...)
		b = append(binary.AppendUvarint(b, uint64(len(x.Value))), x.Value...)
	}
	i, known := w.dict[string(b)]
	if !known {
		i = uint64(len(w.dict))
		w.dict[string(b)] = i
		w.dicts += int64(len(b)) + dictCost
		w.cols[colDict] = append(w.cols[colDict], b...)
	}
	w.put(colAttrs, i)
}

func (w *Writer) put(col int, v uint64) { w.cols[col] = binary.AppendUvarint(w.cols[col], v) }

func (w *Writer) text(col int, s string) {
	w.put(col, uint64(len(s)))
	w.cols[col] = append(w.cols[col], s...)
}

func zigzag(v int64) uint64 { return uint64(v<<1) ^ uint64(v>>63) }

// A Blob is what the entries were found in.
type Blob struct {
	Digest    digest.Digest // of the packed bytes
	Size      int64         // of them
	DiffID    digest.Digest // of the plain bytes
	PlainSize int64
	Codec     blob.Codec // Plain, Spans or Zstd
	Points    []inflate.Point
}

// A layer's index, all numbers little-endian:
//
//	offset  size  field
//	0       8     "REMORAIX"
//	8       4     version, 1
//	12      4     codec: 0 plain, 2 zstd, 3 gzip
//	16      32    SHA-256 of the packed blob
//	48      32    SHA-256 of the plain blob
//	80      8     bytes of the packed blob
//	88      8     bytes of the plain blob
//	96      8     entries
//	104     4     points
//	108     4     extents
//	112     12    bytes of the three sections that follow, 4 each
//	124     12    bytes of the same, unpacked
//	136           tree: zstd of the columns, each with its length before it
//	...           points: zstd of, for each, plain and packed bytes since the one before, bits and value, and
//	              the length of its window; then the windows
//	...           digests: SHA-256 of each extent, as they are
const (
	layerMagic   = "REMORAIX"
	layerVersion = 1
	layerHeader  = 136
)

// packer is made when it is first used: snapctl is started for many things, and this takes a tenth of its start.
var packer = sync.OnceValue(func() *zstd.Encoder {
	w, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBetterCompression), zstd.WithEncoderConcurrency(1))
	if err != nil {
		panic(err) // the options are right
	}
	return w
})

// pointMost is what a point takes at most beside its window: five numbers.
const pointMost = 5 * binary.MaxVarintLen64

// Encode returns the index of a layer. Each buffer is made as large as it can become: one that grows is there twice while it does,
// and the points of a hungry layer are tens of megabytes.
func (w *Writer) Encode(b *Blob) []byte {
	tree := make([]byte, 0, w.encodedColumns())
	for _, c := range w.cols {
		tree = append(binary.AppendUvarint(tree, uint64(len(c))), c...)
	}
	points := make([]byte, 0, pointMost*len(b.Points)+windowsOf(b.Points))
	var plain, packed int64
	for _, p := range b.Points {
		for _, v := range []uint64{uint64(p.Plain - plain), uint64(p.Off - packed), uint64(p.Bits), uint64(p.Value), uint64(len(p.Window))} {
			points = binary.AppendUvarint(points, v)
		}
		plain, packed = p.Plain, p.Off
	}
	for _, p := range b.Points {
		points = append(points, p.Window...)
	}
	out := make([]byte, layerHeader, layerHeader+packer().MaxEncodedSize(len(tree))+packer().MaxEncodedSize(len(points))+len(w.digests))
	copy(out, layerMagic)
	le.PutUint32(out[8:], layerVersion)
	le.PutUint32(out[12:], uint32(b.Codec))
	putDigest(out[16:], b.Digest)
	putDigest(out[48:], b.DiffID)
	le.PutUint64(out[80:], uint64(b.Size))
	le.PutUint64(out[88:], uint64(b.PlainSize))
	le.PutUint64(out[96:], w.n)
	le.PutUint32(out[104:], uint32(len(b.Points)))
	le.PutUint32(out[108:], uint32(len(w.digests)/sha256.Size))
	for i, section := range [][]byte{tree, points, w.digests} {
		le.PutUint32(out[124+4*i:], uint32(len(section)))
		at := len(out)
		if i < 2 {
			out = packer().EncodeAll(section, out)
		} else {
			out = append(out, section...)
		}
		le.PutUint32(out[112+4*i:], uint32(len(out)-at))
	}
	return out
}

func (w *Writer) encodedColumns() int {
	n := 0
	for _, c := range w.cols {
		n += binary.MaxVarintLen64 + len(c)
	}
	return n
}

func windowsOf(points []inflate.Point) int {
	n := 0
	for _, p := range points {
		n += len(p.Window)
	}
	return n
}
