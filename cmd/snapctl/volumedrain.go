package main

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/remora-storage/remora/cmd/internal/cli"
	"github.com/remora-storage/remora/cmd/internal/control"
)

// drained is what drain prints of a volume with --json.
type drained struct {
	Name   string   `json:"name"`
	Store  string   `json:"store"`
	Dirs   []string `json:"dirs"`   // that were unmounted
	Done   bool     `json:"done"`   // the store has everything, and nobody owns it
	Device string   `json:"device"` // that is still here
	Reason string   `json:"reason,omitempty"`
}

func drainCommand(a *app) *cobra.Command {
	timeout := time.Minute
	c := &cobra.Command{
		Use:   "drain",
		Short: "Unmount and detach all volumes of this node, as before a reboot",
		Long: `drain unmounts the volumes of this node wherever remorad's mount namespace has them, which is the host's, and detaches all
of them side by side. remora-drain.service runs it when the machine shuts down.

What the store does not have within --timeout stays in the journal: remorad stores it after its next start, and gives the
volume up then. drain exits with 1 if a device is still there, since it is in use, and names its users. With --json it prints
volumes[] with name, store, dirs[] that were unmounted, done (nobody owns it now), device that is still there, reason.`,
		Args: exactly(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if timeout <= 0 {
				return cli.Usagef("--timeout %s: want a time above 0", timeout)
			}
			ctx, stop := context.WithTimeout(cmd.Context(), timeout)
			defer stop()
			return drain(ctx, a)
		},
	}
	c.Flags().DurationVar(&timeout, "timeout", timeout, "go on after this `time` with what the store lacks in the journal")
	return c
}

func drain(ctx context.Context, a *app) error {
	attached := func(ctx context.Context) ([]control.Volume, error) {
		reply, err := ask(a, func(c *control.Client) (*control.AttachedReply, error) { return c.AttachedVolumes(ctx) })
		if err != nil {
			return nil, err
		}
		return reply.Volumes, nil
	}
	volumes, err := attached(ctx)
	if err != nil {
		return err
	}
	all := make([]drained, len(volumes))
	var working sync.WaitGroup
	for i, v := range volumes {
		working.Go(func() { all[i] = drainOne(ctx, a, v) })
	}
	working.Wait()
	left, err := attached(context.WithoutCancel(ctx)) // which asks no store
	if err != nil {
		return err
	}
	inUse := 0
	for i, v := range volumes {
		for _, l := range left {
			if l.ID == v.ID && l.Device != "" {
				all[i].Device = l.Device
				inUse++
			}
		}
	}
	if err := a.print(map[string][]drained{"volumes": all}, func(w io.Writer) {
		for _, d := range all {
			switch {
			case d.Done:
				fmt.Fprintf(w, "%s detached\n", d.Name)
			case d.Device != "":
				fmt.Fprintf(w, "%s is still %s: %s\n", d.Name, d.Device, d.Reason)
			default:
				fmt.Fprintf(w, "%s is left to its journal, and stored after the next start: %s\n", d.Name, d.Reason)
			}
		}
	}); err != nil {
		return err
	}
	if inUse > 0 {
		return fmt.Errorf("%d volumes are in use", inUse)
	}
	return nil
}

// drainOne unmounts one volume and detaches it. What waits for the store when ctx ends goes on without it.
func drainOne(ctx context.Context, a *app, v control.Volume) (d drained) {
	d = drained{Name: v.Name, Store: v.Store, Dirs: []string{}}
	req := &control.UnmountVolumeRequest{VolumeRequest: control.VolumeRequest{Name: v.Name, Store: v.Store}}
	_, err := ask(a, func(c *control.Client) (*control.UnmountVolumeReply, error) {
		return c.UnmountVolume(ctx, req, func(r *control.UnmountVolumeReply) {
			if r.Unmounted != "" {
				d.Dirs = append(d.Dirs, r.Unmounted)
			} else {
				d.Reason = r.Reason
			}
		})
	})
	switch {
	case err == nil:
		d.Done, d.Reason = true, ""
	case ctx.Err() == nil || d.Reason == "":
		d.Reason = err.Error()
	}
	return d
}
