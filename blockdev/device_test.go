package blockdev_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/conformance/faultdev"
	"github.com/remora-storage/remora/conformance/suite"
)

// plainWriter is a Writer without abilities.
type plainWriter struct{ blockdev.Writer }

func TestDevices(t *testing.T) {
	const wrapper = suite.Changes | suite.Mapper
	measured := func(d blockdev.Device) blockdev.Device { return blockdev.Around(d, blockdev.NewMetrics("disk")) }
	bytes := func(_ *testing.T, size int64) blockdev.Device { return blockdev.Memory(make([]byte, size)) }
	ram := func(t *testing.T, size int64) blockdev.Device { return suite.RAM(t, size) }
	plain := func(d blockdev.Device) blockdev.Device { return plainWriter{d.(blockdev.Writer)} }
	file := func(opts blockdev.FileOptions) func(*testing.T, int64) blockdev.Device {
		return func(t *testing.T, size int64) blockdev.Device { return suite.File(t, size, opts) }
	}
	for name, of := range map[string]suite.Implementation{
		"bytes":  {New: bytes},
		"memory": {New: ram, Has: suite.Writer | suite.Trimmer | suite.Zeroer | suite.Mapper | suite.Mapped},
		"file":   {New: file(blockdev.FileOptions{}), Has: suite.Changes | suite.Mapper | suite.Quick | suite.Now},
		"direct file": {
			New: file(blockdev.FileOptions{Direct: true}), Has: suite.Changes | suite.Mapper | suite.Quick,
		},
		"plain": wrapped(ram, plain, suite.Writer, blockdev.OpRead, blockdev.OpWrite, blockdev.OpWriteSync, blockdev.OpFlush,
			blockdev.OpZero),
		"read-only":          wrapped(ram, blockdev.ReadOnly, suite.Mapper, faultdev.Reads()...),
		"measured":           wrapped(ram, measured, wrapper, faultdev.Ops()...),
		"measured read-only": wrapped(bytes, measured, suite.Mapper, faultdev.Reads()...),
	} {
		t.Run(name, func(t *testing.T) { suite.Device(t, of) })
	}
}

// wrapped is what a wrapper makes of a device, and of one whose requests wait.
func wrapped(open func(t *testing.T, size int64) blockdev.Device, wrap func(blockdev.Device) blockdev.Device,
	has suite.Abilities, waits ...blockdev.Op) suite.Implementation {
	return suite.Implementation{
		Has: has,
		New: func(t *testing.T, size int64) blockdev.Device { return wrap(open(t, size)) },
		Held: func(t *testing.T, size int64) suite.Held {
			d, gate := faultdev.Hold(open(t, size))
			return suite.Held{Device: wrap(d), Ops: waits, Let: gate.Open}
		},
	}
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
		t.Error("written immediately")
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

// TestMetrics: each request is counted once, with its bytes or as an error.
func TestMetrics(t *testing.T) {
	ctx := context.Background()
	reg := prometheus.NewRegistry()
	m := blockdev.NewMetrics("disk")
	reg.MustRegister(m)
	d := blockdev.NewAroundWriter(suite.RAM(t, 1<<20), m)
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
		"remora_disk_request_seconds": 4, "remora_disk_request_bytes_total": 3000, "remora_disk_request_errors_total": 1,
	}
	for name, v := range want {
		if got[name] != v {
			t.Errorf("%s is %v, want %v", name, got[name], v)
		}
	}
}
