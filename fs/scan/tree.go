package scan

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"math"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/fs/index"
	"github.com/remora-storage/remora/fs/layout"
)

// tree turns an archive into inodes and extents while it is decoded.
//
// archive/tar reads the headers. It skips a file's data by seeking, and what it skips is taken here: so
// each byte of data is seen where the decoder put it, and copied once, into the image.
type tree struct {
	o   Options
	b   *layout.Builder
	w   *index.Writer
	at  int64 // where the next file's data goes
	sum *extentSum

	in    plain
	file  *file // whose data comes now; nil for none
	whole bool  // there is a unit in which offsets cannot be written down

	indexed int64 // bytes of memory that w takes and b has counted
}

// file is a regular file whose data is read.
type file struct {
	handle uint32
	kept   bool         // the builder has it
	data   int64        // where it lies in the image
	parts  []index.Part // what is left to come
	done   int64        // bytes of parts[0] that came

	unit   uint32
	inner  int64 // of the open extent in its unit
	off    int64 // of the open extent in the file
	length int64 // of the open extent so far; 0 if none is open
}

// plain reads chunks, and knows where it is.
type plain struct {
	out      *chunks
	one      *chunk
	rest     []byte
	pos      int64 // plain bytes read
	unit     uint32
	unitFrom int64
	err      error
	raw      []byte // what archive/tar has read of the headers since the last entry
}

// fill has at least a byte in rest.
func (p *plain) fill() error {
	for len(p.rest) == 0 {
		p.release()
		select {
		case one, ok := <-p.out.toTree:
			if !ok {
				return io.EOF
			}
			p.one, p.rest = one, one.plain
		case <-p.out.ctx.Done():
			return p.out.ctx.Err()
		}
	}
	return nil
}

// keep keeps what was read of headers, which begin on a block: what comes before that fills the last
// block of data.
func (p *plain) keep(b []byte) {
	if from := p.pos - int64(len(b)); len(p.raw) == 0 && from%blockSize != 0 {
		b = b[min(int64(len(b)), blockSize-from%blockSize):]
	}
	if len(p.raw) < maxRaw {
		p.raw = append(p.raw, b...)
	}
}

// release gives a chunk back that was read.
func (p *plain) release() {
	if p.one != nil {
		p.out.done(p.one)
		p.one = nil
	}
}

// take returns up to n bytes, none behind the next cut.
func (p *plain) take(n int64) ([]byte, error) {
	if err := p.fill(); err != nil {
		return nil, err
	}
	for len(p.one.cuts) > 0 && p.one.cuts[0] <= p.pos {
		p.unit, p.unitFrom = p.unit+1, p.one.cuts[0]
		p.one.cuts = p.one.cuts[1:]
	}
	n = min(n, int64(len(p.rest)))
	if len(p.one.cuts) > 0 {
		n = min(n, p.one.cuts[0]-p.pos)
	}
	b := p.rest[:n]
	p.rest = p.rest[n:]
	p.pos += n
	return b, nil
}

// read reads the archive, and then what lies behind it.
func (t *tree) read(out *chunks) error {
	t.in.out = out
	defer t.in.release()
	if err := t.entries(); err != nil {
		return err
	}
	for { // containerd reads to the end, too
		if _, err := t.in.take(math.MaxInt64); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
	}
}

func (t *tree) entries() error {
	r := tar.NewReader(t)
	for n := 0; ; n++ {
		t.in.raw = t.in.raw[:0]
		h, err := r.Next()
		if err == io.EOF {
			return t.closeFile()
		}
		if err != nil {
			return t.blame(err)
		}
		if n >= t.o.Limits.Entries {
			return fmt.Errorf("%w: more than %d entries", layout.ErrBeyond, t.o.Limits.Entries)
		}
		if err := t.closeFile(); err != nil {
			return err
		}
		if err := t.add(h); err != nil {
			return err
		}
	}
}

// blame tells the archive's fault from others.
func (t *tree) blame(err error) error {
	if t.in.err != nil {
		return t.in.err
	}
	if errors.Is(err, layout.ErrInvalid) {
		return err
	}
	return fmt.Errorf("%w: tar: %w", layout.ErrInvalid, err)
}

const maxRaw = 4 << 20 // more than archive/tar reads of one entry's headers

// Read implements io.Reader for archive/tar, which reads headers by it, and the last byte of what it
// skips.
func (t *tree) Read(p []byte) (int, error) {
	if t.file != nil && len(t.file.parts) > 0 {
		b, err := t.data(int64(len(p)))
		return copy(p, b), err
	}
	b, err := t.in.take(int64(len(p)))
	if err != nil {
		if err != io.EOF {
			t.in.err = err
		}
		return 0, err
	}
	t.in.keep(b)
	return copy(p, b), nil
}

// Seek implements io.Seeker for archive/tar, which skips data by it.
func (t *tree) Seek(n int64, whence int) (int64, error) {
	if whence != io.SeekCurrent || n < 0 {
		return 0, errors.New("archive/tar seeks in a way that is not known here")
	}
	for n > 0 {
		var b []byte
		var err error
		if t.file != nil && len(t.file.parts) > 0 {
			b, err = t.data(n)
		} else if b, err = t.in.take(n); err != nil && err != io.EOF {
			t.in.err = err
		}
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return t.in.pos, err
		}
		n -= int64(len(b))
	}
	return t.in.pos, nil
}

// add adds an entry, whose data comes next.
func (t *tree) add(h *tar.Header) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	e, err := t.entry(h)
	if err != nil {
		return err
	}
	handle, kept, err := e.Place(t.b)
	if err != nil {
		return err
	}
	t.w.Add(e, kept)
	size := t.w.Size()
	if err := t.b.Take(size - t.indexed); err != nil {
		return err
	}
	t.indexed = size
	if len(e.Parts) == 0 {
		return nil
	}
	t.file = &file{handle: handle, kept: kept, data: t.at, parts: e.Parts}
	if kept && t.o.DataStart > 0 {
		t.at += (e.Inode.Size + alignment - 1) / alignment * alignment
	}
	return nil
}

func (t *tree) entry(h *tar.Header) (*index.Entry, error) {
	in, err := inode(h)
	e := &index.Entry{Name: h.Name, Inode: in, Pos: t.in.pos}
	switch {
	case err != nil:
		return nil, err
	case h.Typeflag == tar.TypeLink:
		if e.Link = h.Linkname; e.Link == "" {
			return nil, fmt.Errorf("%w: hard link %.64q to nothing", layout.ErrInvalid, h.Name)
		}
	case in.IsRegular():
		if e.Parts, err = parts(h, t.in.raw); err != nil {
			return nil, err
		}
		if in.Size > math.MaxInt64-t.at-alignment {
			return nil, fmt.Errorf("%w: %.64q of %d bytes", layout.ErrInvalid, h.Name, in.Size)
		}
		if in.Size > 0 && t.o.DataStart > 0 {
			e.Inode.Data = t.at
		}
	}
	return e, nil
}

// data takes up to n bytes of the open file's data: digests them and writes them.
func (t *tree) data(n int64) ([]byte, error) {
	f := t.file
	part := f.parts[0]
	n = min(n, part.Len-f.done)
	if f.length > 0 {
		n = min(n, index.MaxExtent-f.length)
	}
	n = min(n, index.MaxExtent)
	unit := t.in.unit
	b, err := t.in.take(n)
	if err != nil {
		if err != io.EOF {
			t.in.err = err
		}
		return nil, err
	}
	if !f.kept {
		f.advance(int64(len(b)))
		return b, nil
	}
	if f.length > 0 && t.in.unit != unit {
		if err := t.closeExtent(); err != nil {
			return nil, t.fail(err)
		}
	}
	off := part.Off + f.done
	if f.length == 0 {
		f.unit, f.inner, f.off = t.in.unit, t.in.pos-int64(len(b))-t.in.unitFrom, off
	}
	t.sum.write(b)
	f.length += int64(len(b))
	if t.o.Data != nil {
		if _, err := t.o.Data.WriteAt(b, f.data+off); err != nil {
			return nil, t.fail(err)
		}
	}
	f.advance(int64(len(b)))
	if f.length == index.MaxExtent || f.done == 0 {
		return b, t.fail(t.closeExtent())
	}
	return b, nil
}

// fail keeps an error that archive/tar would wrap.
func (t *tree) fail(err error) error {
	if err != nil {
		t.in.err = err
	}
	return err
}

// advance notes that bytes of the first part came. done is 0 then if that was the last of it.
func (f *file) advance(n int64) {
	if f.done += n; f.done == f.parts[0].Len {
		f.parts, f.done = f.parts[1:], 0
	}
}

// closeExtent ends the open extent.
func (t *tree) closeExtent() error {
	f := t.file
	if f.length == 0 {
		return nil
	}
	e := layout.Extent{FileOff: f.off, Len: f.length, Unit: f.unit, Inner: f.inner, Digest: t.sum.end()}
	t.w.Digest(e.Digest)
	f.length = 0
	if t.whole = t.whole || !fits(e.Inner); t.whole {
		e.Inner = 0
	}
	return t.b.AddExtent(f.handle, e)
}

// closeFile ends the open file, all of whose data has come.
func (t *tree) closeFile() error {
	if t.file == nil {
		return nil
	}
	if len(t.file.parts) > 0 {
		return fmt.Errorf("%w: a file's data is missing", layout.ErrInvalid)
	}
	err := t.closeExtent()
	t.file = nil
	return err
}

const paxXattr = "SCHILY.xattr."

// inode returns an entry's inode as containerd makes it.
func inode(h *tar.Header) (layout.Inode, error) {
	in := layout.Inode{Mode: uint32(h.Mode) & 0o7777}
	if h.Uid < 0 || h.Uid > math.MaxUint32 || h.Gid < 0 || h.Gid > math.MaxUint32 {
		return in, fmt.Errorf("%w: owner %d:%d of %.64q", layout.ErrInvalid, h.Uid, h.Gid, h.Name)
	}
	in.UID, in.GID = uint32(h.Uid), uint32(h.Gid)
	in.MtimeSec, in.MtimeNsec = mtime(h.ModTime)
	for key, value := range h.PAXRecords {
		if name, ok := strings.CutPrefix(key, paxXattr); ok && settable(name, h.Typeflag) {
			in.Xattrs = append(in.Xattrs, layout.Xattr{Name: name, Value: []byte(value)})
		}
	}
	switch h.Typeflag {
	case tar.TypeDir:
		in.Mode |= unix.S_IFDIR
	case tar.TypeReg, tar.TypeGNUSparse, '\x00':
		in.Mode |= unix.S_IFREG
		in.Size = h.Size
	case tar.TypeLink: // has the type of what it names
	case tar.TypeSymlink:
		in.Mode |= unix.S_IFLNK
		in.Target = h.Linkname
	case tar.TypeChar, tar.TypeBlock:
		if h.Devmajor < 0 || h.Devminor < 0 || h.Devmajor > math.MaxUint32 || h.Devminor > math.MaxUint32 {
			return in, fmt.Errorf("%w: device %d:%d of %.64q", layout.ErrInvalid, h.Devmajor, h.Devminor, h.Name)
		}
		in.Major, in.Minor = uint32(h.Devmajor), uint32(h.Devminor)
		if in.Mode |= unix.S_IFCHR; h.Typeflag == tar.TypeBlock {
			in.Mode = in.Mode&0o7777 | unix.S_IFBLK
		}
	case tar.TypeFifo:
		in.Mode |= unix.S_IFIFO
	default:
		return in, fmt.Errorf("%w: %.64q is of type %q", layout.ErrInvalid, path.Clean(h.Name), h.Typeflag)
	}
	if in.IsSymlink() {
		in.Mode |= 0o777 // the kernel gives every symbolic link these
	}
	return in, nil
}

// settable reports whether an attribute can be set on a file of a type: those of users are on regular
// files and directories alone, and containerd ignores the others.
func settable(name string, typeflag byte) bool {
	if !strings.HasPrefix(name, "user.") {
		return true
	}
	switch typeflag {
	case tar.TypeReg, tar.TypeDir, tar.TypeGNUSparse, tar.TypeLink, '\x00':
		return true
	}
	return false
}

// latest is the last time that containerd sets; others become the epoch.
var latest = time.Unix(0, math.MaxInt64)

func mtime(t time.Time) (sec int64, nsec uint32) {
	if t.Before(time.Unix(0, 0)) || t.After(latest) {
		return 0, 0
	}
	return t.Unix(), uint32(t.Nanosecond())
}
