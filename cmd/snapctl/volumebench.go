package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/remora-storage/remora/cmd/internal/cli"
	"github.com/remora-storage/remora/cmd/internal/control"
	"github.com/remora-storage/remora/volume"
)

// benched is what bench prints with --json.
type benched struct {
	Store   string         `json:"store"`
	Class   string         `json:"class"`
	Size    int64          `json:"size_bytes"`
	Results []deviceResult `json:"results"`
	// Behind is what the store did not have when the loads ended, and Drain for how long it took it.
	Behind int64   `json:"behind_bytes"`
	Drain  float64 `json:"drain_seconds"`
}

// benchLoads are what bench measures, in this order: what is read was written before.
var benchLoads = []deviceLoad{
	{Name: "sequential write, 1 MiB, depth 8", write: true, bytes: 1 << 20, depth: 8},
	{Name: "sequential read, 1 MiB, depth 8", bytes: 1 << 20, depth: 8},
	{Name: "random write, 4 KiB, depth 32", write: true, random: true, bytes: volume.Block, depth: 32},
	{Name: "random read, 4 KiB, depth 32", random: true, bytes: volume.Block, depth: 32},
	{Name: "fdatasync after a 4 KiB write", write: true, random: true, sync: true, bytes: volume.Block, depth: 1},
}

func (a *app) volumeBenchCommand() *cobra.Command {
	req := control.CreateVolumeRequest{}
	length, during := "256M", 5*time.Second
	c := &cobra.Command{
		Use:   "bench",
		Short: "Measure how fast volumes in a store are from this node",
		Long: `bench makes a volume for itself, attaches it, puts load on its block device, past the page cache, and removes it. It
tells requests a second, bytes a second, and the median and 99th percentile of how long a request took. At the end it
tells how long the store took for what it did not have yet. What is read was just written, so reads are those of a
volume whose blocks this node has in its cache.

It writes as fast as it can: to a store that is paid for, that costs money. No other volume is touched.

  snapctl volume bench --store s3://bucket/volumes?endpoint=https://s3.example.com --class remote`,
		Args: exactly(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if req.Size, err = parseSize(length); err != nil {
				return err
			}
			if req.Size < 16<<20 {
				return cli.Usagef("--size %s: want 16M at least", length)
			}
			if during <= 0 {
				return cli.Usagef("--time %s: want more than none", during)
			}
			if req.Store, err = absStore(req.Store); err != nil {
				return err
			}
			return a.benchVolume(cmd.Context(), req, during)
		},
	}
	storeFlag(c, &req.VolumeRequest)
	c.Flags().StringVar(&req.Class, "class", "remote", "`when` a flush returns: remote, local or writethrough")
	c.Flags().StringVar(&length, "size", length, "`bytes` of the volume that are used")
	c.Flags().DurationVar(&during, "time", during, "`how` long each load runs")
	return c
}

func (a *app) benchVolume(ctx context.Context, req control.CreateVolumeRequest, during time.Duration) (err error) {
	id := volume.NewID().String()
	req.Name = "bench-" + id[:12]
	made, err := ask(a, func(c *control.Client) (*control.CreateVolumeReply, error) { return c.CreateVolume(ctx, &req) })
	if err != nil {
		return err
	}
	req.Store = made.Store
	// However this ends, the volume goes.
	defer func() { err = errors.Join(err, a.removeBench(context.WithoutCancel(ctx), req.VolumeRequest)) }()
	attached, err := a.attachVolume(ctx, control.AttachVolumeRequest{VolumeRequest: req.VolumeRequest})
	if err != nil {
		return err
	}
	b := benched{Store: req.Store, Class: req.Class, Size: req.Size}
	for _, l := range benchLoads {
		a.note("%s", l.Name)
		r, err := l.run(ctx, attached.Volume.Device, req.Size, during)
		if err != nil {
			return err
		}
		b.Results = append(b.Results, *r)
	}
	a.note("what the store does not have yet")
	d, err := ask(a, func(c *control.Client) (*control.VolumeDetails, error) {
		return c.InspectVolume(ctx, &req.VolumeRequest)
	})
	if err != nil {
		return err
	}
	begin := time.Now()
	if _, err := a.detachVolume(ctx, control.DetachVolumeRequest{VolumeRequest: req.VolumeRequest}); err != nil {
		return err
	}
	b.Behind, b.Drain = d.AtRiskBytes, time.Since(begin).Seconds()
	return a.print(b, func(w io.Writer) {
		fmt.Fprintf(w, "%s of a volume of class %s in %s, %v each:\n", size(b.Size), b.Class, b.Store, during)
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
		fmt.Fprintln(t, "\tREQUESTS/S\tMB/S\tMEDIAN µs\tP99 µs\t")
		for _, r := range b.Results {
			fmt.Fprintf(t, "%s\t%.0f\t%.1f\t%.0f\t%.0f\t\n", r.Name, r.IOPS, r.Bytes/1e6, r.Median, r.P99)
		}
		t.Flush()
		fmt.Fprintf(w, "The store was %s behind, and took %.1f s for them.\n", size(b.Behind), b.Drain)
	})
}

// removeBench detaches and removes bench's volume. It tells what it could not do.
func (a *app) removeBench(ctx context.Context, req control.VolumeRequest) error {
	ctx, stop := context.WithTimeout(ctx, time.Minute)
	defer stop()
	_, err := a.detachVolume(ctx, control.DetachVolumeRequest{VolumeRequest: req})
	if err == nil {
		_, err = ask(a, func(c *control.Client) (*control.RemoveVolumeReply, error) {
			return c.RemoveVolume(ctx, &control.RemoveVolumeRequest{VolumeRequest: req})
		})
	}
	if err != nil {
		return fmt.Errorf("the volume of this benchmark stays: snapctl volume rm %s: %w", req.Name, err)
	}
	return nil
}
