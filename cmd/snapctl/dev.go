package main

import "github.com/spf13/cobra"

func (a *app) devCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "dev",
		Short: "Serve files, memory and layers as block devices",
		Long: `dev makes block devices of files, of memory and of images' layers: served over NBD by the command itself
(serve), or files attached to this machine and served by remorad (attach, detach, ls).`,
	}
	c.AddCommand(a.devServeCommand(), a.devAttachCommand(), a.devDetachCommand(), a.devListCommand())
	return c
}
