package snapshotter

import (
	"strings"
	"testing"

	"github.com/remora-storage/remora/blockdev/mounts"
)

// TestOverlaysOfOthers: overlays on layers of ours keep these where they are, however containerd has written the paths. Those of another
// containerd, whose snapshots have the same numbers, do not.
func TestOverlaysOfOthers(t *testing.T) {
	im := newImage(t, "app", nil, estargzLayer(t, file("a", noise(1, 10_000))), estargzLayer(t, file("b", noise(2, 10_000))))
	b := newBed(t, newOrigin(t, im), nil)
	top := b.pull(im)
	lower := b.bindings.get(b.id(top)).saved.Parents[0]
	settled := func() {
		b.run("container-"+uniqueSuffix(), top)
		b.detaching.mu.Lock()
		defer b.detaching.mu.Unlock()
		clear(b.detaching.answered) // as when those that were answered have mounted what they were told
	}
	settled()
	view := b.view("view", top)[0]
	options := strings.Join(view.Options, ",")
	shortened := strings.ReplaceAll(options, b.snapshotsDir()+"/", "")
	if view.Type != "overlay" || shortened == options {
		t.Fatalf("a view of two layers is %+v", view)
	}
	theirs := strings.ReplaceAll(options, b.root, "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs")
	const upper = "upperdir=/elsewhere/9/fs,workdir=/elsewhere/9/work"
	for name, c := range map[string]struct {
		source, options string
		uses            bool
	}{
		"a view of ours":                    {view.Source, options, true},
		"a view of ours, shortened":         {view.Source, shortened, true},
		"a view of an earlier version's":    {"overlay", options, true},
		"somebody's overlay, below others":  {"overlay", "lowerdir=/elsewhere/8/fs:" + b.upperPath(lower) + "," + upper, true},
		"a container of ours":               {"overlay", shortened + ",upperdir=" + b.upperPath("9"), true},
		"another's view":                    {"overlay", theirs, false},
		"another's view, shortened":         {"overlay", shortened, false},
		"another remorad's view, shortened": {"/elsewhere/snapshots", shortened, false},
		"another's container":               {"overlay", theirs + "," + upper, false},
		"another's container, shortened":    {"overlay", shortened + "," + upper, false},
	} {
		t.Run(name, func(t *testing.T) {
			settled()
			b.kernel.mountOther(mounts.Mount{Dir: "/mnt", Type: "overlay", Source: c.source, Options: c.options})
			defer b.kernel.unmountOther("/mnt")
			if used, err := b.detaching.uses(b.bindings.get(lower)); used != c.uses || err != nil {
				t.Errorf("uses the lower layer: %v, %v, want %v", used, err, c.uses)
			}
			_, err := b.Detach()
			if c.uses && (err == nil || !strings.Contains(err.Error(), "/mnt")) {
				t.Errorf("detached under it: %v", err)
			}
			if !c.uses && err != nil {
				t.Errorf("not detached: %v", err)
			}
		})
	}
}
