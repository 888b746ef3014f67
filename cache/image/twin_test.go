package image_test

import (
	"bytes"
	"crypto/sha256"
	"testing"

	"github.com/remora-storage/remora/cache/blob"
	"github.com/remora-storage/remora/cache/image"
)

// alike describes an image of n extents that are all the same, each in a unit of its own.
func alike(n int, p []byte) *image.Spec {
	s := &image.Spec{MetaSize: 4096, Meta: meta(make([]byte, 4096)), Codec: blob.Plain, ImageSize: 4096}
	for i := range n {
		s.Units = append(s.Units, blob.Unit{Off: int64(i * len(p)), Len: int64(len(p))})
		s.Extents = append(s.Extents, image.Extent{Off: s.ImageSize, Len: uint32(len(p)), Unit: uint32(i), Digest: sha256.Sum256(p)})
		s.ImageSize += 4096
	}
	return s
}

// TestCopiesAreAllowedOnce: an image that has an extent many times over, and another one never, are asked about once and not at all
// when an image looks for it, and what may not be copied is neither copied nor guessed from.
func TestCopiesAreAllowedOnce(t *testing.T) {
	const times = 300
	p := bytes.Repeat([]byte{1}, 4096)
	for name, allowed := range map[string]bool{"allowed": true, "refused": false} {
		t.Run(name, func(t *testing.T) {
			d, _ := open(t, t.TempDir(), 0)
			made := map[string]*image.Image{}
			for id, s := range map[string]*image.Spec{
				"many": alike(times, p), "none": alike(times, bytes.Repeat([]byte{2}, 4096)), "one": alike(2, p),
			} {
				m, err := d.New(id, s)
				if err != nil {
					t.Fatal(err)
				}
				defer m.Close()
				d.Add(m)
				made[id] = m
			}
			for i := range times {
				made["many"].Put(uint32(i), p)
			}
			asked := map[string]int{}
			d.CopyOnly(func(to, from string) bool { asked[from]++; return to == "one" && allowed })
			one := made["one"]
			if one.IsElsewhere(0) != allowed || (one.Elsewhere(0) != nil) != allowed {
				t.Errorf("the unit is elsewhere: %v", !allowed)
			}
			one.Guess(0, func(int64) bool { return true })
			if asked["many"] != 3 || len(asked) != 1 {
				t.Errorf("for three looks, asked %v", asked)
			}
		})
	}
}

// TestFewAreLookedAt: of very many extents with one digest a look sees few, so that filling all of them costs a number of looks and not
// its square.
func TestFewAreLookedAt(t *testing.T) {
	const times = 20_000
	p := bytes.Repeat([]byte{1}, 4096)
	d, _ := open(t, t.TempDir(), 0)
	m, err := d.New("many", alike(times, p))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	sum, looks := sha256.Sum256(p), 0
	m.Table().Find(&sum, func(uint32) bool { looks++; return true })
	if looks == 0 || looks > times/10 {
		t.Errorf("looked at %d of %d", looks, times)
	}
}
