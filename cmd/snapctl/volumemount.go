package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/remora-storage/remora/cmd/internal/cli"
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
	Name string   `json:"name"`
	Dirs []string `json:"dirs"`
	*control.DetachVolumeReply
}

func (a *app) volumeMountCommand() *cobra.Command {
	req := control.AttachVolumeRequest{}
	fs, options := "", ""
	c := &cobra.Command{
		Use:   "mount NAME DIR",
		Short: "Attach a volume and mount its file system",
		Long: `mount attaches a volume and mounts it on a directory, which is made if need be. A volume that was never written to gets a
file system first: ext4, or what --fs says. mount never formats a volume that was
written to: if it finds no file system there that it knows, it fails.

Device nodes and set-user-ID programs on a volume have no effect: it is mounted nodev,nosuid, because everyone who can
write to its store could put them there and so become root here. "-o dev,suid", or one of the two, allows them, for a
volume that is a root file system.`,
		Args: exactly(2, "a NAME and a DIR"),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Name = args[0]
			return a.mountVolume(cmd.Context(), req, args[1], fs, options)
		},
	}
	attachFlags(c, &req)
	c.Flags().StringVar(&fs, "fs", "", "`kind` of the file system of a new volume: ext4 (default), xfs or btrfs")
	c.Flags().StringVarP(&options, "options", "o", "", "mount `options`, as for mount(8); nodev,nosuid come before them, so dev and suid "+
		"must be asked for")
	return c
}

func (a *app) mountVolume(ctx context.Context, req control.AttachVolumeRequest, dir, fs, options string) error {
	if fs != "" && !mount.Known(fs) {
		return cli.Usagef("--fs %s: want ext4, xfs or btrfs", fs)
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	reply, err := a.attachVolume(ctx, req)
	if err != nil {
		return err
	}
	v := reply.Volume
	if where, err := mount.On(v.Device); err != nil {
		return err
	} else if len(where) > 0 {
		real, err := filepath.EvalSymlinks(dir)
		if err == nil && where[0] == real {
			return a.printMounted(v, dir, "is mounted on")
		}
		return fmt.Errorf("%s is mounted on %s", v.Name, where[0])
	}
	kind, err := mount.Prepare(ctx, mount.Volume{Name: v.Name, Device: v.Device, ReadOnly: v.ReadOnly, Fresh: reply.Fresh}, fs,
		func(what string) { a.note("%s", what) })
	if err != nil {
		return err
	}
	if err := a.noteFileSystem(ctx, v, kind); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := mount.Mount(v.FS, v.Device, dir, options, v.ReadOnly); err != nil {
		return err
	}
	if v.FS != mount.Default && !v.ReadOnly && !mount.ReadOnly(options) { // an ext4 has grown before
		if err := mount.Grow(v.FS, v.Device, dir); err != nil {
			return fmt.Errorf("%s is mounted on %s, but has not grown: %w", v.Name, dir, err)
		}
	}
	return a.printMounted(v, dir, "mounted on")
}

func (a *app) printMounted(v *control.Volume, dir, how string) error {
	return a.print(mounted{*v, dir}, func(w io.Writer) { fmt.Fprintf(w, "%s (%s, %s) %s %s\n", v.Name, v.Device, v.FS, how, dir) })
}

// noteFileSystem has remorad note which file system a volume has, where it did not know.
func (a *app) noteFileSystem(ctx context.Context, v *control.Volume, kind string) error {
	known := v.FS
	v.FS = kind
	if known == kind || v.ReadOnly {
		return nil
	}
	_, err := ask(a, func(c *control.Client) (struct{}, error) {
		return struct{}{}, c.SetVolumeFS(ctx, &control.SetVolumeFSRequest{VolumeRequest: control.VolumeRequest{Name: v.Name, Store: v.Store},
			FS: kind})
	})
	return err
}

func (a *app) volumeUmountCommand() *cobra.Command {
	req := control.DetachVolumeRequest{}
	keep := false
	c := &cobra.Command{
		Use:   "umount NAME",
		Short: "Unmount a volume and detach it",
		Long: `umount unmounts a volume's file system wherever this mount namespace has it, and detaches the volume: it returns when the
store has everything. A volume that is not mounted is only detached. With --json one object is printed: name, dirs[] that
were unmounted, was_attached, done (it is detached).`,
		Args: exactly(1, "one NAME"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			req.Name = args[0]
			if req.Store, err = absStore(req.Store); err != nil {
				return err
			}
			return a.umountVolume(cmd.Context(), req, keep)
		},
	}
	storeFlag(c, &req.VolumeRequest)
	c.Flags().BoolVar(&keep, "keep-attached", false, "do not detach the volume")
	return c
}

func (a *app) umountVolume(ctx context.Context, req control.DetachVolumeRequest, keep bool) error {
	v, err := a.findAttached(ctx, req.VolumeRequest)
	if err != nil {
		return err
	}
	done := unmounted{Name: req.Name, Dirs: []string{}, DetachVolumeReply: &control.DetachVolumeReply{Was: v != nil}}
	if v != nil && v.Device != "" {
		if err := mount.Free(ctx, v.Device, func(dir string) {
			a.note("%s unmounted", dir)
			done.Dirs = append(done.Dirs, dir)
		}); err != nil {
			return err
		}
	}
	if keep {
		return a.print(done, func(io.Writer) {})
	}
	if done.DetachVolumeReply, err = a.detachVolume(ctx, req); err != nil {
		return err
	}
	return a.print(done, func(w io.Writer) { printDetached(w, req.Name, done.DetachVolumeReply) })
}

// findAttached returns a volume that has a device here, nil if it has none.
func (a *app) findAttached(ctx context.Context, req control.VolumeRequest) (*control.Volume, error) {
	disks, err := ask(a, func(c *control.Client) (*control.AttachedReply, error) { return c.AttachedVolumes(ctx) })
	if err != nil {
		return nil, err
	}
	for _, v := range disks.Volumes {
		if v.Name == req.Name && (req.Store == "" || v.Store == req.Store) {
			return &v, nil
		}
	}
	return nil, nil
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
			if v.Device != "" && v.FS != "" {
				dirs, err := mount.On(v.Device)
				if err == nil && len(dirs) > 0 {
					err = mount.Grow(v.FS, v.Device, dirs[0])
				}
				if err != nil {
					return fmt.Errorf("the volume has %s now, its file system has not grown; unmount it and mount it again: %w", size(v.Size), err)
				}
			}
			return a.print(v, func(w io.Writer) { fmt.Fprintf(w, "%s has %s\n", v.Name, size(v.Size)) })
		},
	}
	storeFlag(c, &req.VolumeRequest)
	return c
}
