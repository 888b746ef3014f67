package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/remora-storage/remora/cmd/internal/control"
)

func (a *app) volumeAttachCommand() *cobra.Command {
	req := control.AttachVolumeRequest{}
	c := &cobra.Command{
		Use:   "attach NAME",
		Short: "Make a block device of a volume",
		Long: `attach makes this node the owner of a volume and prints the path of its block device, which stays until "detach".
remorad may be stopped, killed or upgraded meanwhile: programs wait, and lose nothing.

If another node owns the volume, attach waits until that node's lease has run out, and fails if it is renewed. The last
owner of a volume of class local may have flushed writes that the store lacks. Then another node needs --accept-loss, and
the volume returns to its last commit.

Attaching a volume that is attached here prints its device.`,
		Args: exactly(1, "one NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Name = args[0]
			reply, err := a.attachVolume(cmd.Context(), req)
			if err != nil {
				return err
			}
			return a.print(reply.Volume, func(w io.Writer) { fmt.Fprintln(w, reply.Volume.Device) })
		},
	}
	attachFlags(c, &req.VolumeRequest, &req.AcceptLoss)
	return c
}

func attachFlags(c *cobra.Command, req *control.VolumeRequest, acceptLoss *bool) {
	storeFlag(c, req)
	c.Flags().BoolVar(acceptLoss, "accept-loss", false,
		"attach even if only another node's journal has some flushed writes, and lose these")
}

func (a *app) attachVolume(ctx context.Context, req control.AttachVolumeRequest) (_ *control.AttachVolumeReply, err error) {
	if req.Store, err = absStore(req.Store); err != nil {
		return nil, err
	}
	return ask(a, func(c *control.Client) (*control.AttachVolumeReply, error) {
		return c.AttachVolume(ctx, &req, func(what string) { a.note("%s", what) })
	})
}

func (a *app) volumeDetachCommand() *cobra.Command {
	req := control.DetachVolumeRequest{}
	timeout := time.Duration(0)
	c := &cobra.Command{
		Use:   "detach NAME",
		Short: "Detach a volume and give it up",
		Long: `detach ends a volume's block device and gives the volume up when its store has everything that was written. If the store
is unreachable, detach waits and says why. If you interrupt it, the node goes on without you; run detach again to wait for its
end, or attach to keep the volume. It is refused while the device is mounted or open, and names the users. A volume that is
not attached here is no error.

--abandon-to-journal does not wait: what the store does not have stays in this node's journal, and is there again when
the volume is attached on this node. If another node attaches it first, that node goes on without these writes.`,
		Args: exactly(1, "one NAME"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			req.Name = args[0]
			ctx := cmd.Context()
			if timeout > 0 {
				var stop context.CancelFunc
				ctx, stop = context.WithTimeout(ctx, timeout)
				defer stop()
			}
			reply, err := a.detachVolume(ctx, req)
			if err != nil {
				return err
			}
			return a.print(reply, func(w io.Writer) { printDetached(w, req.Name, reply.Was) })
		},
	}
	storeFlag(c, &req.VolumeRequest)
	c.Flags().BoolVar(&req.Abandon, "abandon-to-journal", false, "do not wait for the store")
	c.Flags().DurationVar(&timeout, "timeout", 0, "give up after this `time`; 0 waits")
	return c
}

func printDetached(w io.Writer, name string, was bool) {
	if was {
		fmt.Fprintf(w, "%s detached\n", name)
	} else {
		fmt.Fprintf(w, "%s is not attached here\n", name)
	}
}

func (a *app) detachVolume(ctx context.Context, req control.DetachVolumeRequest) (_ *control.DetachVolumeReply, err error) {
	if req.Store, err = absStore(req.Store); err != nil {
		return nil, err
	}
	late := a.tellsLate()
	return ask(a, func(c *control.Client) (*control.DetachVolumeReply, error) {
		return c.DetachVolume(ctx, &req, func(r *control.DetachVolumeReply) { late(r.AtRisk, r.Reason) })
	})
}

// tellsLate returns what tells how much the store does not have yet, and why, when that has changed.
func (a *app) tellsLate() func(atRisk int64, reason string) {
	said := ""
	return func(atRisk int64, reason string) {
		now := fmt.Sprintf("%s are not in the store yet", size(atRisk))
		if reason != "" {
			now += ": " + reason
		}
		if now != said {
			a.note("%s", now)
		}
		said = now
	}
}
