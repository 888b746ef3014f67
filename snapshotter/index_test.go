package snapshotter

import (
	"os"
	"path/filepath"
	"testing"

	fsindex "github.com/remora-storage/remora/fs/index"
	"github.com/remora-storage/remora/remote/registry"
	"github.com/remora-storage/remora/snapshotter/layers"
)

// indexOf is where a layer's index is kept.
func (b *bed) indexOf(l layer) string {
	return filepath.Join(b.root, "indexes", l.Digest().Encoded()+".index")
}

func trusting(b *bed) {
	b.opts.Layers.IndexOf = func(registry.Repository) layers.IndexPolicy { return layers.IndexPolicy{Trust: true} }
}

// TestIndexOfImport: a layer that was imported once is read by parts the next time, by the index that was made of it,
// if it can be read by parts at all.
func TestIndexOfImport(t *testing.T) {
	for _, f := range formats[2:] {
		t.Run(f.name, func(t *testing.T) {
			l, small, rest := large(t, f.make)
			im := newImage(t, "app", nil, l)
			b := newBed(t, newOrigin(t, im), nil)
			name := b.pull(im)
			b.run("container", name)
			b.remove("container", name)
			b.restart() // has the index written now
			b.origin.Forget()
			mounts := b.run("container", b.pull(im))
			b.sees(mounts, "small", small)
			st := b.statusOf(l)
			if st.Format != "index" || st.Fetched > st.Data/2 {
				t.Errorf("status: %+v", st)
			}
			b.sees(mounts, "rest", rest)
		})
	}
}

// TestDamagedIndex: an index that is not one is of no use, and the layer is imported.
func TestDamagedIndex(t *testing.T) {
	body := noise(3, 50_000)
	l, other := gzipLayer(t, file("a", body)), gzipLayer(t, file("b", body))
	good := indexOf(t, l)
	for name, data := range map[string][]byte{
		"empty": {}, "text": []byte("hello"), "of another layer": indexOf(t, other), "cut": good[:len(good)/2],
	} {
		t.Run(name, func(t *testing.T) {
			im := newImage(t, "app", nil, l)
			b := newBed(t, newOrigin(t, im), func(b *bed) {
				path := b.indexOf(l)
				if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, data, 0o600); err != nil {
					t.Fatal(err)
				}
			})
			b.sees(b.run("container", b.pull(im)), "a", body)
			if st := b.statusOf(l); st.Format != "import" {
				t.Errorf("format %s", st.Format)
			}
		})
	}
}

// TestPublishedIndex: layers are read by the index that is published beside the image where that is trusted, and
// imported where it is not, or where it is no index.
func TestPublishedIndex(t *testing.T) {
	l, small, _ := large(t, gzipLayer)
	for name, c := range map[string]struct {
		data   []byte
		change func(*bed)
		format string
	}{
		"trusted":     {fsindex.Join([][]byte{indexOf(t, l)}), trusting, "index"},
		"not trusted": {fsindex.Join([][]byte{indexOf(t, l)}), nil, "import"},
		"no index":    {[]byte("hello"), trusting, "import"},
		"another's":   {fsindex.Join([][]byte{indexOf(t, gzipLayer(t, file("b", nil)))}), trusting, "import"},
	} {
		t.Run(name, func(t *testing.T) {
			im := newImage(t, "app", nil, l)
			o := newOrigin(t, im)
			publish(t, o, im, fsindex.Artifact, c.data)
			b := newBed(t, o, c.change)
			b.sees(b.run("container", b.pull(im)), "small", small)
			if st := b.statusOf(l); st.Format != c.format {
				t.Errorf("format %s, want %s", st.Format, c.format)
			}
		})
	}
}

// TestPublishIndexes: what was made of an image's layers is published beside the image, once, and the next node reads
// by it.
func TestPublishIndexes(t *testing.T) {
	l, small, _ := large(t, gzipLayer)
	im := newImage(t, "app", nil, l)
	o := newOrigin(t, im)
	tag := registry.ArtifactTag(im.Target.Digest, fsindex.Artifact.Tag)
	publishing := func(b *bed) {
		b.opts.Layers.IndexOf = func(registry.Repository) layers.IndexPolicy { return layers.IndexPolicy{Publish: true} }
	}
	first := newBed(t, o, publishing)
	first.run("container", first.pull(im))
	eventually(t, "the index is published", func() bool { return o.Has(im.Path + ":" + tag) })
	second := newBed(t, o, trusting)
	second.sees(second.run("container", second.pull(im)), "small", small)
	if st := second.statusOf(l); st.Format != "index" {
		t.Errorf("format %s", st.Format)
	}
}
