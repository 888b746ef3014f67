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
layer how much of it is present and how much was fetched since remorad started. With --json it
prints one object: backend.name, backend.reason, cache.bytes, cache.limit, and layers[] with
digest, image, format, backend, state, present_bytes, total_bytes, fetched_bytes.`,
		Args: exactly(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.status(cmd.Context()) },
	}
}

func (a *app) status(ctx context.Context) error {
	remora, closer, err := a.dialRemora()
	if err != nil {
		return err
	}
	defer closer.Close()
	st, err := remora.Status(ctx)
	if err != nil {
		return control.Explain(err, a.remora)
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
	fmt.Fprintf(w, "cache     %s of %s\n", size(st.Cache.Bytes), size(st.Cache.Limit))
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
	for _, b := range st.Broken {
		fmt.Fprintf(w, "snapshot %s, mounted on %s, is broken: %s\n", b.Snapshot, b.Mounted, b.Reason)
	}
}

func size(n int64) string { return units.BytesSize(float64(n)) }

func short(d digest.Digest) string {
	if d.Validate() != nil {
		return d.String()
	}
	return d.Algorithm().String() + ":" + d.Encoded()[:12]
}
