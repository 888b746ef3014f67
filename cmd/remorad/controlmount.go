package main

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"

	"google.golang.org/grpc"

	controlv1 "github.com/remora-storage/remora/cmd/control/v1"
	"github.com/remora-storage/remora/volume"
	"github.com/remora-storage/remora/volume/host"
	"github.com/remora-storage/remora/volume/mount"
	"github.com/remora-storage/remora/volume/node"
)

// MountVolume attaches a volume and mounts its file system. What it has begun goes on without its caller.
func (v *volumes) MountVolume(
	req *controlv1.MountVolumeRequest, stream grpc.ServerStreamingServer[controlv1.MountVolumeResponse],
) error {
	if !filepath.IsAbs(req.GetDir()) {
		return invalid("%s is no absolute path", req.GetDir())
	}
	if fs := req.GetFs(); fs != "" && !mount.Known(fs) {
		return invalid("file system %q: want ext4, xfs or btrfs", fs)
	}
	if err := mount.CheckOptions(req.GetOptions()); err != nil {
		return invalid("%v", err)
	}
	ctx := stream.Context()
	tell := func(what string) {
		_ = stream.Send(&controlv1.MountVolumeResponse{Step: text(what)}) // the end will say that the caller is gone
	}
	t, err := v.attach(ctx, req, req.GetAcceptLoss(), tell)
	if err != nil {
		return err
	}
	place := mount.Place{Dir: filepath.Clean(req.GetDir()), FS: req.GetFs(), Options: req.GetOptions()}
	what := fmt.Sprintf("mounted on %s (file system %q, options %q)", place.Dir, place.FS, place.Options)
	err = v.onDevice(ctx, t.id, what, mount.Task{Bring: &place}, tell)
	if err != nil {
		return err
	}
	open, err := v.host.Volume(ctx, t.id)
	if err != nil {
		return err
	}
	return stream.Send(&controlv1.MountVolumeResponse{Volume: v.describe(t.url, open.Head()), Dir: text(place.Dir)})
}

// onDevice does something with a volume's device, in a process of its own, or joins what is doing that.
func (v *volumes) onDevice(ctx context.Context, id volume.ID, what string, t mount.Task, tell func(string)) error {
	return v.node.Run(ctx, id, node.Job{What: what, Do: func(ctx context.Context, say func(string)) error {
		k := v.disks.Find(sourceOf(id))
		switch {
		case k.Path == "":
			return node.ErrDetachedMeanwhile
		case k.Dead || t.Free: // the volume need not work, or be this node's
			t.Volume = mount.Volume{Name: id.String(), Device: k.Path}
		default:
			open, err := v.host.Volume(ctx, id)
			if err != nil {
				return err
			}
			h := open.Head()
			t.Volume = mount.Volume{
				Name: h.Name, Device: k.Path, ReadOnly: k.ReadOnly, Sector: k.Sector, Fresh: open.Fresh(), FS: h.FS,
				Note: open.SetFS, Store: open.Commit,
			}
		}
		if t.Free {
			defer host.Quiet(v.host, id, mount.Unused(k.Path))()
		}
		return mount.Apart(ctx, exec.Command(ownProgram, onDeviceCommand), t, say)
	}}, tell)
}

const (
	ownProgram      = "/proc/self/exe" // the one that runs, whatever was installed since
	onDeviceCommand = "on-device"
)

// finish makes a file system again that was not made to its end, before people get the device. One that somebody may have made there
// since is left as it is, and tell is told.
func (v *volumes) finish(ctx context.Context, id volume.ID, tell func(string)) error {
	open, err := v.host.Volume(ctx, id)
	if err != nil || mount.HalfMade(open.Head().FS) == "" {
		return err
	}
	return v.onDevice(ctx, id, "given the file system that was not made to its end", mount.Task{Finish: true}, tell)
}

// grow makes the file system of a volume that is mounted as large as its device.
func (v *volumes) grow(ctx context.Context, id volume.ID) error {
	if device, _ := v.device(id); device == "" {
		return nil // it grows when it is mounted next
	}
	return v.onDevice(ctx, id, "grown", mount.Task{Grow: true}, func(string) {})
}

// UnmountVolume unmounts a volume wherever this mount namespace has it, and gives it up.
func (v *volumes) UnmountVolume(
	req *controlv1.UnmountVolumeRequest, stream grpc.ServerStreamingServer[controlv1.UnmountVolumeResponse],
) error {
	ctx := stream.Context()
	t, ok, err := v.ownTarget(ctx, req)
	if err != nil {
		return err
	}
	end := &controlv1.UnmountVolumeResponse{Done: true, WasAttached: ok, Detached: !ok}
	if !ok {
		return stream.Send(end)
	}
	if device, _ := v.device(t.id); device != "" {
		if err := v.onDevice(ctx, t.id, "unmounted", mount.Task{Free: true}, func(dir string) {
			end.Dirs = append(end.Dirs, text(dir))
			_ = stream.Send(&controlv1.UnmountVolumeResponse{Unmounted: text(dir)}) // the end will say that the caller is gone
		}); err != nil {
			return err
		}
	}
	if req.GetKeepAttached() {
		return stream.Send(end)
	}
	end.WasAttached, err = v.giveUp(ctx, t.id, v.node.Detach, func(atRisk int64, reason string) error {
		return stream.Send(&controlv1.UnmountVolumeResponse{AtRiskBytes: atRisk, Reason: reason})
	})
	if err != nil {
		return err
	}
	end.Detached = true
	return stream.Send(end)
}
