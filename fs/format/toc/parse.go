package toc

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/cache/blob"
	"github.com/remora-storage/remora/fs/layout"
)

const (
	// Name is what eStargz calls the table in the layer's tar.
	Name = "stargz.index.json"

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
	ChunkType   string            `json:"chunkType"` // "zeros" is a hole
}

// Options say what the caller knows of a table.
type Options struct {
	DataEnd  int64 // where the blob's data ends, in bytes
	BlobSize int64
	Codec    blob.Codec
	Limits   layout.Limits // with defaults filled in
	Version  int64         // the highest that is read
	// Landmarks takes the entries that eStargz adds to a layer for what they mean, and hides them.
	Landmarks bool
}

// Parse turns a table into a Layout. Errors wrap layout.ErrInvalid, unless ctx has ended or o.Limits.Grow failed.
func Parse(ctx context.Context, r io.Reader, o Options) (*layout.Layout, error) {
	p := parser{o: o, b: layout.NewBuilder(o.Limits), landmark: -1}
	var refused error // by add: its own words, whatever kind it is of
	if err := decodeEntries(r, o.Version, func(e *entry) error {
		if refused = context.Cause(ctx); refused == nil {
			refused = p.add(e)
		}
		return refused
	}); err != nil {
		if refused != nil {
			return nil, refused
		}
		if errors.Is(err, layout.ErrInvalid) {
			return nil, err
		}
		return nil, fmt.Errorf("%w: decode table: %w", layout.ErrInvalid, err)
	}
	if err := p.finishFile(); err != nil {
		return nil, err
	}
	return p.finish()
}

// decodeEntries calls add with each entry in turn; the entry is reused.
func decodeEntries(r io.Reader, newest int64, add func(*entry) error) error {
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
			if v < 1 || v > newest {
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
	o        Options
	b        *layout.Builder
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
	switch name := path.Clean("/" + e.Name); {
	case !p.o.Landmarks:
	case name == "/"+Name, name == "/"+noPrefetchLandmark, name == "/"+prefetchLandmark:
		if e.Type == "reg" && e.Size > 0 {
			if e.Offset < 0 || e.Offset >= p.o.DataEnd {
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

// finishFile checks that the file before is whole: what is a hole is said to be one.
func (p *parser) finishFile() error {
	if p.open && p.filled != p.fileSize {
		return fmt.Errorf("%w: %.64q has chunks for %d of %d bytes", layout.ErrInvalid, p.fileName, p.filled, p.fileSize)
	}
	p.open = false
	return nil
}

func (p *parser) badOffset(e *entry) error {
	return fmt.Errorf("%w: %.64q lies at %d, outside the blob's data of %d bytes", layout.ErrInvalid, e.Name, e.Offset, p.o.DataEnd)
}

func (p *parser) chunk(e *entry, size int64) error {
	if e.ChunkType == "zeros" {
		n := e.ChunkSize
		if n == 0 {
			n = size - e.ChunkOffset
		}
		if e.ChunkOffset != p.filled || n <= 0 || n > size-p.filled {
			return fmt.Errorf("%w: hole of %.64q at %d+%d follows %d", layout.ErrInvalid, e.Name, e.ChunkOffset, n, p.filled)
		}
		p.filled += n
		return nil
	}
	if e.Offset < 0 || e.Offset >= p.o.DataEnd {
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
	// By hand: go-digest takes a regular expression for it, and there is one an extent.
	text, ok := strings.CutPrefix(s, "sha256:")
	if ok && len(text) == 2*len(sum) && strings.ToLower(text) == text {
		if n, err := hex.Decode(sum[:], []byte(text)); err == nil && n == len(sum) {
			return sum, nil
		}
	}
	return sum, fmt.Errorf("digest %.80q is not sha256 in hexadecimal", s)
}

// finish makes the units: from each offset to the next, and the blob's ends.
func (p *parser) finish() (*layout.Layout, error) {
	starts := append(slices.Clone(p.offsets), 0, p.o.DataEnd)
	slices.Sort(starts)
	starts = slices.Compact(starts)
	if err := p.b.TakeUnits(len(starts)); err != nil {
		return nil, err
	}
	units := make([]blob.Unit, len(starts))
	for i, off := range starts {
		end := p.o.BlobSize
		if i+1 < len(starts) {
			end = starts[i+1]
		}
		units[i] = blob.Unit{Off: off, Len: end - off}
	}
	l, err := p.b.Finish(p.o.Codec, units, func(i uint32) uint32 {
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
