package scan

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"

	"github.com/remora-storage/remora/cache/blob"
	"github.com/remora-storage/remora/cache/inflate"
	"github.com/remora-storage/remora/fs/layout"
)

// What the points of a gzip file take of memory, in bytes.
const (
	freePoints = 1 << 20 // in all that who calls Scan allows for
	pointCost  = 128     // of one, and its window's
)

// decodeGzip decodes a gzip file, and returns the points at which that can begin again.
func decodeGzip(in *pieces, out *chunks, span int64, limits *layout.Limits) ([]inflate.Point, error) {
	s := inflate.NewStream(span)
	var one piece
	var buf []byte
	taken := layout.NewAccount(limits, freePoints)
	told := 1 // points that were handed on; the first is the start
	hand := func(buf, plain []byte) error {
		var cuts []cut
		for i, p := range s.Points()[told:] {
			cuts = append(cuts, cut{p.Plain, p.Off})
			// Which bytes of its window a point needs shows behind it; those of the point before are known.
			if err := taken.Take(pointCost + int64(len(s.Points()[told+i-1].Window))); err != nil {
				return err
			}
		}
		told = len(s.Points())
		return out.send(buf, plain, cuts)
	}
	for {
		st, err := s.Run()
		if err != nil {
			return nil, fmt.Errorf("%w: %w", layout.ErrInvalid, err)
		}
		switch st {
		case inflate.NeedInput:
			next, err := in.next()
			if err != nil {
				return nil, err
			}
			s.Feed(next.buf, inflate.Headroom, next.last)
			if one.buf != nil {
				in.put(one)
			}
			one = next
		case inflate.NeedOutput:
			next, err := out.take()
			if err != nil {
				return nil, err
			}
			// The window is copied before the old buffer is handed on, whose plain bytes stay as they are.
			chunk, old := s.Chunk(), buf
			s.Output(next)
			buf = next
			if old != nil {
				if err := hand(old, chunk); err != nil {
					return nil, err
				}
			}
		case inflate.Done:
			if buf != nil {
				if err := hand(buf, s.Chunk()); err != nil {
					return nil, err
				}
			}
			s.Finish()
			return s.Points(), nil
		}
	}
}

// decodePlain hands plain bytes on, with a cut each span bytes.
func decodePlain(in *pieces, out *chunks, span int64) error {
	r := &piecesReader{p: in}
	for {
		buf, err := out.take()
		if err != nil {
			return err
		}
		var cuts []cut
		if out.size > 0 && out.size%span == 0 {
			cuts = []cut{{out.size, out.size}}
		}
		n, err := io.ReadFull(r, buf[:min(chunkSize, span-out.size%span)])
		if err == io.EOF {
			return nil // a cut at the very end is none
		}
		if err != nil && err != io.ErrUnexpectedEOF {
			return err
		}
		if err := out.send(buf, buf[:n], cuts); err != nil {
			return err
		}
	}
}

// maxWindow is what a zstd frame may ask for to be decoded, in bytes: what --ultra --long makes.
const maxWindow = 128 << 20

// usualWindow is what the levels up to 19 ask for. Who calls Scan allows for it.
const usualWindow = 8 << 20

// decodeZstd decodes frame by frame, with a cut between two frames once span bytes have come.
func decodeZstd(in *pieces, out *chunks, span int64, limits *layout.Limits) error {
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
	if err != nil {
		return err
	}
	defer dec.Close()
	f := &frames{r: bufio.NewReaderSize(&piecesReader{p: in}, 64<<10)}
	var buf []byte
	n := 0
	var cuts []cut
	asked := int64(usualWindow)
	send := func() error {
		err := out.send(buf, buf[:n], cuts)
		buf, n, cuts = nil, 0, nil
		return err
	}
	for {
		if err := f.next(); err == io.EOF {
			break
		} else if err != nil {
			return err
		}
		if at := out.size + int64(n); at-lastCut(out, cuts).plain >= span {
			cuts = append(cuts, cut{at, f.start})
		}
		if f.skippable {
			if _, err := io.Copy(io.Discard, f); err != nil {
				return err
			}
			continue
		}
		if f.window > asked {
			if err := limits.Ask(f.window - asked); err != nil {
				return err
			}
			asked = f.window
		}
		if err := dec.Reset(f); err != nil {
			return badZstd(f, err)
		}
		for {
			if buf == nil {
				if buf, err = out.take(); err != nil {
					return err
				}
			}
			k, err := dec.Read(buf[n:chunkSize])
			if n += k; n == chunkSize {
				if err := send(); err != nil {
					return err
				}
			}
			if err == io.EOF {
				break
			}
			if err != nil {
				return badZstd(f, err)
			}
		}
		if _, err := io.Copy(io.Discard, f); err != nil { // the decoder has no use for the rest
			return err
		}
	}
	if out.size == 0 && n == 0 && f.start == 0 {
		return fmt.Errorf("%w: no zstd frame", layout.ErrInvalid)
	}
	if buf == nil {
		return nil
	}
	// A cut at the very end is none.
	for len(cuts) > 0 && cuts[len(cuts)-1].plain == out.size+int64(n) {
		cuts = cuts[:len(cuts)-1]
	}
	return send()
}

func lastCut(out *chunks, cuts []cut) cut {
	if len(cuts) > 0 {
		return cuts[len(cuts)-1]
	}
	return out.all[len(out.all)-1]
}

// badZstd tells the fault of the layer from that of whoever reads it.
func badZstd(f *frames, err error) error {
	if f.err != nil {
		return f.err
	}
	return fmt.Errorf("%w: zstd: %w", layout.ErrInvalid, err)
}

// frames reads a zstd file a frame at a time (RFC 8878, section 3.1): Read ends where a frame does. It
// looks at the headers of frames and blocks alone.
type frames struct {
	r         *bufio.Reader
	at        int64 // packed bytes read
	start     int64 // of this frame
	skippable bool
	left      int64 // bytes of what is known to follow: a header, a block, a checksum
	lastBlock bool
	checksum  bool
	window    int64 // that the frame asks for
	over      bool
	err       error // of the reader
}

const (
	zstdMagic     = 0xfd2fb528
	skippable     = 0x184d2a50
	skippableMask = 0xfffffff0
)

// next begins the next frame. io.EOF says that there is none.
func (f *frames) next() error {
	f.start = f.at
	head, err := f.r.Peek(18)
	if len(head) == 0 && err == io.EOF {
		return io.EOF
	}
	if err != nil && err != io.EOF {
		return err
	}
	*f = frames{r: f.r, at: f.at, start: f.start}
	if len(head) >= 8 && binary.LittleEndian.Uint32(head)&skippableMask == skippable {
		f.skippable, f.lastBlock = true, true
		f.left = 8 + int64(binary.LittleEndian.Uint32(head[4:]))
		return nil
	}
	if len(head) < 6 || binary.LittleEndian.Uint32(head) != zstdMagic {
		return fmt.Errorf("%w: no zstd frame at %d", layout.ErrInvalid, f.at)
	}
	d := head[4]
	n := int64(5)
	if d&(1<<5) == 0 {
		n++ // window
	}
	window, err := blob.FrameWindow(head)
	if err != nil {
		return fmt.Errorf("%w: zstd frame at %d: %w", layout.ErrInvalid, f.at, err)
	}
	if window <= maxWindow { // else the decoder refuses it
		f.window = window
	}
	n += [4]int64{0, 1, 2, 4}[d&3]
	switch d >> 6 {
	case 0:
		n += int64(d >> 5 & 1)
	case 1:
		n += 2
	case 2:
		n += 4
	case 3:
		n += 8
	}
	f.checksum = d&(1<<2) != 0
	f.left = n
	return nil
}

// Read implements io.Reader.
func (f *frames) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for f.left == 0 {
		switch {
		case f.over:
			return 0, io.EOF
		case f.lastBlock:
			f.over = true
			if f.checksum && !f.skippable {
				f.left = 4
			}
		default:
			head, err := f.r.Peek(3)
			if err != nil {
				return 0, f.fail(err)
			}
			h := uint32(head[0]) | uint32(head[1])<<8 | uint32(head[2])<<16
			f.lastBlock = h&1 != 0
			size := int64(h >> 3)
			switch h >> 1 & 3 {
			case 1:
				size = 1 // one byte, repeated
			case 3:
				return 0, fmt.Errorf("%w: zstd block of a reserved type at %d", layout.ErrInvalid, f.at)
			}
			f.left = 3 + size
		}
	}
	n, err := f.r.Read(p[:min(int64(len(p)), f.left)])
	f.left -= int64(n)
	f.at += int64(n)
	if n > 0 {
		return n, nil
	}
	return n, f.fail(err)
}

// fail tells a file that is cut short from a reader that fails.
func (f *frames) fail(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: zstd frame is cut short at %d", layout.ErrInvalid, f.at)
	}
	f.err = err
	return err
}
