package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/docker/go-units"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"github.com/remora-storage/remora/cmd/internal/control"
)

func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status [IMAGE]",
		Short: "Show the back end, the cache and every lazy layer, or how an image's start went",
		Long: `status shows how layers are mounted here and why, and how full the cache is. For every lazy layer it
shows how much is present, and how much was fetched since remorad started. It names the processes
that wait for a registry. It names the containers that may have seen errors or wrong data since what
their mounts depend on was lost. It names the snapshots that containerd knows and that were lost
with remorad's root. It names each file of remorad's that was damaged and set aside, until you
remove that file, with what was lost and what to do.

With an image it shows that image's layers, and what became of the bytes that were fetched since
remorad started. It says how many were fetched before anybody asked, and how many of these were
used. It says how many were fetched because a program waited, and how often and how long it waited.
Use these numbers to judge a profile: record it again if much is unused, or if programs wait. Sizes
there are packed; what the kernel reads of complete layers by itself is not seen. It also says
whether the image can be exported: a layer that was never downloaded whole is not in containerd's
content store.

With --json it prints one object: backend.name, backend.reason, holder.pid, cache.bytes,
cache.limit, cache.pinned, layers[] with digest, image, format, backend, state, present_bytes,
total_bytes, fetched_bytes, read_bytes, prefetched_bytes, prefetch_used_bytes, demand_bytes, waits,
wait_seconds, waiting[] with pid, command, container, image, seconds, reason, broken[] with
container, snapshot, mounted, reason, and damaged[] with file, aside, found, lost, advice; of an
image also missing_blobs[], the layers that an export would miss.`,
		Args: between(0, 1, "at most one image"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				return a.imageStatus(cmd.Context(), args[0])
			}
			return a.status(cmd.Context())
		},
	}
}

func (a *app) status(ctx context.Context) error {
	st, err := ask(a, func(c *control.Client) (*control.StatusReply, error) { return c.Status(ctx) })
	if err != nil {
		return err
	}
	return a.print(st, func(w io.Writer) { humanStatus(w, st) })
}

// imageStatus shows the layers of one image.
func (a *app) imageStatus(ctx context.Context, image string) error {
	ref, err := normalize(image)
	if err != nil {
		return err
	}
	ctx, containerd, img, err := a.localImage(ctx, ref)
	if err != nil {
		return err
	}
	defer containerd.Close()
	manifest, err := images.Manifest(ctx, img.ContentStore(), img.Target(), img.Platform())
	if err != nil {
		return fmt.Errorf("image %s: %w", ref, err)
	}
	st, err := ask(a, func(c *control.Client) (*control.StatusReply, error) { return c.Status(ctx) })
	if err != nil {
		return err
	}
	st.Layers = slices.DeleteFunc(st.Layers, func(l control.Layer) bool {
		return !slices.ContainsFunc(manifest.Layers, func(d ocispec.Descriptor) bool { return d.Digest == l.Digest })
	})
	missing, err := missingBlobs(ctx, containerd.ContentStore(), manifest)
	if err != nil {
		return err
	}
	return a.print(imageStatus{st, missing}, func(w io.Writer) {
		humanImage(w, ref, st)
		if len(missing) > 0 {
			fmt.Fprintf(w, "\n%d of %d blobs are not in containerd's content store, so the image cannot be exported, or pushed to another "+
				"registry: snapctl fetch %s\n", len(missing), len(manifest.Layers), ref)
		}
	})
}

// imageStatus is what status prints of an image.
type imageStatus struct {
	*control.StatusReply
	MissingBlobs []digest.Digest `json:"missing_blobs"`
}

func humanImage(w io.Writer, ref string, st *control.StatusReply) {
	if len(st.Layers) == 0 {
		fmt.Fprintf(w, "%s has no lazy layer\n", ref)
		return
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "LAYER\tFORMAT\tSTATE\tPRESENT\tTOTAL\tPREFETCHED\tUSED\tUNUSED\tON DEMAND\tREADS WAITED\tSECONDS")
	var sum control.Layer
	row := func(name, format, state string, l *control.Layer) {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%d\t%.3f\n", name, format, state, size(l.PresentBytes), size(l.TotalBytes),
			size(l.PrefetchedBytes), size(l.PrefetchUsedBytes), size(l.PrefetchedBytes-l.PrefetchUsedBytes), size(l.DemandBytes), l.Waits,
			l.WaitSeconds)
	}
	for i := range st.Layers {
		l := &st.Layers[i]
		state := l.State
		if l.Backend != "" {
			state += " by " + l.Backend
		}
		row(short(l.Digest), l.Format, state, l)
		sum.PresentBytes += l.PresentBytes
		sum.TotalBytes += l.TotalBytes
		sum.PrefetchedBytes += l.PrefetchedBytes
		sum.PrefetchUsedBytes += l.PrefetchUsedBytes
		sum.DemandBytes += l.DemandBytes
		sum.Waits += l.Waits
		sum.WaitSeconds += l.WaitSeconds
	}
	row("all", "", "", &sum)
	t.Flush()
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
	for _, d := range st.Damaged {
		fmt.Fprintf(w, "damaged   %s: set aside on %s as %s\n", d.File, d.Found.Format(time.DateTime+" MST"), d.Aside)
		fmt.Fprintf(w, "          lost: %s\n          do: %s\n", d.Lost, d.Advice)
	}
	if len(st.Layers) == 0 {
		fmt.Fprintln(w, "\nno lazy layers; pull an image with: snapctl pull IMAGE")
		humanBroken(w, st)
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
		fmt.Fprintf(w, "process %d (%s, %s) has waited for %.0f s for data of %s: %s\n", p.PID, p.Command, p.Container, p.Seconds, p.Image,
			reason)
	}
	humanBroken(w, st)
}

func humanBroken(w io.Writer, st *control.StatusReply) {
	for _, b := range st.Broken {
		name := "container " + b.Container
		switch {
		case b.Mounted == "" && b.Container == "":
			name = "snapshot " + b.Snapshot
		case b.Container == "":
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
