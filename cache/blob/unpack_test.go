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
			u, err := blob.Unpack(codec, bytes.NewReader(pack(t, codec, p)), 5000, &also, blob.Room{})
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
		_, err := blob.Unpack(codec, io.MultiReader(bytes.NewReader(packed[:len(packed)/2]), iotest.ErrReader(gone)), 3000, nil, blob.Room{})
		if !errors.As(err, &source) || !errors.Is(err, gone) {
			t.Errorf("%s: a source that failed gives %v", name, err)
		}
		_, err = blob.Unpack(codec, bytes.NewReader(packed[:len(packed)/2]), 3000, nil, blob.Room{})
		if err == nil || errors.As(err, &source) {
			t.Errorf("%s: half of the bytes give %v", name, err)
		}
	}
}

// TestWindows: a unit's first bytes say what its decoder takes. A later frame that needs more says so, and is decoded in that.
func TestWindows(t *testing.T) {
	frame := func(window, size int) (packed, plain []byte) {
		var buf bytes.Buffer
		w, err := zstd.NewWriter(&buf, zstd.WithWindowSize(window), zstd.WithEncoderConcurrency(1))
		if err != nil {
			t.Fatal(err)
		}
		plain = bytes.Repeat([]byte("what is in a frame "), size/19+1)[:size]
		for at := 0; at < size; at += 1 << 20 { // by parts, so that its size is not known at first
			if _, err := w.Write(plain[at:min(at+1<<20, size)]); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return buf.Bytes(), plain
	}
	small, first := frame(64<<10, 300<<10)
	large, second := frame(16<<20, 20<<20)
	head := func(p []byte) []byte { return p[:blob.Zstd.HeadSize()] }
	least, most := blob.Zstd.Window(head(small)), blob.Zstd.Window(head(large))
	if least > 1<<20 || most != blob.Zstd.MaxWindow() || blob.Zstd.Window([]byte("no frame")) != most {
		t.Errorf("a window of 64 KiB takes %d bytes, one of 16 MiB %d", least, most)
	}
	both := append(bytes.Clone(small), large...)
	need := int64(len(first) + len(second))
	for _, c := range []struct {
		packed []byte
		need   int64
		window int64
		want   error
	}{{small, int64(len(first)), least, nil}, {both, need, least, blob.ErrWindow}, {both, need, most, nil}, {both, need, 0, nil}} {
		u, err := blob.Unpack(blob.Zstd, bytes.NewReader(c.packed), c.need, nil, blob.Room{Window: c.window})
		if !errors.Is(err, c.want) {
			t.Errorf("in %d bytes: %v, want %v", c.window, err, c.want)
		} else if err == nil && !bytes.Equal(u.Plain, append(bytes.Clone(first), second...)[:c.need]) {
			t.Errorf("in %d bytes: other bytes", c.window)
		}
	}
}

// TestNoRoom: what is behind a unit's last extent is not kept where there is no room, and is passed on all the same.
func TestNoRoom(t *testing.T) {
	for name, codec := range codecs {
		p := bytes.Repeat([]byte("what a unit holds "), 20_000)
		var also bytes.Buffer
		asked := int64(0)
		u, err := blob.Unpack(codec, bytes.NewReader(pack(t, codec, p)), 5, &also, blob.Room{More: func(n int64) bool {
			asked += n
			return asked < 200<<10
		}})
		if err != nil {
			t.Fatal(err)
		}
		if u.Whole || u.Rest != nil || !bytes.Equal(u.Plain, p[:5]) || !bytes.Equal(also.Bytes(), p) {
			t.Errorf("%s: kept %d bytes, passed %d on", name, len(u.Rest), also.Len())
		}
		if asked < 200<<10 || asked > 800<<10 {
			t.Errorf("%s: asked for %d bytes", name, asked)
		}
	}
}
