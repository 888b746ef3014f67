package snapshotter

import (
	"net/http"
	"testing"

	"github.com/opencontainers/go-digest"
)

// goneBlobs has the repository at a path serve the first bytes of its layers alone, until release is called; from then on it answers
// with a status.
func goneBlobs(o *origin, path string, status int) (release func()) {
	return lose(o, status, func(repo, kind, _ string) bool { return repo == path && kind == "blobs" })
}

// lose has the origin answer what is lost with a status, once release is called. Until then blobs stop after their first bytes.
func lose(o *origin, status int, lost func(repo, kind, what string) bool) (release func()) {
	held := make(chan struct{})
	o.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
		repo, kind, what := split(r.URL.Path)
		if !lost(repo, kind, what) {
			return false
		}
		select {
		case <-held:
			w.WriteHeader(status)
		default:
			if kind != "blobs" {
				return false
			}
			o.Blob(&stoppedAnswer{ResponseWriter: w, R: r, Left: 512, Held: held, Cut: true}, r, digest.Digest(what))
		}
		return true
	})
	return func() { close(held) }
}

// TestElsewhere: a layer that was claimed, and whose repository has it no longer, comes from another image's.
func TestElsewhere(t *testing.T) {
	body := noise(21, 400_000)
	for _, f := range formats {
		l := f.make(t, file("a", honest), file("z", body))
		t.Run(f.name+", not opened yet", func(t *testing.T) {
			app, twin := newImage(t, "app", []string{"app"}, l), newImage(t, "twin", []string{"twin"}, l)
			o := newOrigin(t, app, twin)
			release := goneBlobs(o, "app", http.StatusNotFound)
			b := newBed(t, o, nil)
			b.fetch(app)
			name := b.claim(app, 0, "")
			release()
			if _, err := b.Prepare(b.ctx, "alone", name); err != nil {
				t.Fatal(err)
			}
			if _, err := b.Mounts(b.ctx, "alone"); err == nil {
				t.Error("mounted, and nobody has the layer")
			}
			b.fetch(twin)
			b.sees(b.run("container", name), "z", body)
			b.restart()
			b.sees(b.run("again", name), "a", honest)
		})
		if f.whole {
			continue
		}
		t.Run(f.name+", read by parts", func(t *testing.T) {
			app, twin := newImage(t, "app", []string{"app"}, l), newImage(t, "twin", []string{"twin"}, l)
			o := newOrigin(t, app, twin)
			b := newBed(t, o, nil)
			mounts := b.run("container", b.pull(app))
			b.sees(mounts, "a", honest)
			b.fetch(twin)
			o.Answer("/v2/app/blobs/", http.StatusNotFound)
			b.sees(mounts, "z", body)
		})
		t.Run(f.name+", containerd has it", func(t *testing.T) {
			app := newImage(t, "app", nil, l)
			o := newOrigin(t, app)
			b := newBed(t, o, withBlobs)
			mounts := b.run("container", b.pull(app))
			b.sees(mounts, "a", honest)
			o.Answer("/v2/app/blobs/", http.StatusNotFound)
			b.put(l.Desc, l.Blob, nil)
			b.sees(mounts, "z", body)
		})
	}
}

// TestPackedAnew: a layer whose blob its repository has no longer comes from another blob there that holds the same.
func TestPackedAnew(t *testing.T) {
	files := []member{file("a", honest), file("z", noise(22, 400_000))}
	was, is := gzipLayer(t, files...), zstdLayer(t, files...)
	if was.DiffID != is.DiffID {
		t.Fatal("they differ")
	}
	old, anew := newImage(t, "app", nil, was), newImage(t, "app", nil, is)
	o := newOrigin(t, old, anew)
	release := lose(o, http.StatusNotFound, func(_, _, what string) bool { return what == was.Digest().String() })
	b := newBed(t, o, nil)
	b.fetch(old)
	name := b.claim(old, 0, "")
	release()
	b.fails(old)
	b.fetch(anew)
	if err := b.mountings.ensure(b.ctx, b.bindings.get(b.id(name))); err != nil { // as status, repair and releases look
		t.Fatal(err)
	}
	b.sees(b.run("container", name), "z", noise(22, 400_000))
}
