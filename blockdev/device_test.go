package blockdev_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/conformance/suite"
)

// plainWriter is a Writer without abilities.
type plainWriter struct{ blockdev.Writer }

func TestDevices(t *testing.T) {
	for name, open := range map[string]func(t *testing.T, size int64) blockdev.Device{
		"bytes":  func(_ *testing.T, size int64) blockdev.Device { return blockdev.Memory(make([]byte, size)) },
		"memory": func(t *testing.T, size int64) blockdev.Device { return suite.RAM(t, size) },
		"file": func(t *testing.T, size int64) blockdev.Device {
			return suite.File(t, size, blockdev.FileOptions{})
		},
		"direct file": func(t *testing.T, size int64) blockdev.Device {
			return suite.File(t, size, blockdev.FileOptions{Direct: true})
		},
		"plain":     func(t *testing.T, size int64) blockdev.Device { return plainWriter{suite.RAM(t, size)} },
		"read-only": func(t *testing.T, size int64) blockdev.Device { return blockdev.ReadOnly(suite.RAM(t, size)) },
		"limited": func(t *testing.T, size int64) blockdev.Device {
			return blockdev.Limit(suite.RAM(t, size), blockdev.Rate{Bytes: 10 << 30, Requests: 1 << 20})
		},
		"limited read-only": func(t *testing.T, size int64) blockdev.Device {
			return blockdev.Limit(blockdev.Memory(make([]byte, size)), blockdev.Rate{Bytes: 10 << 30})
		},
		"measured": func(t *testing.T, size int64) blockdev.Device {
			return blockdev.Measure(suite.RAM(t, size), blockdev.NewMetrics(prometheus.NewRegistry()))
		},
		"faulty": func(t *testing.T, size int64) blockdev.Device {
			return blockdev.Faulty(suite.RAM(t, size), func(context.Context, blockdev.Op, int64, int64) error { return nil })
		},
		"slice": func(t *testing.T, size int64) blockdev.Device {
			return slice(t, suite.RAM(t, size+2<<20), 1<<20, size)
		},
		"slice of a file": func(t *testing.T, size int64) blockdev.Device {
			return slice(t, suite.File(t, size+2<<20, blockdev.FileOptions{}), 1<<20, size)
		},
		"slice read-only": func(t *testing.T, size int64) blockdev.Device {
			return slice(t, blockdev.Memory(make([]byte, 2*size)), size, size)
		},
		"overlay": func(t *testing.T, size int64) blockdev.Device {
			d, err := blockdev.NewOverlay(blockdev.Memory(make([]byte, size)), suite.RAM(t, size))
			if err != nil {
				t.Fatal(err)
			}
			return d
		},
		"recorder": func(t *testing.T, size int64) blockdev.Device { return blockdev.NewRecorder(suite.RAM(t, size)) },
	} {
		t.Run(name, func(t *testing.T) { suite.Device(t, open) })
	}
}

func slice(t *testing.T, d blockdev.Device, off, n int64) blockdev.Device {
	t.Helper()
	s, err := blockdev.Slice(d, off, n)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestReadOnlyFile: a file that is opened so refuses each change by its own error.
func TestReadOnlyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, make([]byte, 8192), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := blockdev.OpenFile(path, blockdev.FileOptions{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	ctx := context.Background()
	for name, err := range map[string]error{
		"write": d.WriteAt(ctx, make([]byte, 512), 0), "sync": d.WriteSync(ctx, make([]byte, 512), 0),
		"trim": d.Trim(ctx, 0, 512), "zeros": d.WriteZeroes(ctx, 0, 512, blockdev.Zeroing{}),
	} {
		if !errors.Is(err, blockdev.ErrReadOnly) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if d.WriteNow(make([]byte, 512), 0) {
		t.Error("written at once")
	}
}

// TestOpenFileRefuses what is no disk.
func TestOpenFileRefuses(t *testing.T) {
	for _, path := range []string{t.TempDir(), "/dev/null", filepath.Join(t.TempDir(), "missing")} {
		if d, err := blockdev.OpenFile(path, blockdev.FileOptions{ReadOnly: true}); err == nil {
			t.Errorf("%s was opened", path)
			d.Close()
		}
	}
}

// TestFaults: the request that a fault hits fails with its error, and nothing of it reaches the device.
func TestFaults(t *testing.T) {
	ctx := context.Background()
	ram := suite.RAM(t, 1<<20)
	var hit blockdev.Op
	d := blockdev.Faulty(ram, func(_ context.Context, op blockdev.Op, _, _ int64) error {
		if op == hit {
			return unix.ENOSPC
		}
		return nil
	}).(blockdev.Writer)
	p := []byte{1, 2, 3}
	ops := map[blockdev.Op]func() error{
		blockdev.OpRead:  func() error { _, err := d.ReadAt(ctx, p, 0); return err },
		blockdev.OpWrite: func() error { return d.WriteAt(ctx, p, 0) },
		blockdev.OpFlush: func() error { return d.Flush(ctx) },
		blockdev.OpTrim:  func() error { return blockdev.Trim(ctx, d, 0, 3) },
		blockdev.OpZero:  func() error { return blockdev.WriteZeroes(ctx, d, 0, 3, blockdev.Zeroing{}) },
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

// TestLimit: as many requests and bytes pass as the rate lets, and who waits leaves with its context.
func TestLimit(t *testing.T) {
	d := blockdev.Limit(suite.RAM(t, 1<<20), blockdev.Rate{Bytes: 1 << 20})
	began := time.Now()
	for range 4 { // 100 KiB pass at once, the others take 200 ms
		if _, err := d.ReadAt(context.Background(), make([]byte, 80<<10), 0); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(began); took < 150*time.Millisecond {
		t.Errorf("320 KiB at 1 MiB/s took %v", took)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := d.ReadAt(ctx, make([]byte, 1<<20), 0); !errors.Is(err, context.Canceled) {
		t.Errorf("after its context's end: %v", err)
	}
}

// TestMetrics: each request is counted once, with its bytes or as an error.
func TestMetrics(t *testing.T) {
	ctx := context.Background()
	reg := prometheus.NewRegistry()
	d := blockdev.Measure(suite.RAM(t, 1<<20), blockdev.NewMetrics(reg)).(blockdev.Writer)
	for range 3 {
		if err := d.WriteAt(ctx, make([]byte, 1000), 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.WriteAt(ctx, make([]byte, 1000), 1<<20); err == nil {
		t.Fatal("written beyond the end")
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.Metric {
			if m.Label[0].GetValue() != "write" {
				continue
			}
			got[f.GetName()] = m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	want := map[string]float64{
		"blockdev_request_duration_seconds": 4, "blockdev_request_bytes_total": 3000, "blockdev_request_errors_total": 1,
	}
	for name, v := range want {
		if got[name] != v {
			t.Errorf("%s is %v, want %v", name, got[name], v)
		}
	}
}

// TestCut: what a flush covers is there after a cut; of the rest any part may be.
func TestCut(t *testing.T) {
	ctx := context.Background()
	const size, block = 1 << 20, 4096
	r := blockdev.NewRecorder(suite.RAM(t, size))
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
	r := blockdev.NewRecorder(suite.RAM(t, size))
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
