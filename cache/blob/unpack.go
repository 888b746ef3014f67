package blob

import (
	"bytes"
	"fmt"
	"io"

	"github.com/remora-storage/remora/cache/inflate"
)

// MaxRest is how many bytes behind its last extent a unit may have that are kept in memory.
const MaxRest = 16 << 20

// maxBehind is how many bytes a unit has at most behind its last extent: more than an archive's largest run of headers.
const maxBehind = 4 << 30

// Unpacked is what a unit holds.
type Unpacked struct {
	Plain []byte // its first bytes, as many as were needed
	Rest  []byte // what follows them, if Whole
	Whole bool   // what follows is not too much to be kept
}

// Unpack decodes a unit of any codec but Spans. It returns the first need bytes, and the rest if that is not too much to be kept
// and there is room for it. All of the plain bytes go to also, if that is not nil.
func Unpack(codec Codec, packed io.Reader, need int64, also io.Writer, room Room) (u Unpacked, err error) {
	u = Unpacked{Plain: make([]byte, need), Whole: true}
	err = Decode(codec, packed, room.Window, func(r io.Reader) error {
		if _, err := io.ReadFull(r, u.Plain); err != nil {
			return err
		}
		var err error
		if also != nil {
			if _, err := also.Write(u.Plain); err != nil {
				return err
			}
			r = io.TeeReader(r, also)
		}
		if u.Rest, u.Whole, err = readRest(r, &room); err != nil || u.Whole || also == nil {
			// What follows is in no extent: a reader has no use for it, and it may be a thousand times what came.
			return err
		}
		n, err := io.Copy(io.Discard, io.LimitReader(r, maxBehind))
		if err == nil && n == maxBehind {
			err = fmt.Errorf("more than %d bytes behind its last extent", int64(maxBehind))
		}
		return err
	})
	return u, err
}

// FreeRest is how many bytes behind a unit's last extent are kept without asking: more than most units have.
const FreeRest = 16 << 10

// readRest reads up to r's end, unless there is more than MaxRest or no room for it.
func readRest(r io.Reader, room *Room) (rest []byte, whole bool, err error) {
	buf := make([]byte, 512)
	for n := 0; n <= MaxRest; {
		if n == len(buf) {
			size := min(2*len(buf), MaxRest+1)
			if size > FreeRest && !room.more(int64(size)) {
				return nil, false, nil
			}
			buf = append(make([]byte, 0, size), buf...)[:size]
		}
		k, err := r.Read(buf[n:])
		n += k
		if err == io.EOF && n <= MaxRest {
			return buf[:n:n], true, nil
		}
		if err != nil && err != io.EOF {
			return nil, false, err
		}
	}
	return nil, false, nil
}

// UnpackSpan decodes a unit of codec Spans: size packed bytes that begin at a point and hold n plain ones. It is otherwise as
// Unpack.
func UnpackSpan(at inflate.Point, n int, packed io.Reader, size, need int64, also io.Writer) (u Unpacked, err error) {
	p := make([]byte, size)
	if _, err := io.ReadFull(packed, p); err != nil {
		return u, &SourceError{err}
	}
	plain, err := at.Inflate(p, n)
	if err != nil {
		return u, err
	}
	if int64(len(plain)) < need {
		return u, io.ErrUnexpectedEOF
	}
	if also != nil {
		_, err = also.Write(plain)
	}
	u = Unpacked{Plain: plain[:need], Rest: plain[need:], Whole: true}
	if need < int64(len(plain)/2) { // those that keep what was needed do not keep the rest
		u.Plain = bytes.Clone(u.Plain)
	}
	return u, err
}
