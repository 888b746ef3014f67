package main

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/images"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/cmd/internal/cmdtest"
	"github.com/remora-storage/remora/fs/annotation"
	"github.com/remora-storage/remora/fs/format/zstdchunked"
)

// TestConvertInARegistry converts from and to a registry, in both formats.
func TestConvertInARegistry(t *testing.T) {
	for _, format := range []string{"estargz", "zstdchunked"} {
		t.Run(format, func(t *testing.T) {
			u, reg := newUser(t), cmdtest.NewRegistry(t)
			src := program(t, cmdtest.Docker)
			reg.Put("app", "1", src)
			r := u.run("--json", "convert", "--format", format, "--annotation", "who=me", reg.Ref("app:1"), reg.Ref("lazy/app:1"))
			got := decode[convertedImage](r)
			made := reg.Get("lazy/app", "1")
			if made == nil || made.Target.Digest != got.Digest {
				t.Fatalf("the registry has %v, not %s", made, got.Digest)
			}
			m, before := made.Manifest(t), src.Manifest(t)
			if len(got.Layers) != 2 || got.Layers[0].From != before.Layers[0].Digest || got.Layers[1].To != m.Layers[1].Digest {
				t.Errorf("layers %+v of %+v", got.Layers, m.Layers)
			}
			if got.Before != before.Layers[0].Size+before.Layers[1].Size || got.Uploaded <= got.After {
				t.Errorf("sizes: %+v", got)
			}
			if m.Annotations["who"] != "me" {
				t.Errorf("annotations %v", m.Annotations)
			}
			for i, l := range m.Layers {
				_, chunked, err := zstdchunked.Named(l.Annotations)
				if err != nil || chunked != (format == "zstdchunked") || (l.Annotations[annotation.TOCDigest] != "") != (format == "estargz") {
					t.Errorf("layer %d has annotations %v (%v)", i, l.Annotations, err)
				}
			}
			wantTypes := cmdtest.Docker
			if format == "zstdchunked" {
				wantTypes = cmdtest.Types{Manifest: ocispec.MediaTypeImageManifest, Config: ocispec.MediaTypeImageConfig,
					Layer: ocispec.MediaTypeImageLayerZstd}
			}
			if (cmdtest.Types{Manifest: m.MediaType, Config: m.Config.MediaType, Layer: m.Layers[0].MediaType}) != wantTypes {
				t.Errorf("media types %s, %s, %s", m.MediaType, m.Config.MediaType, m.Layers[0].MediaType)
			}
			contains(t, r.stderr, "layer 1 of 2", "converted")

			// Again, nothing is made or sent but what has another name.
			reg.Forget()
			again := decode[convertedImage](u.run("--json", "convert", "--format", format, "--annotation", "who=me", reg.Ref("app:1"),
				reg.Ref("lazy/app:1")))
			if again.Digest != got.Digest || again.Uploaded != 0 || again.Layers[0].How != "known" {
				t.Errorf("the second time: %+v", again)
			}
			if posts := reg.Requests("POST "); len(posts) > 0 {
				t.Errorf("uploads the second time: %v", posts)
			}
			// To another repository, blobs are taken over from where an earlier run has put them.
			moved := decode[convertedImage](u.run("--json", "convert", "--format", format, reg.Ref("app:1"), reg.Ref("other:1")))
			if posts := reg.Requests("POST /v2/other/blobs/uploads/?mount=" + got.Layers[0].To.String() +
				"&from=lazy/app"); moved.Uploaded >= moved.After || len(posts) != 1 {
				t.Errorf("%d bytes sent; uploads %v", moved.Uploaded, reg.Requests("POST "))
			}
			// What is in the format already can stay as it is.
			reused := decode[convertedImage](u.run("--json", "convert", "--format", format, "--reuse", reg.Ref("lazy/app:1"), reg.Ref("reused:1")))
			if reused.Layers[0].How != "reused" || reused.Layers[0].To != m.Layers[0].Digest {
				t.Errorf("reused: %+v", reused.Layers)
			}
			if left, _ := filepath.Glob(u.path("cache/remora/convert/run-*")); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// TestConvertPlaces takes an image through every place that one can come from or go to, but containerd.
func TestConvertPlaces(t *testing.T) {
	u, reg := newUser(t), cmdtest.NewRegistry(t)
	program(t, cmdtest.OCI).WriteLayout(t, u.path("src"), "v1")
	said := u.run("convert", "oci:"+u.path("src")+":v1", "oci:"+u.path("lazy")+":v1").ok()
	contains(t, said, "2 layers", "uploaded")
	lazy, err := cmdtest.ReadLayout(u.path("lazy"), "v1")
	if err != nil {
		t.Fatal(err)
	}
	u.run("convert", "--reuse", "oci:"+u.path("lazy")+":v1", "docker-archive:"+u.path("lazy.tar")+":team/app:v1").ok()
	u.run("convert", "--reuse", "docker-archive:"+u.path("lazy.tar"), reg.Ref("app:1")).ok()
	u.run("convert", "--reuse", "docker-archive:"+u.path("lazy.tar")+":team/app:v1", "oci:"+u.path("back")+":v2").ok()
	back, err := cmdtest.ReadLayout(u.path("back"), "v2")
	if err != nil {
		t.Fatal(err)
	}
	for name, img := range map[string]*cmdtest.Image{"layout": back, "registry": reg.Get("app", "1")} {
		for i, l := range img.Manifest(t).Layers {
			if want := lazy.Manifest(t).Layers[i]; l.Digest != want.Digest {
				t.Errorf("%s: layer %d is %s, not %s", name, i, l.Digest, want.Digest)
			}
		}
	}
	if st, err := os.Stat(u.path("lazy.tar")); err != nil || st.Mode().Perm() != 0o644 {
		t.Errorf("archive: %v, %v", st, err)
	}
	u.run("convert", "docker-archive:"+u.path("lazy.tar")+":other:v1", reg.Ref("app:2")).fails(1, "holds no image", "docker.io/team/app:v1")
	u.run("convert", "docker-archive:"+u.file("not.tar", "hello"), reg.Ref("app:2")).fails(1, "not.tar")
	u.run("convert", "docker-archive:"+u.path("none.tar"), reg.Ref("app:2")).fails(1, "none.tar")
	u.run("convert", "oci:"+u.path("lazy")+":v9", reg.Ref("app:2")).fails(1, "v9")
	u.run("convert", "oci:"+u.path("none")+":v1", reg.Ref("app:2")).fails(1, "none")
	u.run("convert", reg.Ref("app:9"), "oci:"+u.path("x")+":v1").fails(1, "app:9")
}

// TestConvertIndex converts all platforms of an index, some of them, and none that it has.
func TestConvertIndex(t *testing.T) {
	u, reg := newUser(t), cmdtest.NewRegistry(t)
	files := []cmdtest.File{{Path: "bin", Data: cmdtest.Noise(1, 50_000)}}
	amd := cmdtest.ImageFor(t, cmdtest.Docker, ocispec.Platform{OS: "linux", Architecture: "amd64"}, files)
	arm := cmdtest.ImageFor(t, cmdtest.Docker, ocispec.Platform{OS: "linux", Architecture: "arm64"}, files)
	attested := cmdtest.ImageFor(t, cmdtest.Docker, ocispec.Platform{OS: "unknown", Architecture: "unknown"}, files)
	reg.Put("app", "1", cmdtest.NewIndex(t, images.MediaTypeDockerSchema2ManifestList, amd, arm, attested))
	read := func(tag string) (index ocispec.Index) {
		img := reg.Get("lazy", tag)
		img.Read(t, img.Target.Digest, &index)
		return index
	}

	u.run("convert", reg.Ref("app:1"), reg.Ref("lazy:all")).ok()
	all := read("all")
	if len(all.Manifests) != 2 || all.Manifests[1].Platform.Architecture != "arm64" ||
		all.MediaType != images.MediaTypeDockerSchema2ManifestList {
		t.Errorf("all: %+v", all)
	}
	u.run("convert", "--oci", "--platform", "linux/amd64,linux/arm64", reg.Ref("app:1"), reg.Ref("lazy:two")).ok()
	if two := read("two"); len(two.Manifests) != 2 || two.MediaType != ocispec.MediaTypeImageIndex ||
		two.Manifests[0].MediaType != ocispec.MediaTypeImageManifest {
		t.Errorf("as OCI: %+v", two)
	}
	u.run("convert", "--platform", "linux/arm64", reg.Ref("app:1"), reg.Ref("lazy:arm")).ok()
	if img := reg.Get("lazy", "arm"); img.Target.Digest != all.Manifests[1].Digest || img.Config(t).Architecture != "arm64" {
		t.Errorf("one platform: %s, want %s", img.Target.Digest, all.Manifests[1].Digest)
	}
	u.run("convert", "--platform", "linux/s390x", reg.Ref("app:1"), reg.Ref("lazy:s390x")).fails(1, "linux/amd64", "linux/arm64",
		"linux/s390x")
	if reg.Get("lazy", "s390x") != nil {
		t.Error("something has the name of what could not be made")
	}
}

// TestConvertDryRun: nothing is made, anywhere.
func TestConvertDryRun(t *testing.T) {
	u, reg := newUser(t), cmdtest.NewRegistry(t)
	reg.Put("app", "1", program(t, cmdtest.Docker))
	contains(t, u.run("convert", "--dry-run", reg.Ref("app:1"), "oci:"+u.path("out")+":v1").ok(), "would be converted", "2 layers")
	if _, err := os.Stat(u.path("out")); err == nil {
		t.Error("a layout was made")
	}
	got := decode[convertedImage](u.run("--json", "convert", "--dry-run", reg.Ref("app:1"), reg.Ref("lazy:1")))
	if !got.DryRun || got.Digest != "" || got.Uploaded != 0 || len(reg.Requests("POST ")) > 0 || len(reg.Requests("PUT ")) > 0 {
		t.Errorf("%+v, asked for %v", got, reg.Requests(""))
	}
	u.run("convert", reg.Ref("app:1"), reg.Ref("lazy:1")).ok()
	contains(t, u.run("convert", "--dry-run", reg.Ref("app:1"), reg.Ref("lazy:2")).ok(), "would be known")
	contains(t, u.run("convert", "--dry-run", "--reuse", reg.Ref("lazy:1"), reg.Ref("lazy:2")).ok(), "would be reused")
}

// TestConvertOrder puts what a profile and a list name first, publishes the profile, and says which path of the list is in no
// layer.
func TestConvertOrder(t *testing.T) {
	u, reg := newUser(t), cmdtest.NewRegistry(t)
	reg.Put("app", "1", program(t, cmdtest.OCI))
	list := u.file("list", "# what is read first\n\n/app/main\n/no/such/file\n")
	r := u.run("convert", "--profile", u.file("p.json", profileText(t, "/app/data")), "--prioritize", list, reg.Ref("app:1"),
		reg.Ref("app:lazy"))
	r.ok()
	contains(t, r.stderr, "warning: /no/such/file is in no layer")
	if strings.Contains(r.stderr, "warning: /app/main") {
		t.Errorf("a warning of a path that is there:\n%s", r.stderr)
	}
	contains(t, u.run("profile", "show", "--published", reg.Ref("app:lazy")).ok(), "/app/data", reg.Ref("app"))

	u.run("convert", "--profile", u.path("none"), reg.Ref("app:1"), reg.Ref("app:2")).fails(1, "--profile", "none")
	u.run("convert", "--profile", list, reg.Ref("app:1"), reg.Ref("app:2")).fails(1, "--profile", list)
	u.run("convert", "--prioritize", u.path("none"), reg.Ref("app:1"), reg.Ref("app:2")).fails(1, "--prioritize", "none")
}

// TestConvertLogin uses --user with each place that a password may be in. convert logs in twice, to source and destination,
// and stdin can be read once.
func TestConvertLogin(t *testing.T) {
	u, reg := newUser(t), cmdtest.NewRegistry(t)
	reg.Put("app", "1", program(t, cmdtest.OCI))
	reg.Require("robot:secret")
	to := "oci:" + u.path("out") + ":v1"
	u.run("convert", reg.Ref("app:1"), to).fails(1, "app:1", "no basic auth credentials")
	u.run("convert", "--user", "robot", reg.Ref("app:1"), to).fails(2, "SNAPCTL_PASSWORD")
	u.types = "secret\n"
	u.run("convert", "--user", "robot", "--password-stdin", reg.Ref("app:1"), reg.Ref("app:stdin")).ok()
	u.types = ""
	u.run("convert", "--user", "robot", "--password-file", u.file("password", "secret\r\n"), reg.Ref("app:1"), to).ok()
	t.Setenv("SNAPCTL_PASSWORD", "wrong")
	r := u.run("convert", "--user", "robot", reg.Ref("app:1"), to)
	r.fails(1, "401")
	if strings.Contains(r.err.Error()+r.stderr, "wrong") {
		t.Errorf("the password is in %v", r.err)
	}
	t.Setenv("SNAPCTL_PASSWORD", "secret")
	u.run("convert", "--user", "robot", reg.Ref("app:1"), reg.Ref("app:lazy")).ok()
}

// TestConvertRefuses what is no image, or not one that it can convert.
func TestConvertRefuses(t *testing.T) {
	u, reg := newUser(t), cmdtest.NewRegistry(t)
	good := program(t, cmdtest.OCI)
	reg.Put("app", "1", good)
	to := "oci:" + u.path("out") + ":v1"

	noDiffIDs := cmdtest.NewImage(t, cmdtest.OCI)
	m := good.Manifest(t)
	m.Config = noDiffIDs.Manifest(t).Config
	reg.Put("app", "config", cmdtest.WithManifest(t, noDiffIDs, m))
	u.run("convert", reg.Ref("app:config"), to).fails(1, "0 diffIDs for 2 layers")

	m = good.Manifest(t)
	m.Layers[0].URLs = []string{"https://elsewhere.example.com/blob"}
	reg.Put("app", "foreign", cmdtest.WithManifest(t, good, m))
	u.run("convert", reg.Ref("app:foreign"), to).fails(1, "foreign layers")

	// A registry that serves other bytes, or none.
	layer := good.Manifest(t).Layers[0].Digest.String()
	for name, fault := range map[string]func(http.ResponseWriter){
		"other bytes": func(w http.ResponseWriter) { _, _ = w.Write(make([]byte, good.Manifest(t).Layers[0].Size)) },
		"no such":     func(w http.ResponseWriter) { w.WriteHeader(http.StatusNotFound) },
	} {
		t.Run(name, func(t *testing.T) {
			reg.Fault(func(w http.ResponseWriter, q *http.Request) bool {
				if q.Method == http.MethodGet && strings.HasSuffix(q.URL.Path, layer) {
					fault(w)
					return true
				}
				return false
			})
			u.run("convert", reg.Ref("app:1"), to).fails(1, "layer "+layer)
		})
	}
	reg.Fault(nil)

	// A destination that takes no blobs.
	reg.Fault(func(w http.ResponseWriter, q *http.Request) bool {
		if q.Method == http.MethodPost {
			w.WriteHeader(http.StatusForbidden)
			return true
		}
		return false
	})
	u.run("convert", reg.Ref("app:1"), reg.Ref("lazy:1")).fails(1, "store sha256:", "403")
	if reg.Get("lazy", "1") != nil {
		t.Error("something has the name of what could not be stored")
	}
}

// TestConvertUsage refuses wrong arguments before anything is asked for.
func TestConvertUsage(t *testing.T) {
	u, reg := newUser(t), cmdtest.NewRegistry(t)
	src, dst := reg.Ref("app:1"), reg.Ref("lazy:1")
	for want, args := range map[string][]string{
		"a source and a destination":    {src},
		"unknown flag":                  {"--fast", src, dst},
		"want one of":                   {"--format", "zip", src, dst},
		"1 to 9":                        {"--level", "10", src, dst},
		"1 to 22":                       {"--format", "zstdchunked", "--level", "23", src, dst},
		"podman or stargz":              {"--toc-for", "docker", src, dst},
		"4KiB to 64MiB":                 {"--chunk-size", "1KiB", src, dst},
		"--jobs -1":                     {"--jobs", "-1", src, dst},
		"want KEY=VALUE":                {"--annotation", "novalue", src, dst},
		`--platform "a/b/c/d/e"`:        {"--platform", "a/b/c/d/e", src, dst},
		"want oci:DIR:TAG":              {"oci:dir", dst},
		"want docker-archive:FILE":      {"docker-archive:", dst},
		`image "No Such Image"`:         {"No Such Image", dst},
		`image "localhost/UPPER"`:       {src, "localhost/UPPER"},
		`image "localhost/UPPER/again"`: {src, "containerd:localhost/UPPER/again"},
		"snapctl convert --help":        {src, dst, "more"},
	} {
		u.run(append([]string{"convert"}, args...)...).fails(2, want)
	}
	if asked := reg.Requests(""); len(asked) > 0 {
		t.Errorf("the registry was asked for %v", asked)
	}
	reg.Put("app", "1", program(t, cmdtest.OCI))
	u.run("convert", src, reg.Ref("lazy@"+program(t, cmdtest.OCI).Target.Digest.String())).fails(2, "needs a tag")
}
