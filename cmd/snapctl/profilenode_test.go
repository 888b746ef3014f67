package main

import (
	"fmt"
	"testing"

	controlv1 "github.com/remora-storage/remora/cmd/control/v1"
	"github.com/remora-storage/remora/fs/profile"
)

// TestProfile shows, merges, publishes, fetches and removes profiles.
func TestProfile(t *testing.T) {
	n := newNode(t)
	image := n.image.Target.Digest.String()
	n.run("profile", "show", n.ref).fails(1, "this node has no profile of "+n.ref, "snapctl record")
	n.run("profile", "show", "--published", n.ref).fails(1, "no profile of "+n.ref+" is published", "snapctl profile push")
	a, b := n.file("a", profileText(t, "/a")), n.file("b", profileText(t, "/b", "/a"))
	contains(t, n.run("profile", "merge", n.path("both"), a, b).stderr, n.path("both")+": 2 runs, 2 entries")
	contains(t, n.run("profile", "show", n.path("both")).ok(), "2 runs of r.example.com/app", "/a", "/b")
	if p := decode[profile.Profile](n.run("--json", "profile", "show", a)); len(p.Entries) != 1 || p.Runs != 1 {
		t.Errorf("as JSON: %+v", p)
	}
	n.run("profile", "merge", n.path("out")).fails(2, "OUT and at least one IN")
	n.run("profile", "merge", n.path("none/out"), a).fails(1, "none/out")
	n.run("profile", "show", n.file("junk", "junk")).fails(1, "junk")

	n.run("profile", "push", n.ref, n.path("none")).fails(1, n.path("none")+": no such file")
	contains(t, n.run("profile", "push", n.ref, b).ok(), "published the profile of "+n.ref+"@"+image, "1 runs")
	contains(t, n.run("profile", "show", "--published", n.ref).ok(), "/b")
	n.run("profile", "pull", n.ref, n.path("pulled")).ok()
	contains(t, n.run("profile", "show", n.path("pulled")).ok(), "/b")
	n.run("profile", "pull", n.ref).ok()
	if r := last[*controlv1.AddProfileRequest](t, n.remorad); r.Manifest != image {
		t.Errorf("added to %s, want %s", r.Manifest, image)
	}
	contains(t, n.run("profile", "show", n.ref).ok(), "/b")
	got := decode[pushedProfile](n.run("--json", "profile", "push", n.ref))
	if got.Digest.String() != image || got.Runs != 1 || got.Tag == "" {
		t.Errorf("as JSON: %+v", got)
	}
	n.run("profile", "rm", n.ref).ok()
	n.run("profile", "show", n.ref).fails(1, "this node has no profile")
	n.run("profile", "rm", "--published", n.ref).ok()
	n.run("profile", "pull", n.ref).fails(1, "is published")
	n.run("profile", "rm", n.registry.Ref("none:1")).fails(1, "none:1")
}

// TestProfileLong lists forty entries, and all with --all.
func TestProfileLong(t *testing.T) {
	u := newUser(t)
	var paths []string
	for i := range 50 {
		paths = append(paths, fmt.Sprintf("/file/%d", i))
	}
	file := u.file("long", profileText(t, paths...))
	contains(t, u.run("profile", "show", file).ok(), "/file/39", "... and 10 more (--all)")
	contains(t, u.run("profile", "show", "--all", file).ok(), "/file/49")
}
