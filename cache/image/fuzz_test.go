package image

import (
	"bytes"
	"crypto/sha256"
	"os"
	"path/filepath"
	"testing"

	"github.com/remora-storage/remora/cache/blob"
	"github.com/remora-storage/remora/cache/inflate"
	"github.com/remora-storage/remora/conformance/heap"
	"github.com/remora-storage/remora/internal/wire"
)

func FuzzPresence(f *testing.F) {
	head := append([]byte(presenceMagic), 1, 0, 0, 0, 7, 0, 0, 0)
	f.Add(head)
	f.Add(append(bytes.Clone(head), make([]byte, 100)...))
	body := le.AppendUint32(le.AppendUint32(nil, 3), 5)
	f.Add(append(bytes.Clone(head), le.AppendUint32(body, entrySum(7, 0, body))...))
	f.Fuzz(func(t *testing.T, p []byte) {
		const extents = 100
		var n uint32
		var err error
		heap.RecordMost(len(p)).Allocates(t, func() int64 {
			n, err = decodePresence(p, 7, extents, func(r run) {
				if uint64(r.first)+uint64(r.count) > extents {
					t.Fatalf("run %+v of %d extents", r, extents)
				}
			})
			return 0
		})
		if err == nil && presenceHeader+int(n)*entrySize > len(p) {
			t.Fatalf("%d entries in %d bytes", n, len(p))
		}
	})
}

func FuzzTable(f *testing.F) {
	s := &Spec{ImageSize: 8192, MetaSize: 4096, Units: []blob.Unit{{Len: 10}, {Off: 10, Len: 5}},
		Extents: []Extent{{Off: 4096, Len: 100, Unit: 1, Digest: sha256.Sum256(nil)}}}
	p, err := encodeTable(s)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(p)
	f.Add(p[:50])
	f.Fuzz(func(t *testing.T, p []byte) {
		heap.RecordMost(len(p)).Allocates(t, func() int64 {
			tab, err := decodeTable(p)
			if err != nil {
				return 0
			}
			// What has the right checksums was written by us; only reading it must be safe.
			for i := range tab.NUnits {
				tab.Unit(uint32(i))
			}
			tab.Overlapping(0, tab.ImageSize)
			return 0
		})
	})
}

// FuzzPoints: points of the right checksums are read, and what they say of a unit sizes nothing beyond what it can have.
func FuzzPoints(f *testing.F) {
	s := &Spec{Codec: blob.Spans, ImageSize: 8192, MetaSize: 4096, PlainSize: 900, Units: []blob.Unit{{Len: 10}, {Off: 10, Len: 5}},
		Points: []inflate.Point{{}, {Plain: 500, Off: 10, Bits: 3, Value: 5, Window: inflate.Sparse{1, 0, 2, 0, 'a', 'b', 'c'}}}}
	enc, err := encodeTable(s)
	if err != nil {
		f.Fatal(err)
	}
	tab, err := decodeTable(enc)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(encodePoints(s, tab.sum))
	f.Add(encodePoints(s, tab.sum)[:40])
	s.PlainSize = 60 << 20 // of a unit of five bytes
	f.Add(encodePoints(s, tab.sum))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, p []byte) {
		if end := pointsHeader + 2*pointSize; len(p) >= end { // or the checksum would keep the fuzzer from what is behind it
			le.PutUint32(p[28:], wire.Sum(p[:28], p[pointsHeader:end]))
		}
		if err := os.WriteFile(filepath.Join(dir, pointsFile), p, 0o600); err != nil {
			t.Fatal(err)
		}
		heap.RecordMost(len(p)).Allocates(t, func() int64 {
			pts, err := openPoints(dir, tab)
			if err != nil {
				return 0
			}
			defer pts.f.Close()
			for i := range uint32(tab.NUnits) {
				if pt, n, err := pts.at(i, tab.Unit(i).Off); err == nil {
					_, _ = pt.Inflate(make([]byte, 20), n) // must only not panic
				}
			}
			return 0
		})
	})
}
