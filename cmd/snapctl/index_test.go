package main

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/cmd/internal/cmdtest"
)

// TestIndex makes an image's index, publishes it beside the image, which stays as it is, and takes both away again.
func TestIndex(t *testing.T) {
	u, reg := newUser(t), cmdtest.NewRegistry(t)
	src := program(t, cmdtest.Docker)
	reg.Put("app", "1", src)
	image := reg.Ref("app:1")
	u.run("index", "show", image).fails(1, "no index of "+image, "snapctl index create")
	contains(t, u.run("index", "ls").ok(), "IMAGE")

	made := decode[createdIndex](u.run("--json", "index", "create", "-o", u.path("app.index"), image))
	if made.Digest != src.Target.Digest || len(made.Layers) != 2 || made.Bytes == 0 || len(made.Skipped) != 0 {
		t.Errorf("made: %+v", made)
	}
	if st, err := os.Stat(u.path("app.index")); err != nil || st.Size() != made.Bytes {
		t.Errorf("the file: %v, %v", st, err)
	}
	if len(reg.Requests("PUT ")) > 0 || len(reg.Requests("POST ")) > 0 {
		t.Error("create has published something")
	}
	contains(t, u.run("index", "ls").ok(), image, short(src.Target.Digest))
	all := decode[[]savedIndex](u.run("--json", "index", "ls"))
	if len(all) != 1 || all[0].Image != image || all[0].Bytes != made.Bytes {
		t.Errorf("listed: %+v", all)
	}
	contains(t, u.run("index", "show", image).ok(), "2 layers", "LAYER", "of the image")
	u.run("index", "show", "--published", image).fails(1, "no index of")

	contains(t, u.run("index", "push", image).ok(), "published the index of "+image)
	shown := decode[shownIndex](u.run("--json", "index", "show", "--published", image))
	if shown.Bytes != made.Bytes || shown.Layers[0].Digest != src.Manifest(t).Layers[0].Digest {
		t.Errorf("published: %+v", shown)
	}
	if reg.Get("app", "1").Target.Digest != src.Target.Digest {
		t.Error("the image has changed")
	}
	u.run("index", "rm", "--published", image).ok()
	u.run("index", "show", "--published", image).fails(1, "no index of")
	u.run("index", "rm", image).ok()
	u.run("index", "rm", image).ok() // one that is not there is no error
	if all := decode[[]savedIndex](u.run("--json", "index", "ls")); len(all) != 0 {
		t.Errorf("left: %+v", all)
	}
}

// TestIndexPush makes an index first if there is none, takes one from a file, and refuses one of another image.
func TestIndexPush(t *testing.T) {
	u, reg := newUser(t), cmdtest.NewRegistry(t)
	reg.Put("app", "1", program(t, cmdtest.OCI))
	reg.Put("other", "1", cmdtest.NewImage(t, cmdtest.OCI, []cmdtest.File{{Path: "x", Data: cmdtest.Noise(7, 50_000)}}))
	u.run("index", "push", reg.Ref("app:1")).ok()
	if tags := reg.Tags("app"); len(tags) < 2 {
		t.Errorf("nothing was published: %v", tags)
	}
	u.run("index", "create", "-o", u.path("other.index"), reg.Ref("other:1")).ok()
	u.run("index", "push", reg.Ref("app:1"), u.path("other.index")).fails(1, "the index is of another image")
	u.run("index", "push", reg.Ref("app:1"), u.file("junk", "hello")).fails(1)
	u.run("index", "push", reg.Ref("app:1"), u.path("none")).fails(1, "none")
	got := decode[struct{ Tag string }](u.run("--json", "index", "push", reg.Ref("other:1"), u.path("other.index")))
	if !strings.Contains(strings.Join(reg.Tags("other"), " "), got.Tag) {
		t.Errorf("no tag %s among %v", got.Tag, reg.Tags("other"))
	}
	u.run("index", "push").fails(2, "an image and perhaps a file")
	u.run("index", "push", "a", "b", "c").fails(2)
	u.run("index", "push", reg.Ref("none:1")).fails(1, "none:1")
	u.run("index", "create", reg.Ref("none:1")).fails(1, "none:1")
}

// TestIndexSkips layers that need no index, and layers that can have none.
func TestIndexSkips(t *testing.T) {
	u, reg := newUser(t), cmdtest.NewRegistry(t)
	reg.Put("app", "1", program(t, cmdtest.OCI))
	u.run("convert", reg.Ref("app:1"), reg.Ref("app:lazy")).ok()
	u.run("index", "create", reg.Ref("app:lazy")).fails(1, "no layer needs an index", "an index of its own")

	src := program(t, cmdtest.OCI)
	m := src.Manifest(t)
	m.Layers[0].MediaType = "application/vnd.example.layer"
	reg.Put("app", "strange", cmdtest.WithManifest(t, src, m))
	r := u.run("index", "create", reg.Ref("app:strange"))
	contains(t, r.ok(), "skipped: media type application/vnd.example.layer is not known", short(m.Layers[0].Digest))
}

// TestIndexOfAnIndex is of this machine's platform.
func TestIndexOfAnIndex(t *testing.T) {
	u, reg := newUser(t), cmdtest.NewRegistry(t)
	mine := program(t, cmdtest.OCI)
	other := cmdtest.ImageFor(t, cmdtest.OCI, ocispec.Platform{OS: "linux", Architecture: "s390x"},
		[]cmdtest.File{{Path: "x", Data: cmdtest.Noise(7, 50_000)}})
	reg.Put("app", "1", cmdtest.NewIndex(t, ocispec.MediaTypeImageIndex, other, mine))
	if made := decode[createdIndex](u.run("--json", "index", "create", reg.Ref("app:1"))); made.Digest != mine.Target.Digest {
		t.Errorf("made of %s, want %s", made.Digest, mine.Target.Digest)
	}
	reg.Put("app", "2", cmdtest.NewIndex(t, ocispec.MediaTypeImageIndex, other))
	u.run("index", "create", reg.Ref("app:2")).fails(1)
}

// TestIndexStore keeps what it was given, and says which file is damaged.
func TestIndexStore(t *testing.T) {
	u := newUser(t)
	s, err := openIndexStore()
	if err != nil {
		t.Fatal(err)
	}
	d := digest.FromString("image")
	if _, err := s.get(d); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what was never put: %v", err)
	}
	if err := s.put(savedIndex{Image: "b", Digest: d}, []byte("data")); err != nil {
		t.Fatal(err)
	}
	if err := s.put(savedIndex{Image: "a", Digest: digest.FromString("other")}, []byte("data")); err != nil {
		t.Fatal(err)
	}
	if all, err := s.list(); err != nil || len(all) != 2 || all[0].Image != "a" {
		t.Errorf("list: %+v, %v", all, err)
	}
	if err := os.WriteFile(s.path(d, savedNoteSuffix), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	u.run("index", "ls").fails(1, s.path(d, savedNoteSuffix))
	if err := s.remove(d); err != nil {
		t.Fatal(err)
	}
	if all, err := s.list(); err != nil || len(all) != 1 {
		t.Errorf("after a removal: %+v, %v", all, err)
	}
}
