package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/remora-storage/remora/cmd/internal/control"
)

// repairedImage is what repair prints.
type repairedImage struct {
	Image   string                `json:"image"`
	Whole   []digest.Digest       `json:"whole"`
	Broken  []*control.RepairStep `json:"broken"`
	Removed []string              `json:"removed"` // as NAMESPACE/NAME
}

func (a *app) repairCommand() *cobra.Command {
	var release bool
	c := &cobra.Command{
		Use:   "repair [flags] IMAGE",
		Short: "Make an image whole again whose layers cannot be read",
		Long: `repair opens the layers of an image again that failed or were quarantined, and completes all layers. What the
image's own repository no longer gives is taken from containerd's content store, and from the repositories of other
images that have the layer: pull one of those first if you know where it is. Containers that run read on.

A layer that nobody has cannot be repaired. --release then removes the image from containerd by all its names,
with the other images that have the layer, so that the next pull begins anew. It removes nothing while a container is made
of the layer, nor if one of the images is pinned or came from no registry. An outage never counts as gone. With [images]
release = "auto" remorad does the same by itself.

With --json it prints image, whole[], broken[] with digest, reason and gone, and removed[].`,
		Example: `  snapctl repair registry.example.com/redis:7
  snapctl repair --release registry.example.com/redis:7 && snapctl pull registry.example.com/redis:7`,
		Args: exactly(1, "one image"),
		RunE: func(cmd *cobra.Command, args []string) error { return a.repair(cmd.Context(), args[0], release) },
	}
	c.Flags().BoolVar(&release, "release", false, "remove the images of which a layer is no longer anywhere")
	return c
}

func (a *app) repair(ctx context.Context, image string, release bool) error {
	ref, err := normalize(image)
	if err != nil {
		return err
	}
	result := &repairedImage{Image: ref, Whole: []digest.Digest{}, Broken: []*control.RepairStep{}, Removed: []string{}}
	_, err = ask(a, func(c *control.Client) (struct{}, error) {
		return struct{}{}, c.Repair(ctx, &control.RepairRequest{Image: ref, Release: release}, func(step *control.RepairStep) {
			switch {
			case step.Removed != "":
				result.Removed = append(result.Removed, step.Removed)
				a.note("removed  %s", step.Removed)
			case step.Reason != "":
				result.Broken = append(result.Broken, step)
				a.note("%s  broken: %s", short(step.Digest), step.Reason)
			default:
				result.Whole = append(result.Whole, step.Digest)
				a.note("%s  whole", short(step.Digest))
			}
		})
	})
	if len(result.Whole)+len(result.Broken) == 0 && err != nil {
		return err // nothing was done
	}
	perr := a.print(result, func(w io.Writer) {
		fmt.Fprintf(w, "%s: %d layers whole, %d broken, %d images removed\n", ref, len(result.Whole), len(result.Broken), len(result.Removed))
	})
	return errors.Join(err, perr)
}
