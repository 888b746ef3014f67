package blockdev_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

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
		"measured": func(t *testing.T, size int64) blockdev.Device {
			return blockdev.Around(suite.RAM(t, size), blockdev.NewMetrics("disk"))
		},
		"measured read-only": func(_ *testing.T, size int64) blockdev.Device {
			return blockdev.Around(blockdev.Memory(make([]byte, size)), blockdev.NewMetrics("disk"))
		},
	} {
		t.Run(name, func(t *testing.T) { suite.Device(t, open) })
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
