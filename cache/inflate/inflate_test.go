package inflate

import (
	"bytes"
	stdgzip "compress/gzip"
	"fmt"
	"io"
	"math/rand"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"

	"github.com/remora-storage/remora/conformance/heap"
)

// decodeAll decodes a file fed in pieces of some bytes, with output buffers for about chunk bytes.
func decodeAll(t testing.TB, packed []byte, feed, chunk int, spacing int64) ([]byte, []Point, error) {
	t.Helper()
	s := NewStream(spacing)
	var out []byte
	rest := packed
	for {
		st, err := s.Run()
		if err != nil {
			return out, nil, err
		}
		switch st {
		case NeedInput:
			k := min(feed, len(rest))
			buf := make([]byte, Headroom+k)
			copy(buf[Headroom:], rest)
			rest = rest[k:]
			s.Feed(buf, Headroom, len(rest) == 0)
		case NeedOutput:
			out = append(out, s.Chunk()...)
			s.Output(make([]byte, BufferSize(chunk)))
		case Done:
			out = append(out, s.Chunk()...)
			s.Finish()
			return out, s.Points(), nil
		}
	}
}

// text is compressible data, words of a random language.
func text(r *rand.Rand, n int) []byte {
	words := make([]string, 400)
	for i := range words {
		b := make([]byte, 2+r.Intn(9))
		for j := range b {
			b[j] = byte('a' + r.Intn(26))
		}
		words[i] = string(b)
	}
	var s strings.Builder
	for s.Len() < n {
		s.WriteString(words[r.Intn(len(words))])
		s.WriteByte(" \n\t,"[r.Intn(4)])
		if r.Intn(50) == 0 {
			s.WriteString(strings.Repeat(string(rune('a'+r.Intn(26))), r.Intn(600)))
		}
	}
	return []byte(s.String()[:n])
}

func noise(r *rand.Rand, n int) []byte {
	p := make([]byte, n)
	r.Read(p)
	return p
}

func pack(t testing.TB, level int, p []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := stdgzip.NewWriterLevel(&out, level)
	if err != nil {
		t.Fatal(err)
	}
	w.Extra, w.Name, w.Comment = []byte("extra"), "name", "comment"
	if _, err := w.Write(p); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// files are gzip files of many kinds.
func files(t testing.TB) map[string][]byte {
	r := rand.New(rand.NewSource(1))
	plain := map[string][]byte{
		"empty": nil, "one byte": {7}, "text": text(r, 300_000), "noise": noise(r, 200_000), "zeros": make([]byte, 500_000),
		"mixed": append(append(text(r, 100_000), noise(r, 70_000)...), text(r, 100_000)...),
	}
	all := map[string][]byte{}
	for name, p := range plain {
		for _, level := range []int{stdgzip.HuffmanOnly, stdgzip.NoCompression, 1, 6, 9} {
			all[fmt.Sprintf("%s at %d", name, level)] = pack(t, level, p)
		}
	}
	all["members"] = slicesJoin(pack(t, 6, plain["text"]), pack(t, 6, nil), pack(t, 0, plain["mixed"]), pack(t, 9, plain["text"][:5]))
	var k bytes.Buffer
	w := gzip.NewWriter(&k)
	for range 50 { // flushes make empty stored blocks
		if _, err := w.Write(plain["text"][:4000]); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	all["flushed"] = k.Bytes()
	return all
}

func slicesJoin(all ...[]byte) []byte { return bytes.Join(all, nil) }

func unpack(t testing.TB, packed []byte) []byte {
	t.Helper()
	r, err := stdgzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		t.Fatal(err)
	}
	p, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestInflateStream(t *testing.T) {
	for name, packed := range files(t) {
		want := unpack(t, packed)
		for _, feed := range []int{1, 7, 1000, 1 << 20} {
			if feed == 1 && len(packed) > 50_000 {
				continue
			}
			for _, chunk := range []int{1000, 64 << 10} {
				got, points, err := decodeAll(t, packed, feed, chunk, 20_000)
				if err != nil || !bytes.Equal(got, want) {
					t.Fatalf("%s, fed by %d: %d bytes, %v; want %d", name, feed, len(got), err, len(want))
				}
				checkPoints(t, name, packed, want, points)
			}
		}
	}
}

// checkPoints inflates every span by itself.
func checkPoints(t testing.TB, name string, packed, want []byte, points []Point) {
	t.Helper()
	for i, p := range points {
		plainEnd, end := int64(len(want)), int64(len(packed))
		if i+1 < len(points) {
			plainEnd, end = points[i+1].Plain, points[i+1].Off
		}
		if plainEnd == p.Plain {
			continue
		}
		got, err := p.Inflate(packed[p.Off:end], int(plainEnd-p.Plain))
		if err != nil || !bytes.Equal(got, want[p.Plain:plainEnd]) {
			t.Fatalf("%s: span %d of %d at %d: %v", name, i, len(points), p.Off, err)
		}
		for _, n := range []int{1, len(got) / 2, len(got)} {
			some, err := p.InflateSome(packed[p.Off:end], n)
			if err != nil || !bytes.Equal(some, got[:n]) {
				t.Fatalf("%s: %d bytes of span %d of %d at %d: %v", name, n, i, len(points), p.Off, err)
			}
		}
	}
}

func TestPointsAreFound(t *testing.T) {
	packed := pack(t, 6, text(rand.New(rand.NewSource(2)), 3<<20))
	_, points, err := decodeAll(t, packed, 64<<10, 1<<20, 256<<10)
	if err != nil || len(points) < 6 || len(points) > 12 {
		t.Fatalf("%d points in 3 MiB, %v; want one each 256 KiB or a little more", len(points), err)
	}
	bits := 0
	for _, p := range points[1:] {
		if p.Bits != 0 {
			bits++
		}
	}
	if bits == 0 {
		t.Error("no point lies inside a byte: the test shows nothing")
	}
}

func TestCorruptFiles(t *testing.T) {
	good := pack(t, 6, text(rand.New(rand.NewSource(3)), 100_000))
	for name, p := range map[string][]byte{
		"cut in the header": good[:5], "cut in the data": good[:len(good)/2], "cut in the trailer": good[:len(good)-3],
		"nothing": nil, "not gzip": []byte("no gzip file begins like this"), "another method": append([]byte{0x1f, 0x8b, 7}, good[3:]...),
		"reserved flag": append([]byte{0x1f, 0x8b, 8, 0x80}, good[4:]...),
		"block type 3":  {0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0},
		"far reference": {0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0, 0x03, 0x02, 0, 0, 0, 0, 0, 0, 0, 0},
	} {
		if out, _, err := decodeAll(t, p, 100, 1000, 0); err == nil {
			t.Errorf("%s: %d bytes and no error", name, len(out))
		}
	}
	if got, _, err := decodeAll(t, append(good[:len(good):len(good)], make([]byte, 100)...), 100, 1000, 0); err != nil || len(got) != 100_000 {
		t.Errorf("zeros behind the last member: %d bytes, %v", len(got), err)
	}
}

// reserved reports whether there is a member whose header has flags that RFC 1952 reserves: the standard library does not look at them.
func reserved(packed []byte) bool {
	for i := range len(packed) - 3 {
		if bytes.HasPrefix(packed[i:], []byte{0x1f, 0x8b, 8}) && packed[i+3]&0xe0 != 0 {
			return true
		}
	}
	return false
}

func FuzzStream(f *testing.F) {
	f.Add([]byte("\x1f\x8b\b80000000\x00\x00b\a$\x00\x00\xff\xff.zfL\x01\x00\x00\x00"), uint16(1000))
	for _, p := range files(f) {
		if len(p) < 20_000 {
			f.Add(p, uint16(1000))
		}
	}
	f.Fuzz(func(t *testing.T, packed []byte, feed uint16) {
		var got []byte
		var points []Point
		var err error
		most := heap.LayerMost(len(packed))
		most.Memory, most.CPU = most.Memory+8*1032*int64(len(packed)), 4*most.CPU // as much as there can be, and copies of it
		most.Allocates(t, func() int64 { got, points, err = decodeAll(t, packed, int(feed)+1, 4000, 5000); return 0 })
		r, rerr := stdgzip.NewReader(bytes.NewReader(packed))
		if rerr != nil {
			return
		}
		want, rerr := io.ReadAll(r)
		if rerr == nil && !reserved(packed) && (err != nil || !bytes.Equal(got, want)) {
			t.Fatalf("%d bytes, %v; the standard library has %d", len(got), err, len(want))
		}
		if err == nil {
			checkPoints(t, "input", packed, got, points)
		}
	})
}

func FuzzSpan(f *testing.F) {
	packed := pack(f, 6, text(rand.New(rand.NewSource(4)), 60_000))
	_, points, err := decodeAll(f, packed, 1000, 4000, 20_000)
	if err != nil {
		f.Fatal(err)
	}
	for i, p := range points[:len(points)-1] {
		f.Add(packed[p.Off:points[i+1].Off], p.Bits, p.Value, []byte(p.Window), uint16(points[i+1].Plain-p.Plain))
	}
	f.Fuzz(func(t *testing.T, packed []byte, bits, value uint8, window []byte, n uint16) {
		p := Point{Plain: 1, Off: 1, Bits: bits, Value: value, Window: window}
		var got []byte
		var err error
		heap.LayerMost(len(packed)).Allocates(t, func() int64 { got, err = p.Inflate(packed, int(n)); return 0 })
		if err == nil && len(got) != int(n) {
			t.Fatalf("%d bytes of %d", len(got), n)
		}
		var some []byte
		heap.LayerMost(len(packed)).Allocates(t, func() int64 { some, err = p.InflateSome(packed, int(n)); return 0 })
		if got != nil && (err != nil || !bytes.Equal(some, got)) {
			t.Fatalf("%d bytes of %d where all are there, %v", len(some), n, err)
		}
	})
}

func BenchmarkInflate(b *testing.B) {
	r := rand.New(rand.NewSource(5))
	plain := bytes.Join([][]byte{text(r, 8<<20), noise(r, 1<<20)}, nil)
	packed := pack(b, 6, plain)
	b.Run("stream", func(b *testing.B) {
		b.SetBytes(int64(len(plain)))
		buf := append(make([]byte, Headroom), packed...)
		outs := [2][]byte{make([]byte, BufferSize(1<<20)), make([]byte, BufferSize(1<<20))}
		for i := range b.N {
			s := NewStream(4 << 20)
			for done := false; !done; i++ {
				st, err := s.Run()
				switch {
				case err != nil:
					b.Fatal(err)
				case st == NeedInput:
					s.Feed(buf, Headroom, true)
				case st == NeedOutput:
					s.Output(outs[i&1])
				default:
					done = true
				}
			}
		}
	})
	b.Run("klauspost", func(b *testing.B) {
		b.SetBytes(int64(len(plain)))
		for range b.N {
			r, err := gzip.NewReader(bytes.NewReader(packed))
			if err != nil {
				b.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, r); err != nil {
				b.Fatal(err)
			}
		}
	})
}
