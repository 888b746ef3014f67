package main

import (
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	controlv1 "github.com/remora-storage/remora/cmd/control/v1"
	"github.com/remora-storage/remora/cmd/internal/cmdtest"
	"github.com/remora-storage/remora/cmd/internal/control"
)

// TestStatus shows a node with everything that can be told of one, and one with nothing.
func TestStatus(t *testing.T) {
	u := newUser(t)
	f := newRemorad(u)
	contains(t, u.run("status").ok(), "remorad   test, root /var/lib/remora", "back end  fuse-file (pinned)", "process 7 keeps mounts alive",
		"1MiB of 10GiB", "no lazy layers")
	layer := digest.FromString("layer").String()
	f.set(func() { f.status.Broken = []*controlv1.Broken{{Snapshot: "default/mine", Reason: "it was lost"}} })
	contains(t, u.run("status").ok(), "no lazy layers", "snapshot default/mine is broken: it was lost")
	f.set(func() {
		f.status.Backend = &controlv1.Backend{Reason: "nothing works"}
		f.status.Holder = nil
		f.status.Layers = []*controlv1.Layer{{Digest: layer, Image: "r.example.com/app:1", Format: "estargz", Backend: "fuse-file",
			State:    "mounted",
			Verified: true, PresentBytes: 1 << 20, TotalBytes: 4 << 20, FetchedBytes: 1 << 19, Reason: "it was damaged once"}}
		f.status.Waiting = []*controlv1.Waiting{
			{Pid: 42, Command: "redis", Container: "pod", Image: "app:1", Waited: durationpb.New(3 * time.Second), Reason: "no route"},
			{Pid: 43, Command: "sh", Container: "pod", Image: "app:1", Waited: durationpb.New(2 * time.Second)},
		}
		f.status.Broken = []*controlv1.Broken{{Container: "default/web", Reason: "its holder ended"},
			{Snapshot: "9", Mounted: "/mnt", Reason: "it is lost"}, {Snapshot: "default/mine", Reason: "it was lost"}}
		f.status.Damaged = []*controlv1.DamagedFile{{File: "/root/logins.json", Aside: "/root/logins.json.damaged-1",
			Found: timestamppb.New(time.Unix(0, 0)), Lost: "passwords", Advice: "log in again"}}
	})
	contains(t, u.run("status").ok(), "none: every layer takes the ordinary path (nothing works)", "holder    none", "mounted, verified",
		"1MiB", "4MiB",
		short(digest.Digest(layer))+": it was damaged once", "process 42 (redis, pod) has waited for 3 s for data of app:1: no route",
		"process 43", "the registry is slow", "container default/web is broken: its holder ended",
		"snapshot 9, mounted on /mnt, is broken: it is lost", "snapshot default/mine is broken: it was lost",
		"damaged   /root/logins.json: set aside on 1970-01-01 00:00:00 UTC as /root/logins.json.damaged-1",
		"lost: passwords", "do: log in again")
	st := decode[control.StatusReply](u.run("--json", "status"))
	if len(st.Layers) != 1 || st.Layers[0].Digest.String() != layer || st.Waiting[0].Seconds != 3 || len(st.Broken) != 3 ||
		len(st.Damaged) != 1 || st.Damaged[0].Aside != "/root/logins.json.damaged-1" {
		t.Errorf("as JSON: %+v", st)
	}
}

// TestStatusOfAnImage shows its layers alone, and their sum.
func TestStatusOfAnImage(t *testing.T) {
	u := newUser(t)
	f, ctrd := newRemorad(u), cmdtest.NewContainerd(t, u.containerd)
	img := program(t, cmdtest.OCI)
	ctrd.Put(t, "docker.io/library/app:1", img)
	u.run("status", "app:2").fails(1, "image docker.io/library/app:2 in namespace default",
		"pull it first: snapctl pull docker.io/library/app:2")
	contains(t, u.run("status", "app:1").ok(), "docker.io/library/app:1 has no lazy layer")
	f.set(func() {
		for _, l := range img.Manifest(t).Layers {
			f.status.Layers = append(f.status.Layers, &controlv1.Layer{Digest: l.Digest.String(), Format: "estargz", State: "mounted",
				Backend:      "fuse-file",
				PresentBytes: 1 << 20, TotalBytes: 2 << 20, PrefetchedBytes: 3 << 10, PrefetchUsedBytes: 1 << 10, DemandBytes: 5, Waits: 2,
				Waited: durationpb.New(time.Second / 2)})
		}
		f.status.Layers = append(f.status.Layers, &controlv1.Layer{Digest: digest.FromString("another image's").String()})
	})
	said := u.run("status", "app:1").ok()
	contains(t, said, "mounted by fuse-file", "all", "4MiB", "6KiB", "1.000")
	if strings.Contains(said, short(digest.FromString("another image's"))) {
		t.Errorf("another image's layer:\n%s", said)
	}
	if st := decode[control.StatusReply](u.run("--json", "status", "app:1")); len(st.Layers) != 2 {
		t.Errorf("as JSON: %+v", st.Layers)
	}
}

// TestDoctorRemorad finds what is wrong with remorad, and with what containerd says of it.
func TestDoctorRemorad(t *testing.T) {
	u := newUser(t)
	f := newRemorad(u)
	cmdtest.NewContainerd(t, u.containerd)
	all := findings(u, "--containerd-config", u.file("c.toml", ""))
	for _, check := range []string{"remorad", "back end", "holder", "cache", "user namespaces", "proxy plugin remora"} {
		if all[check].Result != ok {
			t.Errorf("%s: %+v", check, all[check])
		}
	}
	f.set(func() {
		f.status.Backend = &controlv1.Backend{Reason: "no FUSE", DirectReason: "no loop", IdmapReason: "too old"}
		f.status.Holder, f.status.Root = nil, "/elsewhere"
		f.status.Cache.Bytes = f.status.Cache.Limit
		f.status.Broken = []*controlv1.Broken{{Container: "default/web", Reason: "its holder ended"},
			{Snapshot: "default/mine", Reason: "it was lost"}}
		f.status.Layers = []*controlv1.Layer{{Digest: "sha256:1", Image: "app:1", State: "failed", Reason: "nobody has it"}}
		f.status.Damaged = []*controlv1.DamagedFile{{File: "/f", Aside: "/g", Lost: "it", Advice: "remove it"}}
	})
	all = findings(u, "--containerd-config", u.file("c.toml", ""))
	for check, want := range map[string]string{"back end": failure, "complete layers": warning, "holder": warning, "cache": warning,
		"container default/web": warning, "snapshot default/mine": warning, "layer sha256:1 of app:1": warning,
		"file /f": warning, "exports.root": warning, "user namespaces": failure} {
		if all[check].Result != want || all[check].Fix == "" {
			t.Errorf("%s: %+v, want %s", check, all[check], want)
		}
	}
	f.set(func() { f.refuse["StatusRequest"] = refusal("too busy") })
	if got := findings(u)["remorad"]; got.Result != failure || !strings.Contains(got.Detail, "too busy") {
		t.Errorf("a remorad that refuses: %+v", got)
	}
}

// TestIDMapFinding compares what containerd was told with what the back end can.
func TestIDMapFinding(t *testing.T) {
	for _, c := range []struct {
		declared   string
		containerd string
		idmap      bool
		want       string
	}{
		{"remap-ids", "v2.4.2", true, ok}, {"only-remap-ids", "v2.4.2", false, ok}, {"", "v2.4.2", true, warning},
		{"", "v2.4.2", false, warning}, {"only-remap-ids", "v2.4.2", true, warning}, {"remap-ids", "v2.4.2", false, failure},
		{"remap-ids only-remap-ids", "v2.4.2", false, failure},
		{"remap-ids", "v2.1.9", true, failure}, {"only-remap-ids", "v2.1.9", true, ok}, {"", "v2.1.9", true, warning},
	} {
		got := idmapFinding(strings.Fields(c.declared), "remora", c.containerd, control.Backend{IDMap: c.idmap, IDMapReason: "too old"})
		if got.Result != c.want || (got.Fix == "") != (c.want == ok) {
			t.Errorf("%q, %s, %v: %+v, want %s", c.declared, c.containerd, c.idmap, got, c.want)
		}
	}
}
