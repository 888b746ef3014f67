package faultdev_test

import (
	"bytes"
	"context"
	"encoding/gob"
	"errors"
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/conformance/faultdev"
	"github.com/remora-storage/remora/conformance/suite"
)

func TestDevices(t *testing.T) {
	none := func(context.Context, blockdev.Op, int64, int64) error { return nil }
	for name, wrap := range map[string]func(blockdev.Device) blockdev.Device{
		"faulty":   func(d blockdev.Device) blockdev.Device { return faultdev.Faulty(d, none) },
		"recorder": func(d blockdev.Device) blockdev.Device { return faultdev.NewRecorder(d.(blockdev.Writer)) },
	} {
		t.Run(name, func(t *testing.T) {
			suite.Device(t, suite.Implementation{
				Has: suite.Changes | suite.Mapper,
				New: func(t *testing.T, size int64) blockdev.Device { return wrap(suite.RAM(t, size)) },
				Held: func(t *testing.T, size int64) suite.Held {
					d, gate := faultdev.Hold(suite.RAM(t, size))
					return suite.Held{Device: wrap(d), Ops: faultdev.Ops(), Let: gate.Open}
				},
			})
		})
	}
}

// TestFaults: the request that a fault hits fails with its error, and nothing of it reaches the device.
func TestFaults(t *testing.T) {
	ctx := context.Background()
	ram := suite.RAM(t, 1<<20)
	var hit blockdev.Op
	d := faultdev.Faulty(ram, func(_ context.Context, op blockdev.Op, _, _ int64) error {
		if op == hit {
			return unix.ENOSPC
		}
		return nil
	}).(blockdev.Writer)
	p := []byte{1, 2, 3}
	ops := map[blockdev.Op]func() error{
		blockdev.OpRead:      func() error { _, err := d.ReadAt(ctx, p, 0); return err },
		blockdev.OpWrite:     func() error { return d.WriteAt(ctx, p, 0) },
		blockdev.OpWriteSync: func() error { return blockdev.WriteSync(ctx, d, p, 0) },
		blockdev.OpFlush:     func() error { return d.Flush(ctx) },
		blockdev.OpTrim:      func() error { return blockdev.Trim(ctx, d, 0, 3) },
		blockdev.OpZero:      func() error { return blockdev.WriteZeroes(ctx, d, 0, 3, blockdev.Zeroing{}) },
		blockdev.OpMap: func() error {
			return blockdev.Extents(ctx, d, 0, 3, func(blockdev.Extent) bool { return true })
		},
	}
	for hit = range ops {
		for op, run := range ops {
			if err := run(); errors.Is(err, unix.ENOSPC) != (op == hit) {
				t.Errorf("fault on %s: %s returned %v", hit, op, err)
			}
		}
	}
}

// TestCut: what a flush covers is there after a cut; of the rest any part may be.
func TestCut(t *testing.T) {
	ctx := context.Background()
	const size, block = 1 << 20, 4096
	r := faultdev.NewRecorder(suite.RAM(t, size))
	write := func(i int64, v byte, sync bool) {
		p := make([]byte, block)
		for j := range p {
			p[j] = v
		}
		err := r.WriteAt
		if sync {
			err = r.WriteSync
		}
		if err := err(ctx, p, i*block); err != nil {
			t.Fatal(err)
		}
	}
	for i := range int64(10) {
		write(i, 1, false)
	}
	if err := r.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	for i := range int64(100) {
		write(100+i, 2, i == 50)
	}
	kept, lost, torn := 0, 0, 0
	for seed := range uint64(20) {
		after := suite.RAM(t, size)
		if err := r.Cut(ctx, after, 1, rand.New(rand.NewPCG(seed, 3))); err != nil {
			t.Fatal(err)
		}
		p := make([]byte, size)
		if _, err := after.ReadAt(ctx, p, 0); err != nil {
			t.Fatal(err)
		}
		for i := range 10 {
			if p[i*block] != 1 || p[(i+1)*block-1] != 1 {
				t.Fatalf("seed %d: block %d, which was flushed, is lost", seed, i)
			}
		}
		if p[150*block] != 2 || p[151*block-1] != 2 {
			t.Fatalf("seed %d: a write through the cache is lost", seed)
		}
		for i := 100; i < 200; i++ {
			switch first, last := p[i*block], p[(i+1)*block-1]; {
			case first == 2 && last == 2:
				kept++
			case first == 0 && last == 0:
				lost++
			default:
				torn++
			}
		}
		before := suite.RAM(t, size)
		if err := r.Cut(ctx, before, 0, rand.New(rand.NewPCG(seed, 4))); err != nil {
			t.Fatal(err)
		}
		if _, err := before.ReadAt(ctx, p, 100*block); err != nil || p[0] != 0 {
			t.Fatalf("a cut before the flush has what came after it (%v)", err)
		}
	}
	if kept == 0 || lost == 0 || torn == 0 {
		t.Errorf("kept %d, lost %d, torn %d", kept, lost, torn)
	}
	if err := r.Cut(ctx, suite.RAM(t, size), 2, nil); err == nil {
		t.Error("a cut after a flush that was not")
	}
}

// TestCutKeepsWhole: what a device's user relies on is written or not, and the rest of the same write may be torn.
func TestCutKeepsWhole(t *testing.T) {
	ctx := context.Background()
	const size, whole, end = 8192, 1024, 2048
	r := faultdev.NewRecorder(suite.RAM(t, size))
	r.KeepWhole(whole, end-whole)
	for _, off := range []int64{0, whole, whole + 512} { // about it, the same, and from its middle on
		if err := r.WriteAt(ctx, bytes.Repeat([]byte{byte(off/512) + 1}, 4096), off); err != nil {
			t.Fatal(err)
		}
	}
	torn := 0
	for seed := range uint64(500) {
		after := suite.RAM(t, size)
		if err := r.Cut(ctx, after, 0, rand.New(rand.NewPCG(seed, 5))); err != nil {
			t.Fatal(err)
		}
		p := make([]byte, size)
		if _, err := after.ReadAt(ctx, p, 0); err != nil {
			t.Fatal(err)
		}
		if second := p[end-1]; p[whole] != second && second != 4 { // 4: the last write has that half alone
			t.Fatalf("seed %d: torn between %d and %d", seed, p[whole], second)
		}
		if p[0] != p[512] || p[end] != p[4095] {
			torn++
		}
	}
	if torn == 0 {
		t.Error("nothing was torn")
	}
}

// TestSaved: what was saved is cut as what was recorded, and half of it is an error.
func TestSaved(t *testing.T) {
	ctx := t.Context()
	const size = 1 << 20
	r := faultdev.NewRecorder(suite.RAM(t, size))
	r.KeepWhole(1024, 1024)
	rnd := rand.New(rand.NewPCG(1, 6))
	for i := range int64(100) {
		p := make([]byte, 4096)
		for j := range p {
			p[j] = byte(rnd.Uint32())
		}
		off := rnd.Int64N(size/4096) * 4096
		err := r.WriteAt(ctx, p, off)
		switch i % 10 {
		case 3:
			err = r.Flush(ctx)
		case 5:
			err = r.WriteZeroes(ctx, off, 4096, blockdev.Zeroing{})
		case 7:
			err = r.WriteSync(ctx, p, off)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	var file bytes.Buffer
	if err := r.Save(gob.NewEncoder(&file)); err != nil {
		t.Fatal(err)
	}
	half := bytes.NewReader(file.Bytes()[:file.Len()/2])
	if _, err := faultdev.Load(gob.NewDecoder(half)); err == nil {
		t.Error("half of a recording was loaded")
	}
	again, err := faultdev.Load(gob.NewDecoder(&file))
	if err != nil {
		t.Fatal(err)
	}
	if again.Size() != size || again.Flushes() != r.Flushes() {
		t.Errorf("%d bytes, %d flushes", again.Size(), again.Flushes())
	}
	for seed := range uint64(20) {
		var got [2][]byte
		for i, rec := range []*faultdev.Recorder{r, again} {
			after := suite.RAM(t, size)
			rnd := rand.New(rand.NewPCG(seed, 7))
			if err := rec.Cut(ctx, after, rnd.IntN(r.Flushes()+1), rnd); err != nil {
				t.Fatal(err)
			}
			got[i] = bytes.Clone(after.View(0, size, false))
		}
		if !bytes.Equal(got[0], got[1]) {
			t.Errorf("seed %d: another cut", seed)
		}
	}
}
