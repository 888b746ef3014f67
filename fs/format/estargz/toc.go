package estargz

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"
	"path"
	"slices"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/fs/layout"
)

const (
	tocName            = "stargz.index.json"
	prefetchLandmark   = ".prefetch.landmark"
	noPrefetchLandmark = ".no.prefetch.landmark"

	maxDepth = 32      // nesting of the JSON
	maxEntry = 1 << 20 // bytes of one entry's JSON
)

// entry is one element of the table's "entries".
type entry struct {
	Name        string            `json:"name"`
	Type        string            `json:"type"`
	Size        int64             `json:"size"`
	ModTime     string            `json:"modtime"`
	LinkName    string            `json:"linkName"`
	Mode        int64             `json:"mode"`
	UID         int64             `json:"uid"`
	GID         int64             `json:"gid"`
	Offset      int64             `json:"offset"`
	InnerOffset int64             `json:"innerOffset"`
	DevMajor    int64             `json:"devMajor"`
	DevMinor    int64             `json:"devMinor"`
	Xattrs      map[string][]byte `json:"xattrs"`
	Digest      string            `json:"digest"`
	ChunkOffset int64             `json:"chunkOffset"`
	ChunkSize   int64             `json:"chunkSize"`
	ChunkDigest string            `json:"chunkDigest"`
}

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
	if h.Name != tocName {
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
	count := objectCounter{limit: limits.Entries + 1} // the table itself is one more
	if _, err := io.CopyBuffer(io.MultiWriter(h, &count), r, make([]byte, 64<<10)); err != nil {
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

// objectCounter counts the entries of a table. It refuses too many of them, entries that are too
// large to be kept while they are decoded, and nesting that no real table has.
type objectCounter struct {
	limit, objects, depth int
	inString, escaped     bool
	length                int // bytes since an entry began or ended
}

func (c *objectCounter) Write(p []byte) (int, error) {
	for _, b := range p {
		if b != ' ' && b != '\n' && b != '\t' && b != '\r' {
			if c.length++; c.length > maxEntry {
				return 0, fmt.Errorf("%w: an entry of more than %d bytes", layout.ErrInvalid, maxEntry)
			}
		}
		switch {
		case c.inString:
			if c.escaped {
				c.escaped = false
			} else if b == '\\' {
				c.escaped = true
			} else if b == '"' {
				c.inString = false
			}
		case b == '"':
			c.inString = true
		case b == '{' || b == '[':
			// Objects inside an entry (its extended attributes) are at depth 4.
			if b == '{' && c.depth < 3 {
				c.objects++
				c.length = 0
			}
			c.depth++
			if c.objects > c.limit {
				return 0, fmt.Errorf("%w: more than %d entries", layout.ErrInvalid, c.limit-1)
			}
			if c.depth > maxDepth {
				return 0, fmt.Errorf("%w: table nests deeper than %d", layout.ErrInvalid, maxDepth)
			}
		case b == '}' || b == ']':
			if c.depth--; c.depth <= 2 {
				c.length = 0
			}
		}
	}
	return len(p), nil
}

// parseTOC turns a packed table into a Layout.
func parseTOC(packed []byte, tocOff, blobSize int64, limits layout.Limits) (*layout.Layout, error) {
	r, err := openTOC(packed, limits)
	if err != nil {
		return nil, err
	}
	p := parser{b: layout.NewBuilder(limits), tocOff: tocOff, landmark: -1}
	if err := decodeEntries(r, p.add); err != nil {
		if errors.Is(err, layout.ErrInvalid) {
			return nil, err
		}
		return nil, fmt.Errorf("%w: decode table: %w", layout.ErrInvalid, err)
	}
	if err := p.finishFile(); err != nil {
		return nil, err
	}
	return p.finish(blobSize)
}

// decodeEntries calls add with each entry in turn; the entry is reused.
func decodeEntries(r io.Reader, add func(*entry) error) error {
	dec := jsontext.NewDecoder(r, jsontext.AllowInvalidUTF8(true), jsontext.AllowDuplicateNames(true))
	if t, err := dec.ReadToken(); err != nil {
		return err
	} else if t.Kind() != '{' {
		return fmt.Errorf("%w: table is not a JSON object", layout.ErrInvalid)
	}
	seen := false
	for dec.PeekKind() != '}' {
		name, err := dec.ReadToken()
		if err != nil {
			return err
		}
		switch name.String() {
		case "entries":
			if seen {
				return fmt.Errorf("%w: table has two lists of entries", layout.ErrInvalid)
			}
			seen = true
			if dec.PeekKind() == 'n' {
				if err := dec.SkipValue(); err != nil {
					return err
				}
				continue
			}
			if t, err := dec.ReadToken(); err != nil {
				return err
			} else if t.Kind() != '[' {
				return fmt.Errorf("%w: entries is not a list", layout.ErrInvalid)
			}
			var e entry
			for dec.PeekKind() != ']' {
				e = entry{}
				if err := json.UnmarshalDecode(dec, &e); err != nil {
					return err
				}
				if err := add(&e); err != nil {
					return err
				}
			}
			if _, err := dec.ReadToken(); err != nil {
				return err
			}
		case "version":
			var v int64
			if err := json.UnmarshalDecode(dec, &v); err != nil {
				return err
			}
			if v != 1 {
				return fmt.Errorf("%w: table of version %d", layout.ErrInvalid, v)
			}
		default:
			if err := dec.SkipValue(); err != nil {
				return err
			}
		}
	}
	_, err := dec.ReadToken()
	return err
}

// parser collects entries. The unit of an extent is known only when all offsets are, so until
// finish an extent's Unit is an index into offsets.
type parser struct {
	b        *layout.Builder
	tocOff   int64
	landmark int64 // prefetch what lies before it; -1 for nothing
	offsets  []int64

	// the regular file that chunks may still belong to
	file     uint32
	fileName string
	fileSize int64
	filled   int64
	open     bool
}

func (p *parser) add(e *entry) error {
	if e.Type == "chunk" {
		if !p.open || e.Name != p.fileName {
			return fmt.Errorf("%w: chunk of %.64q without its file", layout.ErrInvalid, e.Name)
		}
		return p.chunk(e, p.fileSize)
	}
	if err := p.finishFile(); err != nil {
		return err
	}
	switch path.Clean("/" + e.Name) {
	case "/" + tocName, "/" + noPrefetchLandmark, "/" + prefetchLandmark:
		if e.Type == "reg" && e.Size > 0 {
			if e.Offset < 0 || e.Offset >= p.tocOff {
				return p.badOffset(e)
			}
			p.offsets = append(p.offsets, e.Offset)
			if path.Base(e.Name) == prefetchLandmark {
				p.landmark = e.Offset
			}
		}
		return nil
	}
	in, err := inode(e)
	if err != nil {
		return err
	}
	if e.Type == "hardlink" {
		return p.b.Link(e.Name, e.LinkName, in)
	}
	handle, ok, err := p.b.Add(e.Name, in)
	if err != nil || !ok || !in.IsRegular() {
		return err
	}
	p.file, p.fileName, p.fileSize, p.filled, p.open = handle, e.Name, e.Size, 0, true
	if e.Size == 0 {
		return nil
	}
	return p.chunk(e, e.Size)
}

// finishFile checks that the file before is whole: this format has no holes.
func (p *parser) finishFile() error {
	if p.open && p.filled != p.fileSize {
		return fmt.Errorf("%w: %.64q has chunks for %d of %d bytes", layout.ErrInvalid, p.fileName, p.filled, p.fileSize)
	}
	p.open = false
	return nil
}

func (p *parser) badOffset(e *entry) error {
	return fmt.Errorf("%w: %.64q lies at %d, outside the blob's data of %d bytes", layout.ErrInvalid, e.Name, e.Offset, p.tocOff)
}

func (p *parser) chunk(e *entry, size int64) error {
	if e.Offset < 0 || e.Offset >= p.tocOff {
		return p.badOffset(e)
	}
	n := e.ChunkSize
	if e.ChunkOffset != p.filled {
		return fmt.Errorf("%w: chunk of %.64q at %d follows %d", layout.ErrInvalid, e.Name, e.ChunkOffset, p.filled)
	}
	if n == 0 {
		n = size - e.ChunkOffset
	}
	d := e.ChunkDigest
	if d == "" && n == size {
		d = e.Digest
	}
	sum, err := parseDigest(d)
	if err != nil {
		return fmt.Errorf("%w: chunk of %.64q at %d: %w", layout.ErrInvalid, e.Name, e.ChunkOffset, err)
	}
	if len(p.offsets) >= math.MaxUint32 {
		return fmt.Errorf("%w: too many chunks", layout.ErrInvalid)
	}
	p.offsets = append(p.offsets, e.Offset)
	p.filled += n
	return p.b.AddExtent(p.file, layout.Extent{
		FileOff: e.ChunkOffset, Len: n, Unit: uint32(len(p.offsets) - 1), Inner: e.InnerOffset, Digest: sum,
	})
}

func parseDigest(s string) (sum [32]byte, err error) {
	d, err := digest.Parse(s)
	if err != nil {
		return sum, fmt.Errorf("digest %.80q: %w", s, err)
	}
	if d.Algorithm() != digest.SHA256 {
		return sum, fmt.Errorf("digest by %s", d.Algorithm())
	}
	hex := d.Encoded()
	for i := range sum {
		sum[i] = unhex(hex[2*i])<<4 | unhex(hex[2*i+1])
	}
	return sum, nil
}

func unhex(c byte) byte {
	if c >= 'a' {
		return c - 'a' + 10
	}
	return c - '0'
}

// finish makes the units: from each offset to the next, and the blob's ends.
func (p *parser) finish(blobSize int64) (*layout.Layout, error) {
	starts := append(slices.Clone(p.offsets), 0, p.tocOff)
	slices.Sort(starts)
	starts = slices.Compact(starts)
	units := make([]layout.Unit, len(starts))
	for i, off := range starts {
		end := blobSize
		if i+1 < len(starts) {
			end = starts[i+1]
		}
		units[i] = layout.Unit{Off: off, Len: end - off}
	}
	l, err := p.b.Finish(layout.Gzip, units, func(i uint32) uint32 {
		unit, _ := slices.BinarySearch(starts, p.offsets[i])
		return uint32(unit)
	})
	if err != nil {
		return nil, err
	}
	for i, u := range units {
		if u.Off < p.landmark {
			l.Prefetch = append(l.Prefetch, uint32(i))
		}
	}
	return l, nil
}

func inode(e *entry) (layout.Inode, error) {
	in := layout.Inode{Mode: uint32(e.Mode) & 0o7777}
	if e.UID < 0 || e.UID > math.MaxUint32 || e.GID < 0 || e.GID > math.MaxUint32 {
		return in, fmt.Errorf("%w: owner %d:%d of %.64q", layout.ErrInvalid, e.UID, e.GID, e.Name)
	}
	in.UID, in.GID = uint32(e.UID), uint32(e.GID)
	if e.ModTime != "" {
		t, err := time.Parse(time.RFC3339, e.ModTime)
		if err != nil {
			return in, fmt.Errorf("%w: time of %.64q: %w", layout.ErrInvalid, e.Name, err)
		}
		in.MtimeSec, in.MtimeNsec = t.Unix(), uint32(t.Nanosecond())
	}
	for name, value := range e.Xattrs {
		in.Xattrs = append(in.Xattrs, layout.Xattr{Name: name, Value: value})
	}
	switch e.Type {
	case "dir":
		in.Mode |= unix.S_IFDIR
	case "reg":
		in.Mode |= unix.S_IFREG
		in.Size = e.Size
	case "hardlink": // has the type of what it names
	case "symlink":
		in.Mode |= unix.S_IFLNK
		in.Target = e.LinkName
	case "char", "block":
		if e.DevMajor < 0 || e.DevMinor < 0 || e.DevMajor > math.MaxUint32 || e.DevMinor > math.MaxUint32 {
			return in, fmt.Errorf("%w: device %d:%d of %.64q", layout.ErrInvalid, e.DevMajor, e.DevMinor, e.Name)
		}
		in.Major, in.Minor = uint32(e.DevMajor), uint32(e.DevMinor)
		in.Mode |= unix.S_IFCHR
		if e.Type == "block" {
			in.Mode = in.Mode&0o7777 | unix.S_IFBLK
		}
	case "fifo":
		in.Mode |= unix.S_IFIFO
	default:
		return in, fmt.Errorf("%w: %.64q is of type %.32q", layout.ErrInvalid, e.Name, e.Type)
	}
	return in, nil
}
