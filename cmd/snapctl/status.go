package main

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/docker/go-units"
	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/remora-storage/remora/cmd/internal/control"
)

func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show the back end, the cache and every lazy layer",
		Long: `status shows how layers are mounted here and why, how full the cache is, and for every lazy
layer how much of it is present and how much was fetched since remorad started. It names the
processes that wait for a registry, and the containers that may have seen errors or wrong data
since what their mounts depend on was lost. With --json it prints one object: backend.name,
backend.reason, holder.pid, cache.bytes, cache.limit, cache.pinned, layers[] with digest, image,
format, backend, state, present_bytes, total_bytes, fetched_bytes, waiting[] with pid, command,
container, image, seconds, reason, and broken[] with container, snapshot, mounted, reason.`,
		Args: exactly(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.status(cmd.Context()) },
	}
}

func (a *app) status(ctx context.Context) error {
	st, err := ask(a, func(c *control.Client) (*control.StatusReply, error) { return c.Status(ctx) })
	if err != nil {
		return err
	}
	return a.print(st, func(w io.Writer) { humanStatus(w, st) })
}

func humanStatus(w io.Writer, st *control.StatusReply) {
	name := st.Backend.Name
	if name == "" {
		name = "none: every layer takes the ordinary path"
	}
	fmt.Fprintf(w, "remorad   %s, root %s\n", st.Version, st.Root)
	fmt.Fprintf(w, "back end  %s (%s)\n", name, st.Backend.Reason)
	if st.Holder.PID > 0 {
		fmt.Fprintf(w, "holder    process %d keeps mounts alive while remorad is not there\n", st.Holder.PID)
	} else {
		fmt.Fprintln(w, "holder    none: mounts of incomplete layers end with remorad")
	}
	fmt.Fprintf(w, "cache     %s of %s, %s of it cannot be evicted now\n", size(st.Cache.Bytes), size(st.Cache.Limit), size(st.Cache.Pinned))
	if len(st.Layers) == 0 {
		fmt.Fprintln(w, "\nno lazy layers; pull an image with: snapctl pull IMAGE")
		return
	}
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "LAYER\tSTATE\tBACK END\tPRESENT\tTOTAL\tFETCHED\tIMAGE")
	for _, l := range st.Layers {
		state := l.State
		if l.Verified {
			state += ", verified"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", short(l.Digest), state, l.Backend,
			size(l.PresentBytes), size(l.TotalBytes), size(l.FetchedBytes), l.Image)
	}
	t.Flush()
	for _, l := range st.Layers {
		if l.Reason != "" {
			fmt.Fprintf(w, "%s: %s\n", short(l.Digest), l.Reason)
		}
	}
	for _, p := range st.Waiting {
		reason := p.Reason
		if reason == "" {
			reason = "the registry is slow"
		}
		fmt.Fprintf(w, "process %d (%s, %s) has waited for %.0f s for data of %s: %s\n", p.PID, p.Command, p.Container, p.Seconds, p.Image, reason)
	}
	for _, b := range st.Broken {
		name := "container " + b.Container
		if b.Container == "" {
			name = "snapshot " + b.Snapshot + ", mounted on " + b.Mounted + ","
		}
		fmt.Fprintf(w, "%s is broken: %s\n", name, b.Reason)
	}
}

func size(n int64) string { return units.BytesSize(float64(n)) }

func short(d digest.Digest) string {
	if d.Validate() != nil {
		return d.String()
	}
	return d.Algorithm().String() + ":" + d.Encoded()[:12]
}
