package holder

import (
	"encoding/binary"
	"testing"

	"github.com/remora-storage/remora/conformance/heap"
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
		var got frame
		var err error
		heap.RecordMost(len(p)).Allocates(t, func() int64 { got, err = decodeFrame(p); return 0 })
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
		heap.RecordMost(len(p)).Allocates(t, func() int64 {
			if e, err := parseEvent(p); err == nil && (e.Off < 0 || e.Len < 0) {
				t.Errorf("got %+v", e)
			}
			return 0
		})
	})
}

func FuzzStoreName(f *testing.F) {
	f.Add(storeName("image/abc", 0))
	f.Fuzz(func(t *testing.T, s string) {
		heap.RecordMost(len(s)).Allocates(t, func() int64 {
			if name, part, ok := parseStoreName(s); ok && (part < 0 || part >= maxFiles) {
				t.Errorf("%q: %q, %d", s, name, part)
			}
			return 0
		})
	})
}
