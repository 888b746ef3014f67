package main

import (
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	controlv1 "github.com/remora-storage/remora/cmd/control/v1"
	"github.com/remora-storage/remora/cmd/internal/control"
	"github.com/remora-storage/remora/volume"
)

// TestVolumeStore tries and prepares stores, and makes their URLs what remorad understands.
func TestVolumeStore(t *testing.T) {
	u := newUser(t)
	f := newRemorad(u)
	t.Chdir(u.home)
	f.set(func() {
		f.fresh, f.steps, f.warnings = true, []string{"racing writers"}, []string{"objects are versioned"}
	})
	r := u.run("volume", "init", "file:store")
	if want := "file:" + u.path("store") + " is ready for volumes\n  warning: objects are versioned\n"; r.ok() != want {
		t.Errorf("said %q, want %q", r.stdout, want)
	}
	contains(t, r.stderr, "racing writers")
	f.set(func() { f.fresh, f.warnings = false, nil })
	contains(t, u.run("volume", "init", "s3://bucket/p?endpoint=http://x").ok(),
		"s3://bucket/p?endpoint=http://x was ready for volumes already")
	contains(t, u.run("volume", "probe", "file:/store").ok(), "file:/store keeps what volumes need")
	if all := requests[*controlv1.InitStoreRequest](f); len(all) != 3 || all[0].Probe || !all[2].Probe {
		t.Errorf("asked for %v", all)
	}
	f.set(func() { f.refuse["InitStoreRequest"] = refusal("two writers won") })
	u.run("volume", "init", "file:/store").fails(1, "two writers won")
	for url, want := range map[string]string{"/store": "for a directory file:/store", "ftp://x": `store "ftp://x"`, "file:": `store "file:"`,
		"file": `store "file"`} {
		for _, args := range [][]string{{"init", url}, {"probe", url}, {"create", "v", "1G", "--store", url}, {"ls", "--store", url},
			{"inspect", "v", "--store", url},
			{"attach", "v", "--store", url}, {"detach", "v", "--store", url}, {"mount", "v", "/mnt", "--store", url},
			{"umount", "v", "--store", url},
			{"resize", "v", "1G", "--store", url}, {"rm", "v", "--store", url}, {"fsck", "v", "--store", url}, {"bench", "--store", url}} {
			u.run(append([]string{"volume"}, args...)...).fails(2, want)
		}
	}
}

// TestVolumeLife makes, lists, attaches, resizes, detaches and removes a volume.
func TestVolumeLife(t *testing.T) {
	u := newUser(t)
	f := newRemorad(u)
	for want, args := range map[string][]string{
		`size "big"`: {"create", "v", "big"}, `size "0"`: {"resize", "v", "0"},
		"want whole seconds": {"create", "v", "1G", "--max-age", "1500ms"},
		"--max-age -1s":      {"create", "v", "1G", "--max-age", "-1s"}, "a NAME and a SIZE": {"create", "v"},
	} {
		u.run(append([]string{"volume"}, args...)...).fails(2, want)
	}
	contains(t, u.run("volume", "create", "--store", "file:/s", "--class", "local", "--max-age", "10s", "data", "10G").ok(),
		"data created: 10GiB, class local, in file:/s")
	if r := last[*controlv1.CreateVolumeRequest](t, f); r.SizeBytes != 10<<30 || r.MaxAge.AsDuration() != 10*time.Second {
		t.Errorf("asked for %v", r)
	}
	contains(t, u.run("volume", "create", "data", "10G").ok(), "data exists")
	f.set(func() {
		f.volumes = append(f.volumes, &controlv1.Volume{Name: "b", Owner: "n1"}, &controlv1.Volume{Name: "c", Here: true},
			&controlv1.Volume{Name: "d", Device: "/dev/loop3", Here: true}, &controlv1.Volume{Name: "e", Failed: "fenced"},
			&controlv1.Volume{Store: "file:/gone", Error: "it is gone"})
	})
	contains(t, u.run("volume", "ls").ok(), "data  10GiB", "no", "node n1", "this node, no device", "/dev/loop3", "FAILED: fenced",
		"it is gone", "file:/gone")
	if all := decode[control.VolumesReply](u.run("--json", "volume", "ls")); len(all.Volumes) != 6 {
		t.Errorf("as JSON: %+v", all)
	}
	f.set(func() { f.volumes[0].Device, f.steps = "/dev/loop1", []string{"the lease of node n1"} })
	r := u.run("volume", "attach", "--accept-loss", "data")
	if r.ok() != "/dev/loop1\n" {
		t.Errorf("printed %q", r.stdout)
	}
	contains(t, r.stderr, "the lease of node n1")
	if !last[*controlv1.AttachVolumeRequest](t, f).AcceptLoss {
		t.Error("--accept-loss was not passed on")
	}
	u.run("volume", "attach", "none").fails(1, "volume none: not found")
	contains(t, u.run("volume", "resize", "data", "20G").ok(), "data has 20GiB")
	f.set(func() { f.steps = []string{"no route", "no route", ""} })
	r = u.run("volume", "detach", "--abandon-to-journal", "--timeout", "1m", "data")
	contains(t, r.ok(), "data detached")
	if want := "1MiB are not in the store yet: no route\n1MiB are not in the store yet\n"; r.stderr != want {
		t.Errorf("said %q, want %q", r.stderr, want)
	}
	if !last[*controlv1.DetachVolumeRequest](t, f).AbandonToJournal {
		t.Error("--abandon-to-journal was not passed on")
	}
	contains(t, u.run("volume", "detach", "data").ok(), "data is not attached here")
	contains(t, u.run("volume", "rm", "--dry-run", "data").ok(), "data: 3 objects, 5MiB would be deleted from file:/s")
	contains(t, u.run("volume", "rm", "data").ok(), "data: 3 objects, 5MiB deleted from file:/s")
	contains(t, u.run("volume", "rm", "data").ok(), "there is no volume data")
}

// TestVolumeInspect tells all about a volume that is attached here, and about one whose store is away.
func TestVolumeInspect(t *testing.T) {
	u := newUser(t)
	f := newRemorad(u)
	f.set(func() {
		f.volumes = []*controlv1.Volume{{Name: "data", Id: "0123", Store: "file:/s", SizeBytes: 1 << 30, Class: "local", Fs: "ext4", Here: true,
			Device: "/dev/loop1", ReadOnly: true}}
		f.details = &controlv1.InspectVolumeResponse{StoredBytes: 5 << 20, StoredObjects: 7, Journal: "n/j", JournalUsedBytes: 1 << 20,
			JournalBytes: 1 << 30,
			AtRiskBytes:  3 << 10, AtRisk: durationpb.New(2 * time.Second), LeaseMargin: durationpb.New(9 * time.Second),
			Throttled: volume.ThrottleJournal, WrittenBytes: 6 << 20,
			Waits:         []*controlv1.VolumeWait{{What: "an upload", Reason: "no route", Waited: durationpb.New(4 * time.Second)}},
			Events:        []*controlv1.VolumeEvent{{Time: timestamppb.Now(), What: "takeover", Detail: "of node x"}},
			StoreRequests: &controlv1.StoreRequests{Get: 1, Put: 2, Lease: 9}}
	})
	contains(t, u.run("volume", "inspect", "data").ok(), "data (0123)", "1GiB, 5MiB stored in 7 objects", "local, read-only", "ext4",
		"/dev/loop1", "n/j",
		"3KiB, the oldest change 2.0 s old", "1MiB of 1GiB", "certain for 9.0 s", "6MiB written", "1 get, 2 put", "9 for the lease", "takeover",
		"of node x",
		"the journal is full", "an upload, for 4 s: no route")
	if d := decode[control.VolumeDetails](u.run("--json", "volume", "inspect", "data")); d.Name != "data" || d.AtRiskSeconds != 2 ||
		len(d.Waits) != 1 {
		t.Errorf("as JSON: %+v", d)
	}
	f.set(func() {
		f.details.StoreError, f.details.AtRisk, f.details.Throttled = "it does not answer", nil, volume.ThrottleStore
	})
	contains(t, u.run("volume", "inspect", "data").ok(), "store says", "it does not answer", "at risk         nothing", "the store is behind")
	u.run("volume", "inspect", "none").fails(1, "volume none: not found")
}

// TestVolumeFsck reports problems by its exit code, and makes a new volume of what is left.
func TestVolumeFsck(t *testing.T) {
	u := newUser(t)
	f := newRemorad(u)
	id := strings.Repeat("0", 32)
	u.run("volume", "fsck", "data").fails(1, "remorad ended before it was done")
	f.set(func() {
		f.steps, f.report = []string{"reading the map"}, &controlv1.VolumeReport{Name: "data", Segments: 4, ReadBytes: 1 << 20}
	})
	r := u.run("volume", "fsck", "--quick", "data")
	contains(t, r.ok(), "data: 4 segments", "1MiB read")
	contains(t, r.stderr, "reading the map")
	if last[*controlv1.CheckVolumeRequest](t, f).Data {
		t.Error("--quick reads the blocks")
	}
	f.set(func() { f.report.Problems, f.report.Repaired = []string{"segment 3 is not there"}, "the map" })
	r = u.run("volume", "fsck", "--repair", "data")
	r.fails(1, "data: 1 problems")
	contains(t, r.stdout, "repaired: the map", "segment 3 is not there")
	u.run("volume", "fsck", "--repair", "--rebuild-into", "again", "data").fails(1, "repair", "rebuild-into")

	f.set(func() {
		f.rebuilt = &controlv1.RebuiltVolume{DamagedId: id, Id: id, Name: "again", SizeBytes: 1 << 30, MappedBytes: 1 << 20, MapSegment: 5,
			Segments: 2}
	})
	contains(t, u.run("volume", "fsck", "--rebuild-into", "again", "data").ok(), "again: 1GiB, 1MiB mapped, read-only",
		"the map as of segment 5", "nothing is in doubt")
	if r := last[*controlv1.RebuildVolumeRequest](t, f); r.Into != "again" || r.Name != "data" {
		t.Errorf("asked for %v", r)
	}
	f.set(func() {
		f.rebuilt = &controlv1.RebuiltVolume{DamagedId: id, Id: id, Name: "again", SizeBytes: 1 << 30, SizeGuessed: true, Ignored: 1, Missing: 2,
			Problems: []string{"no head"},
			Stale:    []*controlv1.ByteRange{{Length: 1 << 20}, {Length: 1 << 20}}, Lost: []*controlv1.ByteRange{{Length: 4096}}}
	})
	contains(t, u.run("volume", "fsck", "--rebuild-into", "again", "data").ok(), "a guess", "1 others never counted", "damaged: no head",
		"2 segments are not there",
		"2MiB in 2 places may be older", "4KiB in 1 places could not be read")
	if r := decode[volume.Rebuilt](u.run("--json", "volume", "fsck", "--rebuild-into", "again", "data")); len(r.Stale) != 2 || r.Missing != 2 {
		t.Errorf("as JSON: %+v", r)
	}
}

// TestVolumeBench puts load on a volume of its own, and takes it away again, however that ends.
func TestVolumeBench(t *testing.T) {
	u := newUser(t)
	f := newRemorad(u)
	u.run("volume", "bench", "--size", "1M").fails(2, "--size 1M: want 16M at least")
	u.run("volume", "bench", "--time", "0s").fails(2, "--time 0s: want more than none")
	u.run("volume", "bench", "--store", "file:/s", "--size", "16M", "--time", "1ms").fails(1, "open")
	if all := requests[*controlv1.RemoveVolumeRequest](f); len(all) != 1 || len(f.volumes) != 0 {
		t.Errorf("the volume of a bench that failed stays: %v", f.volumes)
	}
	dev := u.path("device")
	if err := os.WriteFile(dev, make([]byte, 16<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	f.set(func() { f.device, f.details = dev, &controlv1.InspectVolumeResponse{AtRiskBytes: 3 << 20} })
	said := u.run("volume", "bench", "--store", "file:/s", "--size", "16M", "--time", "1ms").ok()
	contains(t, said, "16MiB of a volume of class remote in file:/s, 1ms each", "fdatasync after a 4 KiB write", "The store was 3MiB behind")
	got := decode[benched](u.run("--json", "volume", "bench", "--store", "file:/s", "--size", "16M", "--time", "1ms"))
	if len(got.Results) != len(benchLoads) || got.Behind != 3<<20 {
		t.Errorf("as JSON: %+v", got)
	}
	for _, r := range got.Results {
		if r.Requests == 0 || r.IOPS <= 0 || r.P99 < r.Median {
			t.Errorf("%+v", r)
		}
	}
	if len(f.volumes) != 0 {
		t.Errorf("the volume of a bench stays: %v", f.volumes)
	}
	f.set(func() { f.refuse["RemoveVolumeRequest"] = refusal("too busy") })
	u.run("volume", "bench", "--store", "file:/s", "--size", "16M", "--time", "1ms").fails(1,
		"the volume of this benchmark stays: snapctl volume rm bench-", "too busy")
}
