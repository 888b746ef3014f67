package suite

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/remora-storage/remora/blockdev"
)

// An Implementation of blockdev.Device says what its suite needs to know.
type Implementation struct {
	// Has are the abilities of its devices: one that is missing is a fault, and so is one that is not declared.
	Has Abilities

	// New returns a device of size bytes, a multiple of 64 KiB, that reads as zeros.
	New func(t *testing.T, size int64) blockdev.Device

	// Held returns such a device with requests that wait. It is nil where requests wait for nothing but this machine's
	// memory and system calls: those are not left.
	Held func(t *testing.T, size int64) Held
}

// Held is a device of whose requests some wait until they are let.
type Held struct {
	blockdev.Device
	Ops []blockdev.Op // the kinds that wait; reads do in the second half of the device
	Let func()        // is called once, when all that waited have been left
}

// Device is the suite of blockdev.Device and what goes with it.
func Device(t *testing.T, of Implementation) {
	const size = 4 << 20
	ctx := context.Background()
	open := func(t *testing.T) blockdev.Device {
		d := of.New(t, size)
		if d.Size() != size {
			t.Fatalf("size is %d, want %d", d.Size(), size)
		}
		if b := d.BlockSize(); b < 1 || b&(b-1) != 0 || size%b != 0 {
			t.Fatalf("block size is %d", b)
		}
		return d
	}
	if !t.Run("can what is declared, and no more", func(t *testing.T) { mustHave(t, open(t), of.Has) }) {
		return
	}
	t.Run("reads end with the device", func(t *testing.T) {
		d := open(t)
		b := int64(d.BlockSize())
		for _, c := range []struct{ off, n, want int64 }{{0, b, b}, {size - b, b, b}, {size - b, 4 * b, b}, {size, b, 0},
			{size + b, b, 0}, {0, 0, 0}} {
			n, err := d.ReadAt(ctx, make([]byte, c.n), c.off)
			if int64(n) != c.want || err != nil {
				t.Errorf("read of %d at %d: %d, %v, want %d", c.n, c.off, n, err, c.want)
			}
		}
	})
	t.Run("extents cover what is asked for", func(t *testing.T) {
		d := open(t)
		b := int64(d.BlockSize())
		for _, c := range []struct{ off, n int64 }{{0, size}, {b, size - 2*b}, {size - b, b}, {3 * b, b}} {
			var sum int64
			err := blockdev.Extents(ctx, d, c.off, c.n, func(e blockdev.Extent) bool {
				if e.Len <= 0 {
					t.Fatalf("extent of %d bytes at %d", e.Len, c.off+sum)
				}
				sum += e.Len
				return true
			})
			if err != nil || sum < c.n || c.off+sum > size {
				t.Errorf("extents of %d+%d cover %d, %v", c.off, c.n, sum, err)
			}
		}
		calls := 0
		if err := blockdev.Extents(ctx, d, 0, size, func(blockdev.Extent) bool { calls++; return false }); err != nil || calls != 1 {
			t.Errorf("stopped immediately: %d calls, %v", calls, err)
		}
		if err := blockdev.Extents(ctx, d, b, size, func(blockdev.Extent) bool { return true }); !errors.Is(err, blockdev.ErrRange) {
			t.Errorf("beyond the end: %v", err)
		}
	})
	t.Run("a reader leaves with its context", func(t *testing.T) { readerLeaves(t, open(t)) })
	if of.Held != nil {
		t.Run("who waits leaves with its context", func(t *testing.T) {
			h := of.Held(t, size)
			mustHave(t, h.Device, of.Has)
			waiterLeaves(t, h)
		})
	}
	if of.Has&Quick != 0 {
		t.Run("what it answers now is what it answers", func(t *testing.T) { now(t, open(t), of.Has) })
	}
	if of.Has&Mapped != 0 {
		t.Run("its memory is its bytes", func(t *testing.T) { mapped(t, open(t)) })
	}
	if of.Has&Writer == 0 {
		return
	}
	writer := func(t *testing.T) blockdev.Writer { return open(t).(blockdev.Writer) }
	t.Run("refuses what does not fit", func(t *testing.T) {
		d := writer(t)
		b := int64(d.BlockSize())
		for _, off := range []int64{-b, size, size - b, 1 << 62} {
			p := make([]byte, 2*b)
			for name, err := range map[string]error{
				"write": d.WriteAt(ctx, p, off), "sync": blockdev.WriteSync(ctx, d, p, off), "trim": blockdev.Trim(ctx, d, off, 2*b),
				"zeros": blockdev.WriteZeroes(ctx, d, off, 2*b, blockdev.Zeroing{}),
			} {
				if !errors.Is(err, blockdev.ErrRange) {
					t.Errorf("%s at %d: %v", name, off, err)
				}
			}
		}
		if b > 1 {
			if err := d.WriteAt(ctx, make([]byte, b), 1); !errors.Is(err, blockdev.ErrAlignment) {
				t.Errorf("write of half blocks: %v", err)
			}
		}
	})
	t.Run("no bytes are no work", func(t *testing.T) {
		d := writer(t)
		for name, err := range map[string]error{
			"write": d.WriteAt(ctx, nil, size), "sync": blockdev.WriteSync(ctx, d, nil, 0), "trim": blockdev.Trim(ctx, d, 0, 0),
			"zeros": blockdev.WriteZeroes(ctx, d, size, 0, blockdev.Zeroing{}), "flush": d.Flush(ctx),
		} {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
	t.Run("is what was written", func(t *testing.T) {
		for seed := range uint64(4) {
			model(t, writer(t), rand.New(rand.NewPCG(seed, 1)))
		}
	})
	t.Run("by many side by side", func(t *testing.T) { concurrent(t, writer(t)) })
	t.Run("a writer leaves with its context", func(t *testing.T) { writerLeaves(t, writer(t)) })
}

// model changes a device and bytes in memory in the same ways, and compares them.
func model(t *testing.T, d blockdev.Writer, rnd *rand.Rand) {
	t.Helper()
	ctx := context.Background()
	b, size := int64(d.BlockSize()), d.Size()
	want := make([]byte, size)
	for step := range 300 {
		n := (1 + rnd.Int64N(200<<10)) / b * b
		off := rnd.Int64N(size-n+1) / b * b
		part := want[off : off+n]
		var err error
		kind := rnd.IntN(7)
		switch kind {
		case 0, 1:
			fill(rnd, part)
			err = d.WriteAt(ctx, part, off)
		case 2:
			fill(rnd, part)
			err = blockdev.WriteSync(ctx, d, part, off)
		case 3, 4:
			clear(part)
			how := blockdev.Zeroing{NoHole: kind == 4, Fast: rnd.IntN(2) == 0}
			if err = blockdev.WriteZeroes(ctx, d, off, n, how); errors.Is(err, blockdev.ErrNotFast) && how.Fast {
				how.Fast = false
				err = blockdev.WriteZeroes(ctx, d, off, n, how)
			}
		case 5:
			if err = blockdev.Trim(ctx, d, off, n); err == nil {
				err = trimmed(d, part, off)
			}
		case 6:
			err = d.Flush(ctx)
		}
		if err != nil {
			t.Fatalf("step %d, kind %d at %d+%d: %v", step, kind, off, n, err)
		}
	}
	got := make([]byte, size)
	if n, err := d.ReadAt(ctx, got, 0); err != nil || int64(n) != size {
		t.Fatalf("read all: %d, %v", n, err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("the device differs from what was written, first at %d", differ(got, want))
	}
	at := int64(0)
	if err := blockdev.Extents(ctx, d, 0, size, func(e blockdev.Extent) bool {
		if e.Zero && differ(want[at:at+e.Len], make([]byte, e.Len)) >= 0 {
			t.Errorf("%d+%d is said to be zeros", at, e.Len)
		}
		at += e.Len
		return true
	}); err != nil {
		t.Fatal(err)
	}
}

// trimmed reads what was trimmed into p: zeros, or what p was.
func trimmed(d blockdev.Device, p []byte, off int64) error {
	got := make([]byte, len(p))
	if _, err := d.ReadAt(context.Background(), got, off); err != nil {
		return err
	}
	for at := 0; at < len(got); at += sector {
		now, was := got[at:min(at+sector, len(got))], p[at:min(at+sector, len(got))]
		if bytes.Equal(now, was) || bytes.Equal(now, make([]byte, len(now))) {
			continue // the same, sooner: the race detector is told of each byte below
		}
		for i := range now {
			if now[i] != 0 && now[i] != was[i] {
				return errors.New("trimmed bytes are neither zeros nor what they were")
			}
		}
	}
	copy(p, got)
	return nil
}

func fill(rnd *rand.Rand, p []byte) {
	v := byte(rnd.IntN(255) + 1)
	for ; len(p) > 0; p = p[min(sector, len(p)):] {
		part := p[:min(sector, len(p))]
		part[0] = v
		for n := 1; n < len(part); n *= 2 {
			copy(part[n:], part[:n])
		}
		v++
	}
}

const sector = 512

// differ returns the first place where two slices of one length differ, or -1.
func differ(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}

// concurrent has writers on blocks of their own, each of whom finds what it wrote.
func concurrent(t *testing.T, d blockdev.Writer) {
	ctx := context.Background()
	unit := int64(max(d.BlockSize(), 512))
	const writers = 8
	var started sync.WaitGroup
	for w := range int64(writers) {
		started.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(w), 2))
			last := map[int64][]byte{}
			for range 200 {
				off := (rnd.Int64N(d.Size()/unit/writers)*writers + w) * unit
				p := make([]byte, unit)
				fill(rnd, p)
				if err := d.WriteAt(ctx, p, off); err != nil {
					t.Error(err)
					return
				}
				last[off] = p
				if rnd.IntN(10) == 0 {
					if err := d.Flush(ctx); err != nil {
						t.Error(err)
					}
				}
			}
			for off, want := range last {
				got := make([]byte, unit)
				if _, err := d.ReadAt(ctx, got, off); err != nil || !bytes.Equal(got, want) {
					t.Errorf("writer %d at %d: %v, equal %v", w, off, err, bytes.Equal(got, want))
				}
			}
		})
	}
	started.Wait()
}
