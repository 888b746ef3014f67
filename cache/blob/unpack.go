package blob

import (
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

// Unpack decodes a unit of any codec but Spans. It returns the first need bytes, and the rest if that is not too much to be kept.
// All of the plain bytes go to also, if that is not nil.
func Unpack(codec Codec, packed io.Reader, need int64, also io.Writer) (u Unpacked, err error) {
	u = Unpacked{Plain: make([]byte, need), Whole: true}
	err = Decode(codec, packed, func(r io.Reader) error {
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
		if u.Rest, err = io.ReadAll(io.LimitReader(r, MaxRest+1)); err != nil {
			return err
		}
		if len(u.Rest) > MaxRest {
			// What follows is in no extent: a reader has no use for it, and it may be a thousand times what came.
			u.Whole, u.Rest = false, nil
			if also == nil {
				return nil
			}
			n, err := io.Copy(io.Discard, io.LimitReader(r, maxBehind))
			if err == nil && n == maxBehind {
				err = fmt.Errorf("more than %d bytes behind its last extent", int64(maxBehind))
			}
			return err
		}
		return nil
	})
	return u, err
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
	return Unpacked{Plain: plain[:need], Rest: plain[need:], Whole: true}, err
}
