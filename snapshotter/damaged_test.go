package snapshotter

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/remora-storage/remora/conformance/suite"
	"github.com/remora-storage/remora/fs/profile"
	"github.com/remora-storage/remora/internal/durable"
)

const harmSeed = 20261129

// harms are all that may become of a file, its loss included, and what else more has.
func harms(more map[string]string) []suite.Harm {
	all := append(suite.Harms(harmSeed), suite.Harm{Name: "removed", Do: suite.Lose})
	for name, content := range more {
		all = append(all, suite.Harm{Name: name, Do: func(t testing.TB, path string) {
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}})
	}
	return all
}

// mustName insists that one file is named as damaged, with what to do, and returns where it lies.
func (b *bed) mustName(path string) string {
	b.t.Helper()
	all, err := ListDamaged(b.root)
	if err != nil || len(all) != 1 || all[0].File != path || all[0].Kind.Lost == "" || all[0].Kind.Do == "" {
		b.t.Fatalf("seed %d: damaged files: %+v, %v, want %s", harmSeed, all, err, path)
	}
	return all[0].Aside
}

func (b *bed) mustRemove(path string) {
	b.t.Helper()
	if err := os.RemoveAll(path); err != nil {
		b.t.Fatal(err)
	}
}

// TestDamagedLayerRecord: a snapshot whose layer.json is damaged or gone is never an empty layer: its mounts fail and name the
// file, over restarts, while others serve; it can be removed, and pulled again.
func TestDamagedLayerRecord(t *testing.T) {
	for _, h := range harms(map[string]string{
		"no version": `{}`, "a version below zero": `{"version": -1}`, "another's": `{"version": 1, "name": "remora-x"}`,
	}) {
		t.Run(h.Name, func(t *testing.T) {
			body, other := noise(7, 10_000), noise(8, 10_000)
			bad := newImage(t, "bad", nil, estargzLayer(t, file("a", other)))
			good := newImage(t, "good", nil, estargzLayer(t, file("a", body)))
			b := newBed(t, newOrigin(t, bad, good), nil)
			lost := b.pull(bad)
			if _, err := b.Prepare(b.ctx, "bad", lost); err != nil {
				t.Fatal(err)
			}
			b.run("good", b.pull(good))
			path := filepath.Join(b.snapshotDir(b.id(lost)), bindingFile)
			b.close()
			h.Do(t, path)
			for range 2 {
				b.open()
				b.mustName(path)
				mounts, err := b.Mounts(b.ctx, "good")
				if err != nil {
					t.Fatal(err)
				}
				b.sees(mounts, "a", body)
				if mounts, err := b.Mounts(b.ctx, "bad"); err == nil || !strings.Contains(err.Error(), path) {
					t.Errorf("mounts: %v, %v", mounts, err)
				}
				b.close()
			}
			b.open()
			b.remove("bad", lost)
			b.sees(b.run("bad again", b.pull(bad)), "a", other)
			if all, err := ListDamaged(b.root); err != nil || len(all) != 0 {
				t.Errorf("after its snapshot was removed: %+v, %v", all, err)
			}
		})
	}
}

// TestDamagedDatabase: after the database was lost, containers that run go on, whatever is mounted for them stays, images are
// pulled again, and no number is used twice. What nobody uses goes once the operator has removed what was set aside.
func TestDamagedDatabase(t *testing.T) {
	all := harms(nil)
	r := rand.New(rand.NewPCG(harmSeed, 1))
	for range 5 {
		all = append(all, suite.Harm{Name: "a page of random bytes", Do: func(t testing.TB, path string) {
			p, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for at := range p[8192:] { // both of its first pages, and one of those is enough
				p[8192+at] = byte(r.Uint32())
			}
			if err := os.WriteFile(path, p, 0o600); err != nil {
				t.Fatal(err)
			}
		}})
	}
	for _, h := range all {
		t.Run(h.Name, func(t *testing.T) {
			body := noise(3, 200_000)
			im := newImage(t, "app", nil, estargzLayer(t, file("a", body)))
			b := newBed(t, newOrigin(t, im), held)
			mounts := b.run("container", b.pull(im))
			at := b.container("web", mounts)
			upper := b.upperPath(b.id("container"))
			mark := filepath.Join(upper, "written")
			if err := os.WriteFile(mark, []byte("by the container"), 0o600); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(b.root, databaseFile)
			b.close()
			h.Do(t, path)
			b.open()
			aside := b.mustName(path)
			b.mustHaveNone()
			b.sees(mounts, "a", body)
			b.restart() // and it stays so
			b.mustName(path)
			b.sees(mounts, "a", body)
			if broken := b.Status().Broken; len(broken) != 0 {
				t.Errorf("broken: %+v", broken)
			}
			again := b.run("another", b.pull(im))
			b.sees(again, "a", body)
			for _, dir := range dirs(again) {
				for _, old := range dirs(mounts) {
					if dir == old {
						t.Errorf("%s is used again", dir)
					}
				}
			}
			b.mustRemove(aside)
			b.restart()
			b.sees(again, "a", body)
			if _, err := os.Stat(mark); err != nil {
				t.Errorf("what a running container wrote: %v", err)
			}
			b.kernel.unmountOther(at)
			b.restart()
			if _, err := os.Stat(upper); err == nil {
				t.Error("a directory that nobody uses stays")
			}
			b.sees(again, "a", body)
		})
	}
}

// mustHaveNone insists that there are no snapshots.
func (b *bed) mustHaveNone() {
	b.t.Helper()
	if err := b.Walk(b.ctx, func(_ context.Context, info snapshots.Info) error {
		b.t.Errorf("snapshot %s is there", info.Name)
		return nil
	}); err != nil && !errdefs.IsNotFound(err) {
		b.t.Error(err)
	}
}

// TestDatabaseOfTheFirstStart: a first start that was killed while it made the database lost nothing.
func TestDatabaseOfTheFirstStart(t *testing.T) {
	b := newBed(t, newOrigin(t), func(b *bed) {
		if err := os.MkdirAll(b.root, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(b.root, databaseFile), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	})
	if all, err := ListDamaged(b.root); err != nil || len(all) != 0 {
		t.Errorf("damaged files: %+v, %v", all, err)
	}
}

// TestDamagedNotes: what is only known better than nothing is set aside, and everything serves.
func TestDamagedNotes(t *testing.T) {
	body := noise(5, 20_000)
	l := gzipLayer(t, file("a", body))
	im := newImage(t, "app", nil, l)
	for _, h := range suite.Harms(harmSeed) {
		t.Run(h.Name, func(t *testing.T) {
			b := newBed(t, newOrigin(t, im), func(b *bed) { b.opts.Releases = &released{} })
			b.run("container", b.pull(im))
			for name, content := range map[string]any{
				BrokenFile.Name: map[string]string{"99": "lost"}, spellsKind.Name: savedSpells{}, "refused.json": map[string]int{"version": 1},
			} {
				path := filepath.Join(b.root, name)
				b.close()
				if err := durable.SaveJSON(path, content); err != nil {
					t.Fatal(err)
				}
				h.Do(t, path)
				b.open()
				b.mustRemove(b.mustName(path))
			}
			if _, err := b.AddProfile(im.Target.Digest, profile.New(im.Target.Digest, "r", nil)); err != nil {
				t.Fatal(err)
			}
			path := b.profileOf(im)
			h.Do(t, path)
			if _, err := b.AddProfile(im.Target.Digest, profile.New(im.Target.Digest, "r", nil)); err != nil {
				t.Errorf("a profile is not kept: %v", err)
			}
			b.mustRemove(b.mustName(path))
			path = b.indexOf(l)
			if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, indexOf(t, l), 0o600)); err != nil {
				t.Fatal(err)
			}
			h.Do(t, path)
			b.close()
			b.mustRemove(filepath.Join(b.root, "cache"))
			b.open()
			mounts, err := b.Mounts(b.ctx, "container")
			if err != nil {
				t.Fatal(err)
			}
			b.sees(mounts, "a", body)
		})
	}
}

// TestDamagedInstance: what a keeper has says which instance a root is, and only a root that is new gets another.
func TestDamagedInstance(t *testing.T) {
	const id = "0123456789abcdef"
	kept := map[string][]*os.File{"events/" + id: nil, "image/" + id + "/x": nil, "disks": nil}
	for _, h := range harms(nil) {
		t.Run(h.Name, func(t *testing.T) {
			root := t.TempDir()
			path := filepath.Join(root, instanceFile)
			if err := os.MkdirAll(filepath.Join(snapshotsOf(root), "1"), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(id), 0o600); err != nil {
				t.Fatal(err)
			}
			h.Do(t, path)
			for range 2 {
				if got, err := instanceOf(root, kept, logOf(t)); err != nil || got != id {
					t.Fatalf("got %q, %v", got, err)
				}
			}
			if all, err := ListDamaged(root); err != nil || len(all) != 1 || all[0].File != path {
				t.Errorf("damaged files: %+v, %v", all, err)
			}
			if err := os.RemoveAll(snapshotsOf(root)); err != nil {
				t.Fatal(err)
			}
			if got, err := instanceOf(root, kept, logOf(t)); err != nil || got == id || !isInstance(got) {
				t.Errorf("a root without anything is %q, %v", got, err)
			}
		})
	}
}
