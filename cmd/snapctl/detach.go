package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/remora-storage/remora/cmd/internal/cli"
	"github.com/remora-storage/remora/cmd/internal/control"
)

func (a *app) detachCommand() *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use:   "detach --all",
		Short: "Unmount all lazy layers",
		Long: `detach --all ends all mounts on purpose: it unmounts every layer and ends what the mounts depend
on. Stopping remorad does not do that: mounts stay, and their readers wait for the next
remorad. Use it before remorad is removed from a node, or before its --root is.

It fails while a container uses a layer, and names the containers. Nothing that was pulled is
lost: the next start of a container mounts its layers again.`,
		Args: exactly(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !all {
				return cli.Usage(errors.New("detach needs --all; to detach one image's layers, remove it with ctr images rm --sync IMAGE"))
			}
			return a.detach(cmd.Context())
		},
	}
	c.Flags().BoolVar(&all, "all", false, "detach everything")
	return c
}

func (a *app) detach(ctx context.Context) error {
	reply, err := ask(a, func(c *control.Client) (*control.DetachReply, error) { return c.Detach(ctx) })
	if err != nil {
		return err
	}
	return a.print(reply, func(w io.Writer) { fmt.Fprintf(w, "%d layers detached\n", reply.Layers) })
}
