package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/remora-storage/remora/conformance/testbed"
)

const (
	memoryLayers = 100
	memoryFiles  = 10_000 // a layer
)

// memory measures remorad's own memory with many layers of many files.
func memory(ctx context.Context, o options) (err error) {
	layout := filepath.Join(testbed.Work(), "images", "memory-lazy")
	s, err := testbed.NewStack(filepath.Join(o.work, "memory"), testbed.Options{LogLevel: "warn",
		Registry: filepath.Join(testbed.Work(), "memory-registry")})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	if _, err := os.Stat(layout); err != nil {
		fmt.Fprintf(os.Stderr, "making %d layers of %d files, once\n", memoryLayers, memoryFiles)
		src := filepath.Join(o.work, "memory-src")
		if err := testbed.WriteTars(src, "src", memoryTars()...); err != nil {
			return err
		}
		if _, err := s.Snapctl(ctx, "convert", "oci:"+src+":src", s.Ref("memory:lazy")); err != nil {
			return err
		}
		if err := os.WriteFile(layout, nil, 0o644); err != nil { // says that the registry has it
			return err
		}
	}
	ref := s.Ref("memory:lazy")
	began := time.Now()
	if _, err := s.Snapctl(ctx, "pull", ref); err != nil {
		return err
	}
	pulled := time.Since(began)
	time.Sleep(5 * time.Second)
	idle, err := rssAnon(s.RemoradPID())
	if err != nil {
		return err
	}
	began = time.Now()
	// Each layer by itself, so that overlay's cost is left out.
	if err := readAll(filepath.Join(s.Root, "snapshots")); err != nil {
		return err
	}
	readTook := time.Since(began)
	time.Sleep(5 * time.Second)
	after, err := rssAnon(s.RemoradPID())
	if err != nil {
		return err
	}
	st, err := s.Status(ctx)
	if err != nil {
		return err
	}
	present, total := int64(0), int64(0)
	for _, l := range st.Layers {
		present += l.PresentBytes
		total += l.TotalBytes
	}
	began = time.Now()
	if err := s.RestartRemorad(syscall.SIGKILL); err != nil {
		return err
	}
	restart := time.Since(began)
	time.Sleep(3 * time.Second)
	restarted, err := rssAnon(s.RemoradPID())
	if err != nil {
		return err
	}
	fmt.Printf("\nMemory: %d layers of %d files. Pull %.1f s, reading all %.1f s (%d of %d bytes present), restart after SIGKILL %.2f s.\n",
		len(st.Layers), memoryFiles, pulled.Seconds(), readTook.Seconds(), present, total, restart.Seconds())
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "RssAnon of remorad\tidle after the pull\tafter reading all\tafter a restart")
	fmt.Fprintf(t, "MiB\t%.1f\t%.1f\t%.1f\n", float64(idle)/1024, float64(after)/1024, float64(restarted)/1024)
	return t.Flush()
}

func memoryTars() (layers []func(*tar.Writer) error) {
	for l := range memoryLayers {
		layers = append(layers, func(tw *tar.Writer) error {
			for f := range memoryFiles {
				if f%100 == 0 {
					if err := tw.WriteHeader(&tar.Header{Name: fmt.Sprintf("l%d/d%d/", l, f/100), Typeflag: tar.TypeDir, Mode: 0o755}); err != nil {
						return err
					}
				}
				body := fmt.Sprintf("file %d of layer %d\n", f, l)
				h := &tar.Header{Name: fmt.Sprintf("l%d/d%d/f%d", l, f/100, f), Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(body))}
				if err := tw.WriteHeader(h); err != nil {
					return err
				}
				if _, err := io.WriteString(tw, body); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return layers
}

func readAll(dir string) error {
	return filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		_, err = os.ReadFile(p)
		return err
	})
}

// rssAnon returns a process's own memory in KiB.
func rssAnon(pid int) (int64, error) { return memoryOf(pid, "RssAnon") }

// peakMemory returns the most memory that a process had resident, in KiB, since forgetPeak was called if it was.
func peakMemory(pid int) (int64, error) { return memoryOf(pid, "VmHWM") }

// forgetPeak has a process's peak be what it has now.
func forgetPeak(pid int) error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0)
}

// memoryOf returns what /proc/PID/status says of a process's memory, in KiB.
func memoryOf(pid int, field string) (int64, error) {
	p, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(p)) {
		var kb int64
		if n, _ := fmt.Sscanf(line, field+": %d kB", &kb); n == 1 {
			return kb, nil
		}
	}
	return 0, errors.New("no " + field)
}
