package snapshotter

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/opencontainers/go-digest"
)

// view makes a view of a snapshot, as a client does that mounts what it is answered and asks no more.
func (b *bed) view(key, parent string) []mount.Mount {
	b.t.Helper()
	mounts, err := b.View(b.ctx, key, parent)
	if err != nil {
		b.t.Fatal(err)
	}
	return mounts
}

// begin has somebody mount and read a file. ended says that it was read right, or how not.
func (b *bed) begin(mounts []mount.Mount, path string, want []byte) (ended chan error) {
	ended = make(chan error, 1)
	go func() {
		got, err := b.look(mounts, path)
		if err == nil && string(got) != string(want) {
			err = errors.New("it reads something else")
		}
		ended <- err
	}()
	return ended
}

// TestGates: whoever mounts what View or Prepare answer while layers are still on their way gets the whole image, however many
// layers it has.
func TestGates(t *testing.T) {
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) {
			for _, layers := range []int{1, 2} {
				im := newImage(t, "app", nil, f.make(t, file("a", honest)), f.make(t, file("b", []byte("other"))))
				im = newImage(t, "app", nil, im.Layers[:layers]...)
				o := newOrigin(t, im)
				release := o.Hold("/blobs/")
				b := newBed(t, o, nil)
				top := b.pull(im)
				prepared, err := b.Prepare(b.ctx, "container", top)
				if err != nil {
					t.Fatal(err)
				}
				view := b.begin(b.view("view", top), "a", honest)
				container := b.begin(prepared, "a", honest)
				for _, one := range []chan error{view, container} {
					select {
					case err := <-one:
						t.Errorf("mounted before the layers are there: %v", err)
					default:
					}
				}
				release()
				if err := errors.Join(<-view, <-container); err != nil {
					t.Errorf("%d layers: %v", layers, err)
				}
			}
		})
	}
}

// TestGateOfWhatCannotBeHad: a mount of a layer that cannot be read fails, and nobody sees an empty directory.
func TestGateOfWhatCannotBeHad(t *testing.T) {
	im := newImage(t, "app", nil, gzipLayer(t, file("a", honest)))
	o := newOrigin(t, im)
	gone := make(chan struct{})
	o.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
		_, kind, what := split(r.URL.Path)
		if kind != "blobs" {
			return false
		}
		select {
		case <-gone:
			w.WriteHeader(http.StatusNotFound)
			return true
		default:
		}
		o.Blob(&stoppedAnswer{ResponseWriter: w, R: r, Left: 512, Held: gone, Cut: true}, r, digest.Digest(what))
		panic(http.ErrAbortHandler)
	})
	b := newBed(t, o, nil)
	top := b.pull(im)
	ended := b.begin(b.view("view", top), "a", honest)
	close(gone)
	if err := <-ended; err == nil {
		t.Error("mounted without its layer")
	}
	o.SetFault(nil)
	b.sees(b.view("later", top), "a", honest)
}

// TestGatesStay: what was answered before a restart is mounted whole afterwards, and while nobody answers it is not mounted at
// all. Nor is what was answered before all layers were detached, which takes their gates away.
func TestGatesStay(t *testing.T) {
	im := newImage(t, "app", nil, gzipLayer(t, file("a", honest)), gzipLayer(t, file("b", honest)))
	other := newImage(t, "other", nil, gzipLayer(t, file("c", honest)))
	o := newOrigin(t, im, other)
	b := newBed(t, o, func(b *bed) { b.kernel.outlive = true })
	b.sees(b.run("runs", b.pull(other)), "c", honest)
	release := o.Hold("/blobs/")
	mounts := b.view("view", b.pull(im))
	b.close()
	b.kernel.kill()
	if _, err := b.look(mounts, "a"); err == nil {
		t.Error("mounted though nobody answers")
	}
	stray := filepath.Join(b.root, "gates", "77", "fs")
	if err := os.MkdirAll(stray, 0o700); err != nil {
		t.Fatal(err)
	}
	release()
	b.open()
	b.sees(mounts, "a", honest)
	if _, err := os.Stat(filepath.Dir(stray)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a directory without a gate is left: %v", err)
	}
	if _, err := b.Detach(); err != nil {
		t.Fatal(err)
	}
	if _, err := b.look(mounts, "a"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("mounted after all was detached: %v", err)
	}
	b.sees(b.view("again", b.pull(im)), "a", honest)
	if _, err := b.Detach(); err != nil {
		t.Fatal(err)
	}
	b.close()
	if n := b.kernel.countGates(); n > 0 {
		t.Errorf("%d gates stay though nothing is mounted", n)
	}
	b.open()
}

// TestNoGates: on a kernel without gates, a view is answered once its layers are there, or fails. What Prepare answers cannot be mounted
// before they are there, since a container's Prepare does not wait: it names a directory that does not exist.
func TestNoGates(t *testing.T) {
	im := newImage(t, "app", nil, gzipLayer(t, file("a", honest)))
	o := newOrigin(t, im)
	b := newBed(t, o, func(b *bed) { b.kernel.fail("gates", errors.New("as the test says")) })
	release := o.Hold("/blobs/")
	top := b.pull(im)
	lower := func(mounts []mount.Mount) string {
		t.Helper()
		for _, option := range mounts[0].Options {
			if dir, ok := strings.CutPrefix(option, "lowerdir="); ok {
				return dir
			}
		}
		t.Fatalf("no lower directory in %v", mounts)
		return ""
	}
	early, err := b.Prepare(b.ctx, "early", top)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(lower(early)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s of a layer that is not mounted: %v", lower(early), err)
	}
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		b.sees(b.view("view", top), "a", honest)
	}()
	select {
	case <-answered:
		t.Error("answered before its layer is there")
	default:
	}
	release()
	<-answered
	late, err := b.Prepare(b.ctx, "late", top)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(lower(late)); err != nil {
		t.Errorf("of a layer that is mounted: %v", err)
	}
}
