package suite

import (
	"context"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/remora-storage/remora/blockdev"
)

// Abilities are what a device can do beyond blockdev.Device.
type Abilities uint

// The abilities, by the interface that each of them is.
const (
	Writer  Abilities = 1 << iota // blockdev.Writer
	Syncer                        // blockdev.Syncer
	Trimmer                       // blockdev.Trimmer
	Zeroer                        // blockdev.Zeroer
	Mapper                        // blockdev.Mapper
	Quick                         // blockdev.Quick
	Now                           // beside Quick: it does answer now; without it, each caller must wait
	Mapped                        // blockdev.Mapped

	// Changes are those by which a Writer does itself what callers would otherwise make of writes and flushes.
	Changes = Writer | Syncer | Trimmer | Zeroer
)

var abilityNames = []string{"Writer", "Syncer", "Trimmer", "Zeroer", "Mapper", "Quick", "Now", "Mapped"}

func (a Abilities) String() string {
	var all []string
	for i, name := range abilityNames {
		if a&(1<<i) != 0 {
			all = append(all, name)
		}
	}
	return strings.Join(all, " ")
}

func is[I any](d blockdev.Device, a Abilities) Abilities {
	if _, ok := d.(I); ok {
		return a
	}
	return 0
}

// mustHave insists on the abilities that are declared, and on no others. Now shows when the device is used.
func mustHave(t *testing.T, d blockdev.Device, want Abilities) {
	t.Helper()
	if want&Now != 0 && want&Quick == 0 {
		t.Fatalf("%v: only what is Quick is asked now", want)
	}
	got := is[blockdev.Writer](d, Writer) | is[blockdev.Syncer](d, Syncer) | is[blockdev.Trimmer](d, Trimmer) |
		is[blockdev.Zeroer](d, Zeroer) | is[blockdev.Mapper](d, Mapper) | is[blockdev.Quick](d, Quick) | is[blockdev.Mapped](d, Mapped)
	if want &^= Now; got != want {
		t.Fatalf("abilities that are declared and missing: %v; that are there and not declared: %v", want&^got, got&^want)
	}
}

// now: what a Quick device answers without waiting is what ReadAt and WriteAt would, and it refuses what does not fit.
func now(t *testing.T, d blockdev.Device, has Abilities) {
	q := d.(blockdev.Quick)
	ctx := context.Background()
	b, size := int64(d.BlockSize()), d.Size()
	for _, off := range []int64{size, size - b, 1 << 62} {
		if q.ReadNow(make([]byte, 2*b), off) {
			t.Errorf("read %d bytes at %d of %d now", 2*b, off, size)
		}
		if q.WriteNow(make([]byte, 2*b), off) {
			t.Errorf("wrote %d bytes at %d of %d now", 2*b, off, size)
		}
	}
	w, writer := d.(blockdev.Writer)
	if !writer && q.WriteNow(make([]byte, b), 0) {
		t.Error("wrote to what cannot be written to")
	}
	rnd := rand.New(rand.NewPCG(1, 8))
	reads, writes := 0, 0
	for range 300 {
		n := (1 + rnd.Int64N(64<<10)) / b * b
		off := rnd.Int64N(size-n+1) / b * b
		want := make([]byte, n)
		if writer {
			fill(rnd, want)
			if q.WriteNow(want, off) {
				writes++
			} else if err := w.WriteAt(ctx, want, off); err != nil { // a part may be written
				t.Fatal(err)
			}
		}
		got := make([]byte, n)
		if q.ReadNow(got, off) {
			reads++
			if differ(got, want) >= 0 {
				t.Fatalf("%d bytes at %d, read now: right up to %d", n, off, differ(got, want))
			}
		}
		if _, err := d.ReadAt(ctx, got, off); err != nil || differ(got, want) >= 0 {
			t.Fatalf("%d bytes at %d: %v, right up to %d", n, off, err, differ(got, want))
		}
	}
	t.Logf("now: %d reads, %d writes of 300", reads, writes)
	if answers := has&Now != 0; answers != (reads > 0) || (answers && writer) != (writes > 0) {
		t.Errorf("of 300 it answers %d reads and %d writes now; declared are %v", reads, writes, has)
	}
}

// mapped: the memory of a Mapped device is what is read, and what is written to it was written.
func mapped(t *testing.T, d blockdev.Device) {
	m := d.(blockdev.Mapped)
	w, writer := d.(blockdev.Writer)
	ctx := context.Background()
	b, size := int64(d.BlockSize()), d.Size()
	rnd := rand.New(rand.NewPCG(1, 9))
	for range 300 {
		n := (1 + rnd.Int64N(64<<10)) / b * b
		off := rnd.Int64N(size-n+1) / b * b
		want := make([]byte, n)
		if writer {
			fill(rnd, want)
		}
		if writer && rnd.IntN(2) == 0 {
			if k := copy(m.View(off, n, true), want); int64(k) != n {
				t.Fatalf("a view of %d bytes has %d", n, k)
			}
		} else if writer {
			if err := w.WriteAt(ctx, want, off); err != nil {
				t.Fatal(err)
			}
		}
		if v := m.View(off, n, false); int64(len(v)) != n || differ(v, want) >= 0 {
			t.Fatalf("a view of %d bytes at %d has %d, right up to %d", n, off, len(v), differ(v, want))
		}
		got := make([]byte, n)
		if _, err := d.ReadAt(ctx, got, off); err != nil || differ(got, want) >= 0 {
			t.Fatalf("%d bytes at %d: %v, right up to %d", n, off, err, differ(got, want))
		}
		at := off
		if err := blockdev.Extents(ctx, d, off, n, func(e blockdev.Extent) bool {
			if writer && e.Zero {
				t.Errorf("%d bytes at %d are said to be zeros", e.Len, at)
			}
			at += e.Len
			return true
		}); err != nil {
			t.Fatal(err)
		}
	}
}
