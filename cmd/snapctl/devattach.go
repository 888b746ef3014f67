package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/remora-storage/remora/cmd/internal/cli"
	"github.com/remora-storage/remora/cmd/internal/control"
)

func (a *app) devAttachCommand() *cobra.Command {
	req := control.AttachDiskRequest{}
	c := &cobra.Command{
		Use:   "attach FILE",
		Short: "Make a block device of a file, served by remorad",
		Long: `attach makes a block device of a regular file or a block device, and prints its path.

  truncate -s 10G disk.img
  dev=$(snapctl dev attach disk.img)
  mkfs.ext4 "$dev" && mount "$dev" /mnt

remorad serves it. When remorad is stopped, killed or upgraded, programs that use the device wait for the next
remorad, and no write that was acknowledged is lost. It stays until "snapctl dev detach". The file is read and written
past the page cache, so its file system must have direct I/O.

Attaching a file again prints the device that it has. With --json one object is printed: device, file, size_bytes,
sector_bytes, read_only.`,
		Args: exactly(1, "one FILE"),
		RunE: func(cmd *cobra.Command, args []string) error { return a.devAttach(cmd.Context(), req, args[0]) },
	}
	c.Flags().BoolVar(&req.ReadOnly, "read-only", false, "refuse writes")
	c.Flags().IntVar(&req.Sector, "sector", 4096, "`bytes` of a logical block, 512 or 4096")
	return c
}

func (a *app) devAttach(ctx context.Context, req control.AttachDiskRequest, file string) (err error) {
	if req.Sector != 512 && req.Sector != 4096 {
		return cli.Usagef("--sector %d: want 512 or 4096", req.Sector)
	}
	if req.File, err = filepath.Abs(file); err != nil {
		return err
	}
	if _, err := os.Stat(req.File); err != nil {
		return err
	}
	reply, err := ask(a, func(c *control.Client) (*control.Disk, error) { return c.AttachDisk(ctx, &req) })
	if err != nil {
		return err
	}
	return a.print(reply, func(w io.Writer) { fmt.Fprintln(w, reply.Device) })
}

func (a *app) devDetachCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "detach DEVICE | FILE",
		Short: "End a block device",
		Long: `detach ends a block device that remorad serves, named by its path or by its file. What was written to it
is on stable storage then. It is refused while the device is mounted or open, and names the users. A device that is not
attached is no error.`,
		Args: exactly(1, "one DEVICE or FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := filepath.Abs(args[0])
			if err != nil {
				return err
			}
			reply, err := ask(a, func(c *control.Client) (*control.DetachDiskReply, error) {
				return c.DetachDisk(cmd.Context(), &control.DetachDiskRequest{Name: name})
			})
			if err != nil {
				return err
			}
			return a.print(reply, func(w io.Writer) {
				if reply.Disk == nil {
					fmt.Fprintf(w, "%s is not attached\n", name)
					return
				}
				fmt.Fprintf(w, "%s (%s) detached\n", reply.Disk.Device, reply.Disk.File)
			})
		},
	}
}

func (a *app) devListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "ls",
		Short: "List the block devices that remorad serves",
		Long: `ls lists the block devices that remorad serves. With --json it prints disks[] with device, file, size_bytes,
sector_bytes, read_only, and failed where everything that uses the device fails.`,
		Args: exactly(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			reply, err := ask(a, func(c *control.Client) (*control.DisksReply, error) { return c.Disks(cmd.Context()) })
			if err != nil {
				return err
			}
			return a.print(reply, func(w io.Writer) {
				t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
				fmt.Fprintln(t, "DEVICE\tSIZE\tSECTOR\tMODE\tFILE")
				for _, d := range reply.Disks {
					mode := "read-write"
					if d.ReadOnly {
						mode = "read-only"
					}
					if d.Failed != "" {
						mode = "FAILED: " + d.Failed
					}
					fmt.Fprintf(t, "%s\t%s\t%d\t%s\t%s\n", d.Device, size(d.Size), d.Sector, mode, d.File)
				}
				t.Flush()
			})
		},
	}
}
