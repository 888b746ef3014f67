package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev/mounts"
	"github.com/remora-storage/remora/cmd/internal/cli"
	"github.com/remora-storage/remora/cmd/internal/control"
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

// mkfsOf has the commands that make file systems. None discards first: a new volume is empty.
var mkfsOf = map[string][]string{
	"ext4":  {"mkfs.ext4", "-q", "-E", "nodiscard"},
	"xfs":   {"mkfs.xfs", "-q", "-K"},
	"btrfs": {"mkfs.btrfs", "-q", "-K"},
}

func (a *app) mountVolume(ctx context.Context, req control.AttachVolumeRequest, dir, fs, options string) error {
	if fs != "" && mkfsOf[fs] == nil {
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
	if where, err := mountsOf(v.Device); err != nil {
		return err
	} else if len(where) > 0 {
		real, err := filepath.EvalSymlinks(dir)
		if err == nil && where[0] == real {
			return a.printMounted(v, dir, "is mounted on")
		}
		return fmt.Errorf("%s is mounted on %s", v.Name, where[0])
	}
	options = mountOptions(options, v.ReadOnly)
	if v.FS, err = a.fileSystem(ctx, req.VolumeRequest, reply, fs); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if v.FS == "ext4" && !v.ReadOnly { // it may have been resized while it was not mounted
		if err := growExt4(ctx, v.Device); err != nil {
			return err
		}
	}
	if skip := noRecovery[v.FS]; v.ReadOnly && skip != "" {
		options += "," + skip
	}
	if err := command(ctx, "mount", "-t", v.FS, "-o", options, v.Device, dir); err != nil {
		return err
	}
	if v.FS != "ext4" && !v.ReadOnly {
		if err := growFS(ctx, v.FS, v.Device, dir); err != nil {
			return err
		}
	}
	return a.printMounted(v, dir, "mounted on")
}

// noRecovery has the options by which a file system is mounted as it is, though its log could be replayed: that would
// write.
var noRecovery = map[string]string{"ext4": "noload", "xfs": "norecovery", "btrfs": "rescue=nologreplay"}

// mountOptions puts what holds for every volume before what the user asks for: of options that contradict each other mount(8)
// takes the last. A volume's bytes come from a store that others may write to, so devices and set-user-ID programs on it count
// only where the user says so.
func mountOptions(asked string, readOnly bool) string {
	options := "nodev,nosuid"
	if readOnly {
		options += ",ro"
	}
	if asked != "" {
		options += "," + asked
	}
	return options
}

func (a *app) printMounted(v *control.Volume, dir, how string) error {
	return a.print(mounted{*v, dir}, func(w io.Writer) { fmt.Fprintf(w, "%s (%s, %s) %s %s\n", v.Name, v.Device, v.FS, how, dir) })
}

// fileSystem returns which file system a volume has. A volume that nobody has ever written to gets one.
func (a *app) fileSystem(ctx context.Context, req control.VolumeRequest, reply *control.AttachVolumeReply, want string) (string, error) {
	v := reply.Volume
	has, err := signature(ctx, v.Device)
	if err != nil {
		return "", err
	}
	switch {
	case has != "" && mkfsOf[has] == nil:
		return "", fmt.Errorf("%s holds %s, not a file system that can be mounted", v.Name, has)
	case has == "" && !reply.Fresh:
		return "", fmt.Errorf("%s has been written to, and no file system is known on it; make one on %s yourself if its content is of no use",
			v.Name, v.Device)
	case has != "" && want != "" && has != want:
		return "", fmt.Errorf("%s holds %s, not %s", v.Name, has, want)
	case has == "":
		if has = want; has == "" {
			has = "ext4"
		}
		mkfs := mkfsOf[has]
		if err := command(ctx, mkfs[0], append(mkfs[1:], v.Device)...); err != nil {
			return "", err
		}
		if err := syncDevice(v.Device); err != nil {
			return "", err
		}
	}
	if v.FS == has || v.ReadOnly {
		return has, nil
	}
	_, err = ask(a, func(c *control.Client) (struct{}, error) {
		return struct{}{}, c.SetVolumeFS(ctx, &control.SetVolumeFSRequest{VolumeRequest: control.VolumeRequest{Name: v.Name, Store: v.Store},
			FS: has})
	})
	return has, err
}

// signature returns what a device begins with, "" if nothing is known there.
func signature(ctx context.Context, dev string) (string, error) {
	out, err := exec.CommandContext(ctx, "blkid", "-p", "-o", "value", "-s", "TYPE", dev).Output()
	var exit *exec.ExitError
	switch {
	case err == nil && strings.TrimSpace(string(out)) == "":
		return "a partition table", nil
	case err == nil:
		return strings.TrimSpace(string(out)), nil
	case errors.As(err, &exit) && exit.ExitCode() == 2:
		return "", nil
	}
	return "", fmt.Errorf("what %s holds cannot be told: blkid: %w", dev, err)
}

func syncDevice(dev string) error {
	f, err := os.OpenFile(dev, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// command runs a program whose output matters only if it fails.
func command(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// mountsOf returns where a device is mounted.
func mountsOf(dev string) (dirs []string, err error) {
	on, err := mounts.On(dev)
	if err != nil {
		return nil, err
	}
	all, err := mounts.Own()
	for _, m := range all {
		if on(m) {
			dirs = append(dirs, m.Dir)
		}
	}
	return dirs, err
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
		dirs, err := mountsOf(v.Device)
		if err != nil {
			return err
		}
		for i := len(dirs) - 1; i >= 0; i-- {
			if err := unmount(ctx, dirs[i]); err != nil {
				return err
			}
			a.note("%s unmounted", dirs[i])
			done.Dirs = append(done.Dirs, dirs[i])
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

// unmount takes a mount away. What it was used by a moment ago may take another to be gone: a file that was closed is
// open in every process that is about to start.
func unmount(ctx context.Context, dir string) (err error) {
	mounts.While(ctx, time.Second, func() bool {
		err = unix.Unmount(dir, 0)
		return errors.Is(err, unix.EBUSY)
	})
	if err != nil {
		return &os.PathError{Op: "unmount", Path: dir, Err: err}
	}
	return nil
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
				dirs, err := mountsOf(v.Device)
				if err == nil && len(dirs) > 0 {
					err = growFS(ctx, v.FS, v.Device, dirs[0])
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

// growExt4 makes an ext4 that is not mounted as large as its device, which needs no more rights than writing to it.
func growExt4(ctx context.Context, dev string) error {
	err := command(ctx, "resize2fs", dev)
	if err == nil {
		return nil // it was so large already
	}
	if err := command(ctx, "e2fsck", "-fp", dev); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() > 1 { // 1: corrected
			return err
		}
	}
	return command(ctx, "resize2fs", dev)
}

// growFS makes a mounted file system as large as its device. One that is stays as it is.
func growFS(ctx context.Context, fs, dev, dir string) error {
	switch fs {
	case "ext4":
		return command(ctx, "resize2fs", dev)
	case "xfs":
		return command(ctx, "xfs_growfs", "-d", dir)
	case "btrfs":
		return command(ctx, "btrfs", "filesystem", "resize", "max", dir)
	}
	return fmt.Errorf("%s: not a file system that can grow", fs)
}
