package blob_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/zstd"

	"github.com/remora-storage/remora/cache/blob"
)

// pack packs p as a unit of a codec.
func pack(t *testing.T, codec blob.Codec, p []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := io.WriteCloser(nil)
	switch codec {
	case blob.Plain:
		return p
	case blob.Gzip:
		w = gzip.NewWriter(&buf)
	case blob.Zstd:
		zw, err := zstd.NewWriter(&buf)
		if err != nil {
			t.Fatal(err)
		}
		w = zw
	}
	_, err := w.Write(p)
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

var codecs = map[string]blob.Codec{"plain": blob.Plain, "gzip": blob.Gzip, "zstd": blob.Zstd}

// TestUnpack: a unit is cut where its last extent ends, what follows is kept up to MaxRest, and all of it is passed on.
func TestUnpack(t *testing.T) {
	for name, codec := range codecs {
		for _, rest := range []int{0, 1000, blob.MaxRest, blob.MaxRest + 1} {
			p := bytes.Repeat([]byte("what a unit holds "), (5000+rest)/18+1)[:5000+rest]
			var also bytes.Buffer
			u, err := blob.Unpack(codec, bytes.NewReader(pack(t, codec, p)), 5000, &also)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(u.Plain, p[:5000]) || !bytes.Equal(also.Bytes(), p) {
				t.Errorf("%s with %d bytes behind: other bytes", name, rest)
			}
			if u.Whole != (rest <= blob.MaxRest) || u.Whole && !bytes.Equal(u.Rest, p[5000:]) || !u.Whole && u.Rest != nil {
				t.Errorf("%s with %d bytes behind: kept %d of them, all: %v", name, rest, len(u.Rest), u.Whole)
			}
		}
	}
}

// TestUnpackFails: the error of a source is told from bytes that cannot be decoded.
func TestUnpackFails(t *testing.T) {
	gone := errors.New("gone")
	for name, codec := range codecs {
		packed := pack(t, codec, bytes.Repeat([]byte("abc"), 1000))
		var source *blob.SourceError
		_, err := blob.Unpack(codec, io.MultiReader(bytes.NewReader(packed[:len(packed)/2]), iotest.ErrReader(gone)), 3000, nil)
		if !errors.As(err, &source) || !errors.Is(err, gone) {
			t.Errorf("%s: a source that failed gives %v", name, err)
		}
		_, err = blob.Unpack(codec, bytes.NewReader(packed[:len(packed)/2]), 3000, nil)
		if err == nil || errors.As(err, &source) {
			t.Errorf("%s: half of the bytes give %v", name, err)
		}
	}
}
