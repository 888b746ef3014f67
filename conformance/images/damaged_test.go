package images_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/remora-storage/remora/conformance/suite"
	"github.com/remora-storage/remora/conformance/testbed"
)

// damage is a node with a container that runs from a lazy image.
type damage struct {
	s       *testbed.Stack
	lazy    string
	modules []string // of Python that nobody has read
	n       int
}

const harmSeed = 20261129

// harms returns some of what may become of a file.
func harms(names ...string) []suite.Harm {
	all := append(suite.Harms(harmSeed), suite.Harm{Name: "removed", Do: suite.Lose})
	return slices.DeleteFunc(all, func(h suite.Harm) bool { return !slices.Contains(names, h.Name) })
}

// while has remorad away while something is done to files below its root.
func (d *damage) while(t *testing.T, do func()) {
	t.Helper()
	testbed.Must(t, d.s.StopRemorad(syscall.SIGTERM))
	do()
	testbed.Must(t, d.s.StartRemorad())
}

// start pulls the image and starts the container.
func (d *damage) start(t *testing.T) {
	t.Helper()
	_, err := d.s.Snapctl(t.Context(), "pull", d.lazy)
	testbed.Must(t, err)
	_, err = d.s.Ctr(t.Context(), "run", "-d", "--snapshotter", "remora", d.lazy, "sleeper", "sleep", "1000")
	testbed.Must(t, err)
}

// mustRun insists that the container reads what it has not read yet.
func (d *damage) mustRun(t *testing.T) {
	t.Helper()
	module := d.modules[d.n%len(d.modules)]
	d.n++
	out, err := d.s.Ctr(t.Context(), "tasks", "exec", "--exec-id", fmt.Sprint("read-", d.n), "sleeper", "python3", "-c",
		"import "+module+"; print('fine')")
	if err != nil || !strings.Contains(out, "fine") {
		t.Errorf("the container reads %s: %v, %s", module, err, out)
	}
}

// mustStart insists that another container starts from the same image.
func (d *damage) mustStart(t *testing.T) {
	t.Helper()
	d.n++
	testbed.RunImage(t, d.s, d.lazy, fmt.Sprint("other-", d.n), "remora", testbed.Python)
}

// TestDamagedFiles: one damaged small file below --root neither keeps remorad from starting nor is taken for an empty one: it is
// named, what was lost with it is said, and everything else serves, the container that runs among it.
func TestDamagedFiles(t *testing.T) {
	t.Parallel()
	d := &damage{s: testbed.New(t, testbed.Options{LogLevel: "info"}), modules: []string{
		"json", "decimal", "calendar", "csv", "difflib", "fractions", "gzip", "html.parser", "ipaddress", "mailbox", "pickle", "plistlib",
		"queue", "shelve", "smtplib", "sqlite3", "statistics", "tarfile", "telnetlib", "uuid", "wave", "xml.dom", "zipfile", "optparse",
	}}
	_, d.lazy = testbed.Pushed(t, d.s, testbed.Python)
	d.start(t)
	do := map[string]func(*testing.T, suite.Harm){"notes": d.notes, "layer.json": d.layer, "metadata.db": d.database}
	all := testbed.Combinations([]string{"notes"}, []string{"emptied", "cut", "random bytes", "removed"})
	all = append(all, testbed.Combinations([]string{"layer.json", "metadata.db"}, []string{"cut", "removed"})...)
	for _, c := range testbed.Covering(t, all) {
		t.Run(c[0]+" "+c[1], func(t *testing.T) { do[c[0]](t, harms(c[1])[0]) })
	}
	t.Run("cache", d.cache)
}

// notes harms what only makes things better: no container is worse for it.
func (d *damage) notes(t *testing.T, h suite.Harm) {
	var want []string
	d.while(t, func() {
		for _, name := range []string{"logins.json", "broken.json"} {
			testbed.Must(t, os.WriteFile(filepath.Join(d.s.Root, name), []byte(`{"one": {}}`), 0o600))
		}
		for _, name := range []string{"logins.json", "broken.json", "instance", "volumes/node.json"} {
			path := filepath.Join(d.s.Root, name)
			if h.Do(t, path); h.Name != "removed" || name == "instance" { // nothing tells that the others were there
				want = append(want, path)
			}
		}
	})
	testbed.MustNameDamaged(t, d.s, want...)
	d.mustRun(t)
	d.mustStart(t)
	if st, err := d.s.Status(t.Context()); err != nil || len(st.Broken) > 0 {
		t.Errorf("broken: %+v, %v", st, err)
	}
}

// layer harms the record of a layer: its snapshot is filled anew when a container starts.
func (d *damage) layer(t *testing.T, h suite.Harm) {
	layout, bad := filepath.Join(t.TempDir(), "layout"), d.s.Ref("bad:1")
	testbed.Must(t, writeManyLayers(layout, 1))
	_, err := d.s.Snapctl(t.Context(), "convert", "oci:"+layout+":src", "oci:"+layout+":lazy")
	testbed.Must(t, err)
	testbed.Must(t, d.s.Push(t.Context(), layout, "lazy", "bad:1"))
	_, err = d.s.Snapctl(t.Context(), "pull", bad)
	testbed.Must(t, err)
	path := ""
	d.while(t, func() {
		all, err := filepath.Glob(filepath.Join(d.s.Root, "snapshots", "*", "layer.json"))
		testbed.Must(t, err)
		for _, one := range all {
			if p, err := os.ReadFile(one); err == nil && strings.Contains(string(p), bad) {
				path = one
			}
		}
		if path == "" {
			t.Fatal("the layer has no record")
		}
		h.Do(t, path)
	})
	testbed.MustNameDamaged(t, d.s, path)
	t.Run("filled anew", func(t *testing.T) { sameTree(t, d.s, bad, bad, never) })
	d.mustRun(t)
	d.mustStart(t)
	removeAll(t, d.s, bad)
	testbed.WaitFor(t, "the layer to go", func() bool {
		_, err := os.Stat(filepath.Dir(path))
		return err != nil
	})
}

// cache harms everything that is known of the images in the cache, but their data: it is fetched again.
func (d *damage) cache(t *testing.T) {
	d.stop(t)
	for _, h := range harms("random bytes", "a directory") {
		d.while(t, func() {
			all, err := filepath.Glob(filepath.Join(d.s.Root, "cache", "*", "*"))
			testbed.Must(t, err)
			for _, path := range all {
				if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() && filepath.Base(path) != "image" {
					h.Do(t, path)
				}
			}
		})
		d.mustStart(t)
	}
	testbed.MustNameDamaged(t, d.s)
	removeAll(t, d.s, d.lazy)
	waitNoLayers(t, d.s)
	d.start(t)
}

// stop ends the container.
func (d *damage) stop(t *testing.T) {
	t.Helper()
	_, err := d.s.Ctr(t.Context(), "tasks", "rm", "-f", "sleeper")
	testbed.Must(t, err)
	_, err = d.s.Ctr(t.Context(), "containers", "rm", "sleeper")
	testbed.Must(t, err)
}

// database harms what snapshots there are: the container goes on, others start, since the layers' snapshots are made anew, and nothing of
// before is left once the advice was followed.
func (d *damage) database(t *testing.T, h suite.Harm) {
	path := filepath.Join(d.s.Root, "metadata.db")
	d.while(t, func() { h.Do(t, path) })
	d.mustRun(t)
	testbed.Must(t, d.s.RestartRemorad(syscall.SIGKILL))
	d.mustRun(t)
	d.mustStart(t)
	d.mustRun(t)
	d.stop(t)
	removeAll(t, d.s, d.lazy)
	testbed.MustNameDamaged(t, d.s, path)
	testbed.Must(t, d.s.RestartRemorad(syscall.SIGTERM))
	waitNoLayers(t, d.s)
	d.start(t)
	d.mustRun(t)
	d.mustStart(t)
}

func never(string) bool { return false }
