package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/remora-storage/remora/cmd/internal/control"
	"github.com/remora-storage/remora/volume/mount"
)

// mounted is what mount prints with --json.
type mounted struct {
	control.Volume
	Dir string `json:"dir"`
}

// unmounted is what umount prints with --json.
type unmounted struct {
	Name string `json:"name"`
	*control.UnmountVolumeReply
}

func (a *app) volumeMountCommand() *cobra.Command {
	req := control.MountVolumeRequest{}
	c := &cobra.Command{
		Use:   "mount NAME DIR",
		Short: "Attach a volume and mount its file system",
		Long: `mount attaches a volume and mounts it on a directory, which is made if need be. A volume that was never written to gets a
file system first: ext4, or what --fs says. mount never formats a volume that was
written to: if it finds no file system there that it knows, it fails. remorad does all this. If you interrupt mount, it goes on
without you; run mount again to wait for its end. A file system that was not made to its end is made again;
where somebody may have made one by hand since, only --fs makes one over it.

Device nodes and set-user-ID programs on a volume have no effect: it is mounted nodev,nosuid, because everyone who can
write to its store could put them there and so become root here. "-o dev,suid", or one of the two, allows them, for a
volume that is a root file system.`,
		Args: exactly(2, "a NAME and a DIR"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			req.Name = args[0]
			if req.Dir, err = filepath.Abs(args[1]); err != nil {
				return err
			}
			if req.Store, err = absStore(req.Store); err != nil {
				return err
			}
			return a.mountVolume(cmd.Context(), &req)
		},
	}
	attachFlags(c, &req.VolumeRequest, &req.AcceptLoss)
	c.Flags().StringVar(&req.FS, "fs", "", "`kind` of the file system of a new volume: ext4 (default), xfs or btrfs")
	c.Flags().StringVarP(&req.Options, "options", "o", "", "mount `options`, as for mount(8); nodev,nosuid come before them, so dev and suid "+
		"must be asked for")
	return c
}

func (a *app) mountVolume(ctx context.Context, req *control.MountVolumeRequest) error {
	reply, err := ask(a, func(c *control.Client) (*control.MountVolumeReply, error) {
		return c.MountVolume(ctx, req, func(what string) { a.note("%s", what) })
	})
	if err != nil {
		return err
	}
	v := reply.Volume
	if dirs, err := mount.On(v.Device); err != nil || !slices.Contains(dirs, resolved(reply.Dir)) {
		a.note("this process's mount namespace is not remorad's, where it is mounted, and does not show it")
	}
	return a.print(mounted{*v, reply.Dir}, func(w io.Writer) {
		fmt.Fprintf(w, "%s (%s, %s) mounted on %s\n", v.Name, v.Device, v.FS, reply.Dir)
	})
}

// resolved returns a path without symbolic links, as the kernel lists it.
func resolved(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	return path
}

func (a *app) volumeUmountCommand() *cobra.Command {
	req := control.UnmountVolumeRequest{}
	c := &cobra.Command{
		Use:   "umount NAME",
		Short: "Unmount a volume and detach it",
		Long: `umount unmounts a volume's file system wherever remorad's mount namespace has it, which is the host's, and detaches the volume:
it returns when the store has everything. A volume that is not mounted is only detached. With --json one object is printed: name,
dirs[] that were unmounted, was_attached, detached.`,
		Args: exactly(1, "one NAME"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			req.Name = args[0]
			if req.Store, err = absStore(req.Store); err != nil {
				return err
			}
			return a.umountVolume(cmd.Context(), &req)
		},
	}
	storeFlag(c, &req.VolumeRequest)
	c.Flags().BoolVar(&req.Keep, "keep-attached", false, "do not detach the volume")
	return c
}

func (a *app) umountVolume(ctx context.Context, req *control.UnmountVolumeRequest) error {
	late := a.tellsLate()
	reply, err := ask(a, func(c *control.Client) (*control.UnmountVolumeReply, error) {
		return c.UnmountVolume(ctx, req, func(r *control.UnmountVolumeReply) {
			if r.Unmounted != "" {
				a.note("%s unmounted", r.Unmounted)
			} else {
				late(r.AtRisk, r.Reason)
			}
		})
	})
	if err != nil {
		return err
	}
	return a.print(unmounted{req.Name, reply}, func(w io.Writer) {
		if reply.Detached {
			printDetached(w, req.Name, reply.Was)
		}
	})
}

func (a *app) volumeResizeCommand() *cobra.Command {
	req := control.ResizeVolumeRequest{}
	c := &cobra.Command{
		Use:   "resize NAME SIZE",
		Short: "Make a volume and its file system larger",
		Long: `resize makes a volume and the file system on it larger. A mounted file system grows immediately, any other at its next
mount. Volumes do not shrink.`,
		Args: exactly(2, "a NAME and a SIZE"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			req.Name = args[0]
			if req.Size, err = parseSize(args[1]); err != nil {
				return err
			}
			if req.Store, err = absStore(req.Store); err != nil {
				return err
			}
			ctx := cmd.Context()
			v, err := ask(a, func(c *control.Client) (*control.Volume, error) { return c.ResizeVolume(ctx, &req) })
			if err != nil {
				return err
			}
			return a.print(v, func(w io.Writer) { fmt.Fprintf(w, "%s has %s\n", v.Name, size(v.Size)) })
		},
	}
	storeFlag(c, &req.VolumeRequest)
	return c
}
