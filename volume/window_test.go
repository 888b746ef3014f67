package volume

import (
	"math/rand/v2"
	"testing"

	"github.com/remora-storage/remora/blockdev"
)

// TestWindow: what a window has of the last records is right, while others are made and written, and it has all that fit.
func TestWindow(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(1, 1))
	const most, ahead = 5, 3 // blocks of a record; records that are being made
	w := window{mem: blockdev.AlignedBuffer(64 * Block)}
	content := func(pos int64) byte { return byte(pos/Block*7 + 3) }
	type span struct{ from, to int64 }
	var made []windowed
	var added []span
	pos := int64(0)
	for range 3_000 {
		n := Block * (1 + r.IntN(most))
		rec := w.room(pos, n)
		for i := range rec.buf {
			rec.buf[i] = content(pos + int64(i))
		}
		made = append(made, rec)
		pos += int64(n)
		if r.IntN(10) == 0 {
			pos += 3 * Block // the ring's end
		}
		if len(made) > ahead || r.IntN(2) == 0 {
			w.add(made[0])
			added = append(added, span{made[0].pos, made[0].pos + int64(len(made[0].buf))})
			made = made[1:]
		}
		kept := int64(0)
		for i := len(added) - 1; i >= 0 && i > len(added)-40; i-- {
			s := added[i]
			off := s.from + r.Int64N((s.to-s.from)/Block)*Block
			p := make([]byte, s.to-off)
			ok := w.read(off, p)
			kept += s.to - s.from
			if !ok && kept+int64(ahead+2)*most*Block < int64(len(w.mem)) {
				t.Fatalf("the window of %d bytes has no record %d bytes ago", len(w.mem), kept)
			}
			for k := range p {
				if ok && p[k] != content(off+int64(k)) {
					t.Fatalf("the byte at %d is %d, want %d", off+int64(k), p[k], content(off+int64(k)))
				}
			}
		}
		if w.read(pos, make([]byte, Block)) || len(added) > 0 && w.read(added[len(added)-1].to, make([]byte, Block)) && len(made) == 0 {
			t.Fatal("the window has what was not written")
		}
	}
	if none, _ := windowMemory(leastWindow - 1); len(none) > 0 {
		t.Error("a window that is too small has memory")
	}
	w = window{}
	if w.add(w.room(0, Block)); w.read(0, make([]byte, Block)) {
		t.Error("a window of no memory keeps something")
	}
	mem, free := windowMemory(leastWindow)
	if len(mem) != leastWindow {
		t.Errorf("a window of %d bytes has %d", int64(leastWindow), len(mem))
	}
	free()
}
