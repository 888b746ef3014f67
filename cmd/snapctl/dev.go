package main

import "github.com/spf13/cobra"

func (a *app) devCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "dev",
		Short: "Serve files and memory as block devices",
		Long:  `dev makes block devices of files and of memory. They need no remorad.`,
	}
	c.AddCommand(a.devServeCommand())
	return c
}
