package wire

import (
	"encoding/binary"
	"hash/crc32"
	"math"
	"testing"

	"github.com/remora-storage/remora/conformance/heap"
)

func TestSum(t *testing.T) {
	if got := Sum([]byte("123456789")); got != 0xe3069283 { // the check value of CRC32C
		t.Errorf("%#x", got)
	}
	if Sum([]byte("1234"), nil, []byte("56789")) != 0xe3069283 {
		t.Error("parts are summed as something else than the whole")
	}
	if Sum() != 0 {
		t.Error("the sum of nothing is not 0")
	}
}

func TestReader(t *testing.T) {
	p := binary.AppendUvarint(nil, 0)
	p = binary.AppendUvarint(p, math.MaxUint64)
	for _, v := range []int64{0, -1, 1, -64, 64, math.MinInt64, math.MaxInt64} {
		p = binary.AppendVarint(p, v)
	}
	p = binary.AppendUvarint(p, 5)
	p = binary.LittleEndian.AppendUint32(p, 0x01020304)
	p = append(p, "\x03abcdef"...)
	r := Read(p)
	if a, b := r.Next(), r.Next(); a != 0 || b != math.MaxUint64 {
		t.Errorf("%d, %d", a, b)
	}
	for _, want := range []int64{0, -1, 1, -64, 64, math.MinInt64, math.MaxInt64} {
		if got := r.Signed(); got != want {
			t.Errorf("%d, want %d", got, want)
		}
	}
	if got := r.Add(7); got != 12 {
		t.Errorf("7 + 5 is %d", got)
	}
	if got := r.Uint32(); got != 0x01020304 {
		t.Errorf("%#x", got)
	}
	if got := r.Text(); got != "abc" {
		t.Errorf("%q", got)
	}
	if got := r.Bytes(2); string(got) != "de" || cap(got) != 2 {
		t.Errorf("%q of %d bytes", got, cap(got))
	}
	if r.Bad() || r.Len() != 1 || string(r.Rest()) != "f" {
		t.Errorf("bad %v, %q is left", r.Bad(), r.Rest())
	}
}

// TestReaderEnds: after something is missing, or too large, a Reader says so until its end.
func TestReaderEnds(t *testing.T) {
	for name, read := range map[string]func(*Reader){
		"no number":       func(r *Reader) { r.Bytes(1); r.Bytes(1); r.Next() },
		"a number's end":  func(r *Reader) { r.Next() },
		"too few bytes":   func(r *Reader) { r.Bytes(3) },
		"too many bytes":  func(r *Reader) { r.Bytes(math.MaxUint64) },
		"half a uint32":   func(r *Reader) { r.Uint32() },
		"a text's length": func(r *Reader) { r.Text() },
	} {
		r := Read([]byte{0x80, 0x80})
		read(&r)
		if !r.Bad() || r.Len() != 0 {
			t.Errorf("%s: bad %v, %d bytes are left", name, r.Bad(), r.Len())
		}
		if r.Next() != 0 || r.Uint32() != 0 || r.Text() != "" || r.Bytes(1) != nil || !r.Bad() {
			t.Errorf("%s: it goes on", name)
		}
	}
	r := Read(binary.AppendUvarint(nil, 1))
	if got := r.Add(math.MaxInt64); got != math.MaxInt64 || !r.Bad() {
		t.Errorf("a sum that is too large is %d, bad %v", got, r.Bad())
	}
}

// FuzzReader: whatever the bytes are, a Reader returns no more of them than there are.
func FuzzReader(f *testing.F) {
	f.Add([]byte{5, 1, 0x80, 1, 3, 'a', 'b', 'c'}, []byte{0, 1, 2, 3, 4, 5})
	f.Fuzz(func(t *testing.T, p, calls []byte) {
		r := Read(p)
		heap.RecordMost(len(p)).Allocates(t, func() int64 { reads(t, &r, calls); return 0 })
		if n := len(p) - r.Len(); !r.Bad() && Sum(p) != crc32.Update(Sum(p[:n]), castagnoli, r.Rest()) {
			t.Fatal("what is left is not the end of what there was")
		}
	})
}

// reads makes calls of a Reader.
func reads(t *testing.T, r *Reader, calls []byte) {
	for _, c := range calls {
		before, taken := r.Len(), 0
		switch c % 5 {
		case 0:
			r.Next()
		case 1:
			r.Signed()
		case 2:
			r.Uint32()
			taken = 4
		case 3:
			taken = len(r.Bytes(uint64(c)))
		case 4:
			taken = len(r.Text())
		}
		if !r.Bad() && r.Len() > before-taken || r.Bad() && r.Rest() != nil {
			t.Fatalf("%d bytes of %d were taken, %d are left", taken, before, r.Len())
		}
	}
}
