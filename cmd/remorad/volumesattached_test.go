package main

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/grpc"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/cmd/internal/control"
	"github.com/remora-storage/remora/volume"
	"github.com/remora-storage/remora/volume/host"
	"github.com/remora-storage/remora/volume/node"
)

// volumeNode serves volumes as remorad does, and returns what serves them.
func volumeNode(t *testing.T) (*control.Client, *volumes, string) {
	t.Helper()
	dir := shortDir(t)
	cfg, err := readConfig(filepath.Join(dir, "none"), true)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Volume.Journal = "64MiB"
	h, err := openHost(dir, cfg, nil, discard())
	if err != nil {
		t.Fatal(err)
	}
	disks, err := openDisks(t.Context(), dir, wayOfDisks(dir, nil, discard()), false, &theHolder{}, h, discard())
	if err != nil {
		t.Fatal(err)
	}
	v := &volumes{host: h, disks: disks, node: node.New(), log: discard()}
	server := grpc.NewServer(controlOptions()...)
	controls{node: &nodeService{}, images: &imagesService{}, disks: &disksService{disks: disks, host: h}, volumes: v}.register(server)
	l, err := new(net.ListenConfig).Listen(t.Context(), "unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	c, closer, err := control.Dial(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		closer.Close()
		server.Stop()
		v.node.Close()
		for _, err := range []error{<-done, disks.Close(), h.Close()} {
			if err != nil {
				t.Error(err)
			}
		}
	})
	return c, v, dir
}

// TestAttachedVolume is about a volume that this node owns, without the block device that only root can make.
func TestAttachedVolume(t *testing.T) {
	c, v, dir := volumeNode(t)
	h := v.host
	ctx, store := t.Context(), "file:"+filepath.Join(dir, "store")
	named := control.VolumeRequest{Name: "data"}
	made, err := c.CreateVolume(ctx, &control.CreateVolumeRequest{VolumeRequest: control.VolumeRequest{Name: "data", Store: store},
		Size: 1 << 30, Class: "local"})
	if err != nil {
		t.Fatal(err)
	}
	attach := func() {
		t.Helper()
		s, err := h.Store(ctx, store)
		if err != nil {
			t.Fatal(err)
		}
		head, err := volume.Lookup(ctx, s, "data")
		if err != nil {
			t.Fatal(err)
		}
		dev, err := h.Attach(ctx, store, head, host.AttachOptions{Progress: func(string) {}})
		if err != nil {
			t.Fatal(err)
		}
		v.node.Adopt(head.ID, v.hands(store, head), true)
		p := blockdev.AlignedBuffer(volume.Block)
		p[0] = 1
		if err := dev.WriteAt(ctx, p, 0); err != nil {
			t.Fatal(err)
		}
	}
	attach()
	if all, err := c.AttachedVolumes(ctx); err != nil || len(all.Volumes) != 1 || all.Volumes[0].ID != made.ID || !all.Volumes[0].Here ||
		all.Volumes[0].Device != "" {
		t.Errorf("attached: %+v, %v", all, err)
	}
	if all, err := c.Volumes(ctx, &control.VolumesRequest{}); err != nil || len(all.Volumes) != 1 || !all.Volumes[0].Here {
		t.Errorf("listed: %+v, %v", all, err)
	}
	d, err := c.InspectVolume(ctx, &named)
	if err != nil || d.JournalBytes == 0 || d.Written != volume.Block || d.LeaseSeconds <= 0 || d.Journal == "" || !d.Here {
		t.Errorf("inspected: %+v, %v", d, err)
	}
	id, err := volume.ParseID(made.ID)
	if err != nil {
		t.Fatal(err)
	}
	if open, err := h.Volume(ctx, id); err != nil || open.SetFS(ctx, "making ext4") != nil {
		t.Errorf("its file system is not noted: %v", err)
	}
	_, err = c.MountVolume(ctx, &control.MountVolumeRequest{VolumeRequest: named, Dir: filepath.Join(dir, "mnt")}, func(string) {})
	fails(t, err, "it was detached meanwhile") // here it has no device
	if v, err := c.ResizeVolume(ctx, &control.ResizeVolumeRequest{VolumeRequest: named, Size: 2 << 30}); err != nil || v.Size != 2<<30 ||
		v.FS != "making ext4" {
		t.Errorf("resized: %+v, %v", v, err)
	}
	_, err = c.RemoveVolume(ctx, &control.RemoveVolumeRequest{VolumeRequest: named})
	fails(t, err, "data")
	if r, err := c.DetachVolume(ctx, &control.DetachVolumeRequest{VolumeRequest: named}, func(*control.DetachVolumeReply) {}); err != nil ||
		!r.Was {
		t.Errorf("detached: %+v, %v", r, err)
	}
	if d, err = c.InspectVolume(ctx, &named); err != nil || d.Here || d.FS != "making ext4" || d.Size != 2<<30 {
		t.Errorf("after that: %+v, %v", d, err)
	}
	// Given up with what only the journal has.
	attach()
	if r, err := c.DetachVolume(ctx, &control.DetachVolumeRequest{VolumeRequest: named, Abandon: true},
		func(*control.DetachVolumeReply) {}); err != nil || !r.Was {
		t.Errorf("abandoned: %+v, %v", r, err)
	}
	if all, err := c.AttachedVolumes(ctx); err != nil || len(all.Volumes) != 0 {
		t.Errorf("attached: %+v, %v", all, err)
	}
	if r, err := c.CheckVolume(ctx, &control.CheckVolumeRequest{VolumeRequest: named, Data: true}, func(string) {}); err != nil ||
		len(r.Problems) != 0 {
		t.Errorf("checked: %+v, %v", r, err)
	}
}

// TestSources opens what disks are made of, and nothing else.
func TestSources(t *testing.T) {
	_, v, dir := volumeNode(t)
	open := sourceOpener(v.host)
	file := filepath.Join(dir, "disk.img")
	if err := os.WriteFile(file, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	dev, err := open(t.Context(), fileSource+file, true)
	if err != nil {
		t.Fatal(err)
	}
	if dev.Size() != 1<<20 {
		t.Errorf("%d bytes", dev.Size())
	}
	if err := dev.Close(); err != nil {
		t.Error(err)
	}
	for source, want := range map[string]string{
		"nbd:x": "not known to this remorad", volumeSource + "short": "short", fileSource + filepath.Join(dir, "none"): "none",
		volumeSource + volume.NewID().String(): "",
	} {
		_, err := open(t.Context(), source, true)
		fails(t, err, want)
	}
}
