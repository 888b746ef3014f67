package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/remora-storage/remora/cmd/internal/control"
)

func (a *app) cacheCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "cache",
		Short: "List, pin and prune what is cached",
		Long: `cache shows and changes what remorad keeps on disk. The cache never exceeds [cache] limit: the least
recently used data goes first. What the kernel reads without asking cannot go while it is mounted:
complete layers, and those mounted by the precontent back end. Pinned images never go.`,
	}
	c.AddCommand(
		&cobra.Command{Use: "ls", Short: "List the layers in the cache", Args: exactly(0, "no arguments"),
			Long: `ls lists the layers in the cache with what they take on disk and whether they can be evicted.
With --json it prints bytes, limit, pinned, and entries[] with digest, images, disk_bytes,
present_bytes, total_bytes, pinned, evictable.`,
			RunE: func(cmd *cobra.Command, _ []string) error { return a.cacheList(cmd.Context()) }},
		&cobra.Command{Use: "pin IMAGE", Short: "Never evict an image's layers", Args: exactly(1, "one image"),
			Long: `pin keeps everything that is cached of an image, or will be, also after restarts. It fetches
nothing: snapctl fetch --cache-only makes the image complete.`,
			RunE: func(cmd *cobra.Command, args []string) error { return a.cachePin(cmd.Context(), args[0], true) }},
		&cobra.Command{Use: "unpin IMAGE", Short: "Undo pin", Args: exactly(1, "one image"),
			RunE: func(cmd *cobra.Command, args []string) error { return a.cachePin(cmd.Context(), args[0], false) }},
		&cobra.Command{Use: "prune", Short: "Evict everything that may be evicted", Args: exactly(0, "no arguments"),
			Long: `prune frees the disk space of all cached data that can be evicted. Containers fetch again what they
need of it.`,
			RunE: func(cmd *cobra.Command, _ []string) error { return a.cachePrune(cmd.Context()) }},
	)
	return c
}

func (a *app) cacheList(ctx context.Context) error {
	reply, err := ask(a, func(c *control.Client) (*control.CacheReply, error) { return c.Cache(ctx) })
	if err != nil {
		return err
	}
	return a.print(reply, func(w io.Writer) {
		fmt.Fprintf(w, "%s of %s, %s of it cannot be evicted now\n", size(reply.Bytes), size(reply.Limit), size(reply.Pinned))
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		if len(reply.Entries) > 0 {
			fmt.Fprintln(t, "\nLAYER\tON DISK\tPRESENT\tTOTAL\tEVICTABLE\tIMAGES")
		}
		for _, e := range reply.Entries {
			evictable := "yes"
			switch {
			case e.Pinned:
				evictable = "pinned"
			case !e.Evictable:
				evictable = "not while mounted"
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", short(e.Digest), size(e.DiskBytes), size(e.PresentBytes), size(e.TotalBytes),
				evictable, strings.Join(e.Images, " "))
		}
		t.Flush()
	})
}

func (a *app) cachePin(ctx context.Context, image string, pin bool) error {
	ref, err := normalize(image)
	if err != nil {
		return err
	}
	reply, err := ask(a, func(c *control.Client) (*control.PinReply, error) {
		return c.Pin(ctx, &control.PinRequest{Image: ref, Pin: pin})
	})
	if err != nil {
		return err
	}
	return a.print(reply, func(w io.Writer) {
		what := "pinned"
		if !pin {
			what = "no longer pinned"
		}
		fmt.Fprintf(w, "%d layers of %s %s\n", reply.Layers, ref, what)
	})
}

func (a *app) cachePrune(ctx context.Context) error {
	reply, err := ask(a, func(c *control.Client) (*control.PruneReply, error) { return c.Prune(ctx) })
	if err != nil {
		return err
	}
	return a.print(reply, func(w io.Writer) { fmt.Fprintf(w, "%s freed\n", size(reply.Bytes)) })
}
