package main

import (
	"testing"

	"github.com/remora-storage/remora/cmd/internal/control"
)

// TestVolumes makes volumes in a directory, and everything with them that needs no block device.
func TestVolumes(t *testing.T) {
	d := newDaemon(t, "")
	ctx, store := t.Context(), "file:"+d.path("store")
	named := control.VolumeRequest{Name: "data"}
	_, err := d.CreateVolume(ctx, &control.CreateVolumeRequest{VolumeRequest: named, Size: 1 << 30})
	fails(t, err, "name a store: --store, or [volume] store")
	fails(t, d.InitNoStore(), "name a store")
	_, err = d.CreateVolume(ctx, &control.CreateVolumeRequest{VolumeRequest: control.VolumeRequest{Name: "No Name", Store: store},
		Size: 1 << 30})
	fails(t, err, "No Name")

	var steps []string
	step := func(s string) { steps = append(steps, s) }
	probing := &control.InitStoreRequest{Store: store, Probe: true}
	_, err = d.InitStore(ctx, probing, step)
	fails(t, err, "the store is not there")
	_, err = d.Volumes(ctx, &control.VolumesRequest{Store: store})
	fails(t, err, "the store is not there")
	for _, made := range []bool{true, false} {
		if r, err := d.InitStore(ctx, &control.InitStoreRequest{Store: store + "/"}, step); err != nil || r.Made != made || r.Store != store {
			t.Errorf("prepared: %+v, %v", r, err)
		}
	}
	if probe, err := d.InitStore(ctx, probing, step); err != nil || probe.Made || len(steps) == 0 {
		t.Errorf("probed: %+v, %v after %v", probe, err, steps)
	}
	for _, made := range []bool{true, false} {
		r, err := d.CreateVolume(ctx, &control.CreateVolumeRequest{VolumeRequest: control.VolumeRequest{Name: "data", Store: store},
			Size: 1 << 30, Class: "local"})
		if err != nil || r.Made != made || r.Size != 1<<30 || r.Class != "local" || r.Store != store || r.Here || r.Owner != "" {
			t.Errorf("created: %+v, %v", r, err)
		}
	}
	_, err = d.CreateVolume(ctx, &control.CreateVolumeRequest{VolumeRequest: control.VolumeRequest{Name: "data", Store: store}, Size: 2 << 30})
	fails(t, err, "data")

	for _, s := range []string{"", store} { // where this node has made one, it finds it
		all, err := d.Volumes(ctx, &control.VolumesRequest{Store: s})
		if err != nil || len(all.Volumes) != 1 || all.Volumes[0].Name != "data" {
			t.Errorf("listed of %q: %+v, %v", s, all, err)
		}
	}
	if all, err := d.AttachedVolumes(ctx); err != nil || len(all.Volumes) != 0 {
		t.Errorf("attached: %+v, %v", all, err)
	}
	details, err := d.InspectVolume(ctx, &named)
	if err != nil || details.Name != "data" || details.StoredObjects == 0 || details.StoreError != "" || details.JournalBytes != 0 {
		t.Errorf("inspected: %+v, %v", details, err)
	}
	if v, err := d.ResizeVolume(ctx, &control.ResizeVolumeRequest{VolumeRequest: named, Size: 2 << 30}); err != nil || v.Size != 2<<30 {
		t.Errorf("resized: %+v, %v", v, err)
	}
	_, err = d.ResizeVolume(ctx, &control.ResizeVolumeRequest{VolumeRequest: named, Size: 1 << 30})
	fails(t, err, "shrink")
	for want, req := range map[string]*control.MountVolumeRequest{
		"mnt is no absolute path":                       {VolumeRequest: named, Dir: "mnt"},
		`file system "ntfs": want ext4, xfs or btrfs`:   {VolumeRequest: named, Dir: "/mnt", FS: "ntfs"},
		`mount option "remount": not for a volume's fi`: {VolumeRequest: named, Dir: "/mnt", Options: "remount"},
	} {
		_, err := d.MountVolume(ctx, req, step)
		fails(t, err, want)
	}
	if r, err := d.UnmountVolume(ctx, &control.UnmountVolumeRequest{VolumeRequest: named}, func(*control.UnmountVolumeReply) {}); err != nil ||
		r.Was || !r.Detached || len(r.Dirs) > 0 {
		t.Errorf("unmounted, though it never was attached: %+v, %v", r, err)
	}
	if r, err := d.DetachVolume(ctx, &control.DetachVolumeRequest{VolumeRequest: named}, func(*control.DetachVolumeReply) {}); err != nil ||
		r.Was {
		t.Errorf("detached, though it never was attached: %+v, %v", r, err)
	}
	report, err := d.CheckVolume(ctx, &control.CheckVolumeRequest{VolumeRequest: named, Data: true, Repair: true}, step)
	if err != nil || len(report.Problems) != 0 || report.Name != "data" {
		t.Errorf("checked: %+v, %v", report, err)
	}
	if r, err := d.RebuildVolume(ctx, &control.RebuildVolumeRequest{VolumeRequest: named, Into: "again"}, step); err != nil ||
		r.Name != "again" || r.Size != 2<<30 {
		t.Errorf("rebuilt: %+v, %v", r, err)
	}
	for _, dry := range []bool{true, false} {
		if r, err := d.RemoveVolume(ctx, &control.RemoveVolumeRequest{VolumeRequest: named, DryRun: dry}); err != nil || !r.Was ||
			r.Objects == 0 {
			t.Errorf("removed (dry run: %v): %+v, %v", dry, r, err)
		}
	}
	if r, err := d.RemoveVolume(ctx, &control.RemoveVolumeRequest{VolumeRequest: named}); err != nil || r.Was {
		t.Errorf("removed again: %+v, %v", r, err)
	}
	_, err = d.InspectVolume(ctx, &named)
	fails(t, err, "data")
	_, err = d.AttachVolume(ctx, &control.AttachVolumeRequest{VolumeRequest: named}, func(string) {})
	fails(t, err, "data")

	// A store that is gone hides none of the others.
	if all, err := d.Volumes(ctx, &control.VolumesRequest{Store: "file:" + d.path("none")}); err != nil && len(all.Volumes) != 0 {
		t.Errorf("of a store that was never used: %+v, %v", all, err)
	}
}

// InitNoStore prepares no store.
func (d *testDaemon) InitNoStore() error {
	_, err := d.InitStore(d.t.Context(), &control.InitStoreRequest{}, func(string) {})
	return err
}

// TestConfiguredStore is for volumes that this node has never seen.
func TestConfiguredStore(t *testing.T) {
	dir := shortDir(t)
	d := newDaemon(t, "volume.store = \"file:"+dir+"/./store/\"\n")
	if err := d.InitNoStore(); err != nil {
		t.Fatal(err)
	}
	if all, err := d.Volumes(t.Context(), &control.VolumesRequest{}); err != nil || len(all.Volumes) != 0 {
		t.Errorf("listed: %+v, %v", all, err)
	}
	r, err := d.CreateVolume(t.Context(), &control.CreateVolumeRequest{VolumeRequest: control.VolumeRequest{Name: "v"}, Size: 1 << 20})
	if err != nil || r.Store != "file:"+dir+"/store" {
		t.Errorf("created: %+v, %v", r, err)
	}
	for key, text := range map[string]string{"memory": "lots", "journal": "much"} {
		_, err := tryDaemon(t, "volume."+key+" = \""+text+"\"\n")
		fails(t, err, "[volume] "+key)
	}
}

// TestSameName: of a name in two stores nothing is done without one, until only one of the volumes is left.
func TestSameName(t *testing.T) {
	d := newDaemon(t, "")
	ctx := t.Context()
	stores := []string{"file:" + d.path("a"), "file:" + d.path("b")}
	for _, store := range stores {
		if _, err := d.CreateVolume(ctx, &control.CreateVolumeRequest{VolumeRequest: control.VolumeRequest{Name: "data", Store: store},
			Size: 1 << 30}); err != nil {
			t.Fatal(err)
		}
	}
	named := control.VolumeRequest{Name: "data"}
	inspect := func() error {
		_, err := d.InspectVolume(ctx, &named)
		return err
	}
	remove := func(req control.VolumeRequest) error {
		_, err := d.RemoveVolume(ctx, &control.RemoveVolumeRequest{VolumeRequest: req})
		return err
	}
	for _, err := range []error{inspect(), remove(named)} {
		fails(t, err, "volume data: several volumes have this name; choose one with --store: "+stores[0]+" (id ")
		fails(t, err, stores[1]+" (id ")
	}
	detach := &control.DetachVolumeRequest{VolumeRequest: named}
	if r, err := d.DetachVolume(ctx, detach, func(*control.DetachVolumeReply) {}); err != nil || r.Was {
		t.Errorf("none is attached: %+v, %v", r, err)
	}
	if err := remove(control.VolumeRequest{Name: "data", Store: stores[0]}); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{inspect(), remove(named)} {
		if err != nil {
			t.Error(err)
		}
	}
	fails(t, inspect(), "this node does not know in which store it is")
}
