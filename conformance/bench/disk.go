package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/blockdev/export/fusefile"
	"github.com/remora-storage/remora/conformance/testbed"
)

// null is a device that has no bytes: what it costs is what attaching costs.
type null struct{}

func (null) Size() int64                                              { return nbdSize }
func (null) BlockSize() int                                           { return 1 }
func (null) ReadAt(_ context.Context, p []byte, _ int64) (int, error) { return len(p), nil }
func (null) WriteAt(context.Context, []byte, int64) error             { return nil }
func (null) Flush(context.Context) error                              { return nil }

const diskSeconds = "2" // of a measurement

// disks measures a block device on FUSE and loop: over memory, over nothing, and beside them a file of the disk's own
// file system past its page cache.
func disks(ctx context.Context, o options) (err error) {
	dir := filepath.Join(o.work, "disk")
	if err := os.MkdirAll(filepath.Join(dir, "files"), 0o700); err != nil {
		return err
	}
	ram, err := blockdev.NewRAM(nbdSize)
	if err != nil {
		return err
	}
	defer ram.Close()
	for off := int64(0); off < nbdSize; off += 1 << 20 { // memory is given when it is first written to
		if err := ram.WriteAt(ctx, make([]byte, 1<<20), off); err != nil {
			return err
		}
	}
	files, err := fusefile.Mount(filepath.Join(dir, "files"), fusefile.Options{Writable: true, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, files.Unmount()) }()
	image := filepath.Join(dir, "ext4.img")
	if err := fullFile(image); err != nil {
		return err
	}
	names, paths := []string{"memory", "null", "ext4"}, map[string]string{"ext4": image}
	for i, dev := range []blockdev.Device{ram, null{}} {
		l, err := blockdev.AttachLoopOn(files.Export(fusefile.FirstNode+uint64(i), dev), blockdev.LoopOptions{Writable: true, Direct: true})
		if err != nil {
			return err
		}
		defer l.Release()
		paths[names[i]] = l.Path()
	}
	flags := []string{"--bs=4k", "--direct=1", "--ioengine=libaio", "--iodepth=32", "--time_based", "--runtime=" + diskSeconds}
	fmt.Printf("FUSE and loop: fio %s, median of %d rounds in turn\n", strings.Join(flags, " "), o.rounds)
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "4 KiB random\tmemory, IOPS\tnull device\text4, O_DIRECT\tmemory ÷ null\tnull ÷ ext4")
	for _, rw := range []string{"randread", "randwrite"} {
		all := map[string][]float64{}
		var toNull, toExt4 []float64
		for range o.rounds {
			now := map[string]float64{}
			for _, name := range names {
				if now[name], err = fioIOPS(ctx, paths[name], rw, flags); err != nil {
					return err
				}
				all[name] = append(all[name], now[name])
			}
			toNull = append(toNull, now["memory"]/now["null"])
			toExt4 = append(toExt4, now["null"]/now["ext4"])
		}
		fmt.Fprintf(t, "%s\t%.0f\t%.0f\t%.0f\t%.2f\t%.2f\n", rw, median(all["memory"]), median(all["null"]),
			median(all["ext4"]), median(toNull), median(toExt4))
	}
	return t.Flush()
}

// fioIOPS returns requests a second.
func fioIOPS(ctx context.Context, path, rw string, flags []string) (float64, error) {
	out, err := testbed.Output(ctx, nil, "fio", append([]string{"--name=bench", "--filename=" + path, "--rw=" + rw,
		"--output-format=json", "--size=1g"}, flags...)...)
	if err != nil {
		return 0, err
	}
	var report struct {
		Jobs []struct {
			Read  struct{ IOPS float64 } `json:"read"`
			Write struct{ IOPS float64 } `json:"write"`
		} `json:"jobs"`
	}
	if err := json.Unmarshal([]byte(out[max(0, strings.Index(out, "{")):]), &report); err != nil || len(report.Jobs) != 1 {
		return 0, fmt.Errorf("fio printed %.200q: %w", out, err)
	}
	return report.Jobs[0].Read.IOPS + report.Jobs[0].Write.IOPS, nil
}
