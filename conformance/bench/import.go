package main

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/conformance/testbed"
)

// imports measures what an import costs beside GNU gzip -dc of the same blobs, and the memory that a large
// layer takes.
func imports(ctx context.Context, o options) (err error) {
	s, err := testbed.NewStack(filepath.Join(o.work, "import"), testbed.Options{LogLevel: "info"})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	fmt.Printf("\nProcessor time of an import (remorad, receiving over loopback, digests and writing included) beside gzip "+
		"-dc of the same blobs. %d rounds in turn, medians.\n", o.rounds)
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\tgzip -dc\timport\tratio\twall, gzip\twall, pull")
	for _, p := range o.programs {
		layout, err := p.Layout(ctx)
		if err != nil {
			return err
		}
		if err := s.Push(ctx, layout, "src", p.Name+":src"); err != nil {
			return err
		}
		m, err := testbed.ManifestOf(layout, "src")
		if err != nil {
			return err
		}
		var blobs []string
		for _, l := range m.Layers {
			blobs = append(blobs, filepath.Join(layout, "blobs", "sha256", l.Digest.Encoded()))
		}
		var gz, ours, gzWall, wall []time.Duration
		for range o.rounds {
			c := exec.CommandContext(ctx, "sh", append([]string{"-c", `for b; do gzip -dc < "$b"; done > /dev/null`, "sh"}, blobs...)...)
			took, err := timed(c.Run)
			if err != nil {
				return err
			}
			gzWall, gz = append(gzWall, took), append(gz, c.ProcessState.UserTime()+c.ProcessState.SystemTime())
			if err := clean(ctx, s); err != nil {
				return err
			}
			before, err := cpuOf(s.RemoradPID())
			if err != nil {
				return err
			}
			if took, err = timed(func() error { return pullLazy(ctx, s, s.Ref(p.Name+":src"), "") }); err != nil {
				return err
			}
			time.Sleep(3 * time.Second) // the index, and what is synced
			after, err := cpuOf(s.RemoradPID())
			if err != nil {
				return err
			}
			wall, ours = append(wall, took), append(ours, after-before)
		}
		fmt.Fprintf(t, "%s\t%.2f %s\t%.2f %s\t%.2f\t%.2f\t%.2f\n", p.Name, median(gz).Seconds(), seconds(gz),
			median(ours).Seconds(), seconds(ours),
			float64(median(ours))/float64(median(gz)), median(gzWall).Seconds(), median(wall).Seconds())
	}
	t.Flush()
	return largeImport(ctx, s, o)
}

const ticksPerSecond = 100 // of /proc, on every Linux that Go runs on

// cpuOf returns the processor time that a process has taken.
func cpuOf(pid int) (time.Duration, error) {
	p, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	f := strings.Fields(string(p[strings.LastIndexByte(string(p), ')')+1:]))
	user, err1 := strconv.ParseInt(f[11], 10, 64)
	system, err2 := strconv.ParseInt(f[12], 10, 64)
	return time.Duration(user+system) * time.Second / ticksPerSecond, errors.Join(err1, err2)
}

// largeImport measures the memory that the import of a large gzip layer takes.
func largeImport(ctx context.Context, s *testbed.Stack, o options) error {
	var packed, plain int64
	layout := filepath.Join(o.work, "large")
	if err := writeGzipLayout(layout, &packed, &plain); err != nil {
		return err
	}
	defer os.RemoveAll(layout)
	if err := s.Push(ctx, layout, "src", "large:src"); err != nil {
		return err
	}
	if err := clean(ctx, s); err != nil {
		return err
	}
	stop, peak := make(chan struct{}), make(chan int64)
	go func() {
		most := int64(0)
		for {
			select {
			case <-stop:
				peak <- most
				return
			case <-time.After(20 * time.Millisecond):
				n, _ := rssAnon(s.RemoradPID()) // 0 in the moment when it cannot be read
				most = max(most, n)             // KiB
			}
		}
	}()
	took, err := timed(func() error { return pullLazy(ctx, s, s.Ref("large:src"), "") })
	time.Sleep(5 * time.Second) // the index
	close(stop)
	most := <-peak
	if err != nil {
		return err
	}
	fmt.Printf("\nImport of a gzip layer of %.1f GB, %.1f GB plain in 20,480 files: %.0f s, peak RssAnon %.0f MiB.\n",
		float64(packed)/1e9, float64(plain)/1e9, took.Seconds(), float64(most)/(1<<10))
	return clean(ctx, s)
}

// writeGzipLayout writes an image of one gzip layer.
func writeGzipLayout(dir string, packed, plain *int64) error {
	blobs := filepath.Join(dir, "blobs", "sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(blobs, "layer"))
	if err != nil {
		return err
	}
	defer f.Close()
	blobSum, plainSum := digest.Canonical.Digester(), digest.Canonical.Digester()
	zw, err := gzip.NewWriterLevel(io.MultiWriter(f, blobSum.Hash(), (*counter)(packed)), gzip.BestSpeed)
	if err != nil {
		return err
	}
	tw := tar.NewWriter(io.MultiWriter(zw, plainSum.Hash(), (*counter)(plain)))
	if err := errors.Join(largeTar(tw), tw.Close(), zw.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), filepath.Join(blobs, blobSum.Digest().Encoded())); err != nil {
		return err
	}
	return testbed.WriteGzipLayout(dir, "src", blobSum.Digest(), *packed, plainSum.Digest())
}

type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}
