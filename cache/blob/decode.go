package blob

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// ErrBytes marks bytes from a source that are not what their digest or format says. Another
// source may have the right ones.
var ErrBytes = errors.New("wrong bytes")

type decoder struct {
	in *bufio.Reader
	gz gzip.Reader
}

var decoders = sync.Pool{New: func() any { return &decoder{in: bufio.NewReaderSize(nil, 64<<10)} }}

// Decode calls use with a reader of the plain bytes of the packed ones that r holds. The decoder takes window bytes of memory, as
// Window returns them; 0 for the most that there is.
func Decode(codec Codec, r io.Reader, window int64, use func(io.Reader) error) error {
	if codec == Plain {
		in := &sourceErrors{r: r}
		err := use(in)
		if in.err != nil {
			return &SourceError{in.err}
		}
		return err
	}
	if codec == Zstd {
		return decodeZstd(r, window, use)
	}
	if codec != Gzip {
		return fmt.Errorf("codec %d is not known", codec)
	}
	d := decoders.Get().(*decoder)
	defer decoders.Put(d)
	in := &sourceErrors{r: r}
	d.in.Reset(in)
	err := d.gz.Reset(d.in)
	if err == nil {
		err = use(&d.gz)
	}
	d.in.Reset(nil)
	if in.err != nil {
		return &SourceError{in.err} // what the decoder made of that does not matter
	}
	return err
}

// maxWindow is what a frame may ask for to be decoded, in bytes. Frames of whole files do not need
// it, and what --ultra makes of a tar is not read here.
const maxWindow = 32 << 20

// ErrWindow marks units that cannot be decoded in the window that their first bytes ask for. They may be in a larger one.
var ErrWindow = errors.New("a later frame has a larger window")

// zstdDecoders are kept by the window that they are for. One that has the largest is not kept: it would keep the window, too.
var zstdDecoders [len(windows) - 1]sync.Pool

func zstdDecoder(class int) (d *zstd.Decoder, done func()) {
	kept := class < len(zstdDecoders)
	if kept {
		if d, ok := zstdDecoders[class].Get().(*zstd.Decoder); ok {
			return d, func() { zstdDecoders[class].Put(d) }
		}
	}
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(uint64(windows[class])))
	if err != nil {
		panic(err) // the options are right
	}
	if kept {
		return d, func() { zstdDecoders[class].Put(d) }
	}
	return d, d.Close
}

// decodeZstd decodes one frame or several.
func decodeZstd(r io.Reader, window int64, use func(io.Reader) error) error {
	last := len(windows) - 1
	size := last
	if window > 0 {
		size = class(window - besidesWindow)
	}
	d, done := zstdDecoder(size)
	defer done()
	in := &sourceErrors{r: r}
	err := d.Reset(in)
	if err == nil {
		err = use(d)
	}
	_ = d.Reset(nil) // lets go of in
	if in.err != nil {
		return &SourceError{in.err}
	}
	if size < last && (errors.Is(err, zstd.ErrWindowSizeExceeded) || errors.Is(err, zstd.ErrDecoderSizeExceeded)) {
		return fmt.Errorf("%w: %w", ErrWindow, err)
	}
	return err
}

// A SourceError is the error of the reader that supplied packed bytes, as opposed to bytes that
// cannot be decoded.
type SourceError struct{ Err error }

func (e *SourceError) Error() string { return e.Err.Error() }

func (e *SourceError) Unwrap() error { return e.Err }

// sourceErrors remembers how its reader failed.
type sourceErrors struct {
	r   io.Reader
	err error
}

func (s *sourceErrors) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}
