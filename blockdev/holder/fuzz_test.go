package holder

import (
	"encoding/binary"
	"testing"
)

func FuzzFrame(f *testing.F) {
	for _, one := range []frame{{op: opHello, text: "remorad"}, {op: opPut, name: "image/x"}, {op: opEvent, number: 7, which: 9}} {
		p, err := one.encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		got, err := decodeFrame(p)
		if err != nil {
			return
		}
		if len(got.name) > maxName || len(got.name)+len(got.text)+frameHeader != len(p) {
			t.Errorf("%d bytes decoded to name %q and text %q", len(p), got.name, got.text)
		}
	})
}

func FuzzEvent(f *testing.F) {
	p := make([]byte, eventRoom)
	binary.NativeEndian.PutUint32(p, 48)
	p[4] = 3
	binary.NativeEndian.PutUint16(p[6:], 24)
	binary.NativeEndian.PutUint32(p[16:], 9)
	p[24] = infoRange
	binary.NativeEndian.PutUint16(p[26:], rangeLength)
	binary.NativeEndian.PutUint64(p[32:], 4096)
	binary.NativeEndian.PutUint64(p[40:], 8192)
	if e, err := parseEvent(p); err != nil || e.FD != 9 || e.Off != 4096 || e.Len != 8192 {
		f.Fatalf("got %+v, %v", e, err)
	}
	f.Add(p)
	f.Fuzz(func(t *testing.T, p []byte) {
		if e, err := parseEvent(p); err == nil && (e.Off < 0 || e.Len < 0) {
			t.Errorf("got %+v", e)
		}
	})
}

func FuzzStoreName(f *testing.F) {
	f.Add(storeName("image/abc", 0))
	f.Fuzz(func(t *testing.T, s string) {
		name, part, ok := parseStoreName(s)
		if ok && (part < 0 || part >= maxFiles) {
			t.Errorf("%q: %q, %d", s, name, part)
		}
	})
}
