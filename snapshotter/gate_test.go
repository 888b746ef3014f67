package snapshotter

import (
	"bytes"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
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

// TestViewOfContested: neither View nor the Prepare of a layer that containerd unpacks reads the layers of those who contest one below,
// whose registry may never answer: containerd lets nobody in meanwhile. Who mounts what they answer waits, and sees the right one.
func TestViewOfContested(t *testing.T) {
	for _, f := range formats {
		for _, what := range []string{"view", "unpack"} {
			t.Run(f.name+"/"+what, func(t *testing.T) {
				b, victim, evil, name := newContested(t, f)
				asked, held := make(chan struct{}), make(chan struct{})
				ask, release := sync.OnceFunc(func() { close(asked) }), sync.OnceFunc(func() { close(held) })
				defer release()
				b.origin.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
					switch repo, kind, what := split(r.URL.Path); {
					case kind != "blobs" || digest.Digest(what) != victim.Layers[0].Digest():
						return false
					case repo == "evil":
						http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(evil.layer.Blob))
						return true
					}
					ask()
					<-held
					return false
				})
				answered := make(chan []mount.Mount, 1)
				go func() {
					var mounts []mount.Mount
					var err error
					if what == "view" {
						mounts, err = b.View(b.ctx, "view", name)
					} else {
						mounts, err = b.Prepare(b.ctx, "unpack", name, snapshots.WithLabels(map[string]string{
							snapshots.LabelSnapshotRef: digest.FromString("a layer that containerd unpacks").String(),
						}))
					}
					if err != nil {
						t.Error(err)
					}
					answered <- mounts
				}()
				var mounts []mount.Mount
				select {
				case mounts = <-answered:
				case <-asked:
					t.Error("it reads the layer of a claimant")
					release()
					mounts = <-answered
				}
				ended := b.begin(mounts, "a", honest)
				<-asked
				select {
				case err := <-ended:
					t.Errorf("seen before it is proven: %v", err)
				default:
				}
				release()
				if err := <-ended; err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// TestContestedAtAGateInUse: a gate that shows a layer since before somebody contested it is not given to who comes later.
func TestContestedAtAGateInUse(t *testing.T) {
	victim := newImage(t, "app", nil, gzipLayer(t, file("a", honest)))
	o := newOrigin(t)
	evil := forge(t, o, victim, true, false)
	b := newBed(t, o, nil)
	b.kernel.fail("mount", errors.New("as the test says"))
	name := b.pull(evil.image)
	eventually(t, "the layer fails to be mounted", func() bool { return b.Status().Layers[0].State == "failed" })
	early := b.view("early", name)
	b.kernel.fail("mount", nil)
	b.sees(early, "a", forged)
	b.fetch(victim)
	b.sees(b.view("later", name), "a", honest)
}

// TestNoGatesAndLate: on a kernel without gates, a view of layers that do not come soon fails, and says what to do.
func TestNoGatesAndLate(t *testing.T) {
	im := newImage(t, "app", nil, gzipLayer(t, file("a", honest)))
	o := newOrigin(t, im)
	b := newBed(t, o, func(b *bed) { b.kernel.fail("gates", errors.New("as the test says")) })
	defer o.Hold("/blobs/")()
	top := b.pull(im)
	b.opts.Layers.ProofWait = claimWait
	b.restart()
	if _, err := b.View(b.ctx, "view", top); !errors.Is(err, errUngated) || !strings.Contains(err.Error(), "snapctl status") {
		t.Errorf("got %v", err)
	}
}
