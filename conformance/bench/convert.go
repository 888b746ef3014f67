package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/klauspost/compress/gzip"

	"github.com/remora-storage/remora/conformance/testbed"
)

// conversions measures snapctl convert beside gzip -6 of the image's tars on one core, and the memory
// that a large image takes.
func conversions(ctx context.Context, o options) error {
	p := testbed.Programs[0]
	layout, err := p.Layout(ctx)
	if err != nil {
		return err
	}
	plain := filepath.Join(o.work, "tars")
	n, err := plainTars(layout, plain)
	if err != nil {
		return err
	}
	fmt.Printf("\nConvert %s, %.0f MB of tar, beside gzip -6 of that on one core. %d rounds in turn, medians.\n", p.Name,
		float64(n)/1e6, o.rounds)
	times := map[string][]time.Duration{}
	formats := []string{"estargz", "zstdchunked"}
	for range o.rounds {
		took, err := timed(func() error {
			_, err := testbed.Output(ctx, nil, "taskset", "-c", "0", "sh", "-c", "gzip -6 -c "+plain+" > "+plain+".gz")
			return err
		})
		if err != nil {
			return err
		}
		times["gzip -6"] = append(times["gzip -6"], took)
		for _, format := range formats {
			out := filepath.Join(o.work, "converted")
			took, err := timed(func() error { _, err := convertTo(ctx, o, format, layout, out, nil); return err })
			if err != nil {
				return err
			}
			times[format] = append(times[format], took)
			if err := os.RemoveAll(out); err != nil {
				return err
			}
		}
	}
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\tseconds\t÷ gzip -6")
	base := median(times["gzip -6"])
	for _, name := range append([]string{"gzip -6"}, formats...) {
		m := median(times[name])
		fmt.Fprintf(t, "%s\t%.2f %s\t%.2f\n", name, m.Seconds(), seconds(times[name]), float64(m)/float64(base))
	}
	t.Flush()
	if err := errors.Join(os.Remove(plain), os.Remove(plain+".gz")); err != nil {
		return err
	}
	return largeConversion(ctx, o)
}

func timed(do func() error) (time.Duration, error) {
	began := time.Now()
	err := do()
	return time.Since(began), err
}

// convertTo runs snapctl convert as if never before. peak is called again and again with its memory.
func convertTo(ctx context.Context, o options, format, layout, out string, peak func(anon int64)) (string, error) {
	env := []string{"XDG_CACHE_HOME=" + filepath.Join(o.work, "cache-"+strconv.FormatInt(time.Now().UnixNano(), 36))}
	args := []string{"convert", "--format", format, "oci:" + layout + ":src", "oci:" + out + ":lazy"}
	if peak == nil {
		return testbed.Output(ctx, env, "snapctl", args...)
	}
	proc, err := testbed.Start(filepath.Join(o.work, "convert.log"), func() bool { return true }, env, "snapctl", args...)
	if err != nil {
		return "", err
	}
	for proc.Running() {
		p, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", proc.Cmd.Process.Pid)) // gone when it has ended
		for line := range strings.Lines(string(p)) {
			if f := strings.Fields(line); len(f) > 1 && f[0] == "RssAnon:" {
				kib, _ := strconv.ParseInt(f[1], 10, 64)
				peak(kib << 10)
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	return proc.Tail(), nil
}

// plainTars writes the tars of an image's layers behind each other.
func plainTars(layout, to string) (n int64, err error) {
	m, err := testbed.ManifestOf(layout, "src")
	if err != nil {
		return 0, err
	}
	out, err := os.Create(to)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	for _, l := range m.Layers {
		f, err := os.Open(filepath.Join(layout, "blobs", "sha256", l.Digest.Encoded()))
		if err != nil {
			return n, err
		}
		zr, err := gzip.NewReader(f)
		if err != nil {
			return n, err
		}
		k, err := io.Copy(out, zr)
		n += k
		if err = errors.Join(err, f.Close()); err != nil {
			return n, err
		}
	}
	return n, nil
}

const largeImage = 5 << 30 // bytes

// largeConversion measures the memory that the conversion of a large layer of many files takes.
func largeConversion(ctx context.Context, o options) error {
	layout := filepath.Join(o.work, "large")
	if err := testbed.WritePlainTar(layout, "src", largeTar); err != nil {
		return err
	}
	fmt.Printf("\nConvert an image of one layer, %.1f GB in 20,480 files.\n", float64(largeImage)/1e9)
	for _, format := range []string{"estargz", "zstdchunked"} {
		out := filepath.Join(o.work, "large-"+format)
		var most int64
		var last string
		took, err := timed(func() (err error) {
			last, err = convertTo(ctx, o, format, layout, out, func(anon int64) { most = max(most, anon) })
			return err
		})
		if err != nil {
			return err
		}
		if _, err := testbed.ManifestOf(out, "lazy"); err != nil {
			return fmt.Errorf("%w: %s", err, last)
		}
		fmt.Printf("%s: %.0f s, peak RssAnon %.0f MiB\n", format, took.Seconds(), float64(most)/(1<<20))
		if err := os.RemoveAll(out); err != nil {
			return err
		}
	}
	return os.RemoveAll(layout)
}

// largeTar writes many files, an eighth of each new.
func largeTar(tw *tar.Writer) error {
	block := make([]byte, 1<<20)
	r := rand.New(rand.NewPCG(1, 2))
	for i := 0; int64(i) < largeImage/(256<<10); i++ {
		for k := range 32 << 10 { // an eighth of each file is new
			block[k] = byte(r.IntN(16)) + 'a'
		}
		h := &tar.Header{Name: fmt.Sprintf("d%d/f%d", i/1000, i), Typeflag: tar.TypeReg, Mode: 0o644, Size: 256 << 10}
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
		if _, err := tw.Write(block[:256<<10]); err != nil {
			return err
		}
	}
	return nil
}
