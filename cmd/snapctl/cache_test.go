package main

import (
	"testing"

	"github.com/opencontainers/go-digest"

	controlv1 "github.com/remora-storage/remora/cmd/control/v1"
	"github.com/remora-storage/remora/cmd/internal/control"
)

// TestCache lists, pins and prunes what is cached.
func TestCache(t *testing.T) {
	u := newUser(t)
	f := newRemorad(u)
	contains(t, u.run("cache", "ls").ok(), "1MiB of 10GiB, 1KiB of it cannot be evicted now")
	f.set(func() {
		f.cache.Entries = []*controlv1.CacheEntry{
			{Digest: digest.FromString("a").String(), Images: []string{"app:1", "app:2"}, DiskBytes: 1 << 20, Evictable: true},
			{Digest: digest.FromString("b").String(), Pinned: true}, {Digest: digest.FromString("c").String()},
		}
	})
	contains(t, u.run("cache", "ls").ok(), "app:1 app:2", "yes", "pinned", "not while mounted")
	if all := decode[control.CacheReply](u.run("--json", "cache", "ls")); len(all.Entries) != 3 || all.Limit != 10<<30 {
		t.Errorf("as JSON: %+v", all)
	}
	contains(t, u.run("cache", "pin", "app").ok(), "2 layers of docker.io/library/app:latest pinned")
	if r := last[*controlv1.PinRequest](t, f); !r.Pin || r.Image != "docker.io/library/app:latest" {
		t.Errorf("asked for %v", r)
	}
	contains(t, u.run("cache", "unpin", "app").ok(), "no longer pinned")
	u.run("cache", "pin", "No Image").fails(2, "No Image")
	contains(t, u.run("cache", "prune").ok(), "3MiB freed")
	if got := decode[control.PruneReply](u.run("--json", "cache", "prune")); got.Bytes != 3<<20 {
		t.Errorf("as JSON: %+v", got)
	}
}

// TestDetach asks for --all, and says who is in the way.
func TestDetach(t *testing.T) {
	u := newUser(t)
	f := newRemorad(u)
	u.run("detach").fails(2, "--all")
	if got := requests[*controlv1.DetachRequest](f); len(got) > 0 {
		t.Error("detached without being told to")
	}
	contains(t, u.run("detach", "--all").ok(), "0 layers detached")
	f.set(func() { f.refuse["DetachRequest"] = refusal("in use by container default/web") })
	r := u.run("detach", "--all")
	r.fails(1)
	if got, want := r.err.Error(), "in use by container default/web"; got != want {
		t.Errorf("said %q, want %q", got, want)
	}
}

// TestDevDisks attaches, lists and detaches.
func TestDevDisks(t *testing.T) {
	u := newUser(t)
	f := newRemorad(u)
	file := u.file("disk.img", "x")
	u.run("dev", "attach", "--sector", "1000", file).fails(2, "--sector 1000: want 512 or 4096")
	u.run("dev", "attach", u.path("none")).fails(1, "none")
	t.Chdir(u.home)
	if got := u.run("dev", "attach", "--sector", "512", "--read-only", "disk.img").ok(); got != "/dev/loop7\n" {
		t.Errorf("printed %q", got)
	}
	if r := last[*controlv1.AttachDiskRequest](t, f); r.File != file || r.SectorBytes != 512 || !r.ReadOnly {
		t.Errorf("asked for %v", r)
	}
	f.set(func() {
		f.disks = append(f.disks, &controlv1.Disk{Device: "/dev/loop8", File: "/b", Failed: "it is gone"}, &controlv1.Disk{Device: "/dev/loop9"})
	})
	contains(t, u.run("dev", "ls").ok(), "read-only", file, "FAILED: it is gone", "read-write")
	if all := decode[control.DisksReply](u.run("--json", "dev", "ls")); len(all.Disks) != 3 {
		t.Errorf("as JSON: %+v", all)
	}
	contains(t, u.run("dev", "detach", "disk.img").ok(), "/dev/loop7 ("+file+") detached")
	contains(t, u.run("dev", "detach", "disk.img").ok(), file+" is not attached")
	if got := decode[control.DetachDiskReply](u.run("--json", "dev", "detach", "/dev/loop8")); got.Disk == nil || got.Disk.File != "/b" {
		t.Errorf("as JSON: %+v", got)
	}
}
