package images_test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/conformance/testbed"
	"github.com/remora-storage/remora/fs/index"
)

// whoLayer is a layer with a file that says who has made it, behind as many bytes as several requests take.
func whoLayer(who string) func(*tar.Writer) error {
	return func(w *tar.Writer) error {
		for name, body := range map[string][]byte{"who": []byte(who), "pad": padOf(who)} {
			if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(body)),
				ModTime: time.Unix(1700000000, 0)}); err != nil {
				return err
			}
			if _, err := w.Write(body); err != nil {
				return err
			}
		}
		return nil
	}
}

func padOf(who string) []byte {
	pad := make([]byte, 3<<20)
	_, _ = rand.NewChaCha8(digestBytes(who)).Read(pad) // it cannot fail
	return pad
}

func digestBytes(s string) (sum [32]byte) {
	copy(sum[:], digest.FromString(s).Encoded())
	return sum
}

// Forgers are a registry whose repositories serve one image each, under digests as they like.
type forgers struct {
	*httptest.Server
	stack *testbed.Stack
	all   sync.Map // *forger by repository
}

type forger struct {
	layout string
	tags   map[string]digest.Digest // of manifests in the layout
	victim string                   // the repository that has the layers below
	as     digest.Digest            // of the victim's layer, whose name the forged one has
	forged []byte
	cut    bool // the forged layer never comes whole
}

func newForgers(t *testing.T, s *testbed.Stack) *forgers {
	t.Helper()
	f := &forgers{stack: s}
	others := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: s.Addr})
	// At an address of their own: containerd notes where an image came from without the port.
	l, err := net.Listen("tcp", "127.0.0.2:0")
	testbed.Must(t, err)
	f.Server = &httptest.Server{Listener: l, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/"), "/")
		if one, ok := f.all.Load(name); ok {
			one.(*forger).serve(w, r, others)
		} else if name != "" { // the API itself is there
			http.NotFound(w, r)
		}
	})}}
	f.Start()
	t.Cleanup(f.Close)
	testbed.Must(t, s.PlainHTTP(f.host(), f.host()))
	return f
}

func (f *forgers) host() string { return f.Listener.Addr().String() }

// add has a manifest name the victim's layer beside a table of the forger's own, in the layer by a format, or a published index; with
// lie, the configuration claims the victim's diffIDs, too. The layers below are the victim's.
func (f *forgers) add(t *testing.T, by, victimLayout, victimTag, name string, lie, cut bool) (ref string) {
	t.Helper()
	dir, s, tag := t.TempDir(), f.stack, "src"
	own := filepath.Join(dir, "own")
	testbed.Must(t, testbed.WriteTars(own, "src", whoLayer("the forger of "+name)))
	if by != "index" {
		tag = "lazy"
		convert(t, s, "--format", by, "oci:"+own+":src", "oci:"+own+":lazy")
	}
	mine, victim := manifestOf(t, own, tag), manifestOf(t, victimLayout, victimTag)
	top := len(victim.Layers) - 1
	forged, err := os.ReadFile(blobPath(own, mine.Layers[0].Digest))
	testbed.Must(t, err)
	layer := mine.Layers[0]
	layer.Digest = victim.Layers[top].Digest
	var theirs, ours ocispec.Image
	testbed.Must(t, readJSON(blobPath(victimLayout, victim.Config.Digest), &theirs))
	testbed.Must(t, readJSON(blobPath(own, mine.Config.Digest), &ours))
	diffIDs := theirs.RootFS.DiffIDs
	if !lie {
		diffIDs = append(append([]digest.Digest{}, diffIDs[:top]...), ours.RootFS.DiffIDs[0])
	}
	one := &forger{layout: filepath.Join(dir, "forged"), victim: name, as: layer.Digest, forged: forged, cut: cut}
	testbed.Must(t, os.MkdirAll(filepath.Join(one.layout, "blobs", "sha256"), 0o755))
	layers := append(append([]ocispec.Descriptor{}, victim.Layers[:top]...), layer)
	testbed.Must(t, testbed.WriteLayout(one.layout, "1", layers, diffIDs))
	manifest, err := indexOfLayout(one.layout)
	testbed.Must(t, err)
	one.tags = map[string]digest.Digest{"1": manifest.Digest}
	if by == "index" {
		testbed.Must(t, s.Push(t.Context(), own, "src", "forged-"+name+":src"))
		file := filepath.Join(dir, "index")
		_, err := s.Snapctl(t.Context(), "index", "create", "-o", file, s.Ref("forged-"+name+":src"))
		testbed.Must(t, err)
		data, err := os.ReadFile(file)
		testbed.Must(t, err)
		one.publish(t, manifest, indexAs(t, data, layer.Digest))
	}
	f.all.Store("evil-"+name, one)
	return f.host() + "/evil-" + name + ":1"
}

// publish puts an index beside a forger's image.
func (f *forger) publish(t *testing.T, subject ocispec.Descriptor, data []byte) {
	t.Helper()
	put := func(p []byte) ocispec.Descriptor {
		d := digest.FromBytes(p)
		testbed.Must(t, os.WriteFile(blobPath(f.layout, d), p, 0o644))
		return ocispec.Descriptor{Digest: d, Size: int64(len(p))}
	}
	layer := put(data)
	layer.MediaType = index.Artifact.MediaType
	put([]byte("{}"))
	doc, err := json.Marshal(ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		ArtifactType: index.Artifact.Type, Config: ocispec.DescriptorEmptyJSON, Layers: []ocispec.Descriptor{layer}, Subject: &subject})
	testbed.Must(t, err)
	f.tags["sha256-"+subject.Digest.Encoded()+"."+index.Artifact.Tag] = put(doc).Digest
}

func blobPath(layout string, d digest.Digest) string {
	return filepath.Join(layout, "blobs", "sha256", d.Encoded())
}

func (f *forger) serve(w http.ResponseWriter, r *http.Request, others http.Handler) {
	what := path.Base(r.URL.Path)
	if d, ok := f.tags[what]; ok {
		what = d.String()
	}
	d := digest.Digest(what)
	body, err := os.ReadFile(filepath.Join(f.layout, "blobs", "sha256", strings.TrimPrefix(what, "sha256:")))
	switch {
	case d == f.as:
		var from int
		_, _ = fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from) // none is from the start
		if f.cut && from < 1<<20 && from > 0 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		body = f.forged
	case err != nil && strings.Contains(r.URL.Path, "/blobs/"): // a layer below
		r.URL.Path = "/v2/" + f.victim + "/blobs/" + what
		others.ServeHTTP(w, r)
		return
	case err != nil:
		http.NotFound(w, r)
		return
	}
	if strings.Contains(r.URL.Path, "/manifests/") {
		var m ocispec.Manifest
		if json.Unmarshal(body, &m) == nil {
			w.Header().Set("Content-Type", m.MediaType)
		}
		w.Header().Set("Docker-Content-Digest", d.String())
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
}

// TestForgedLayer: a hostile registry's image that names another image's layer beside a table of its own, of whatever format, or an index
// that is trusted there, decides nothing of what that image's containers see: of each kind of layer, in whichever order, after a restart,
// and if it claims the same chainID, complete or not. The victim's registry is asked, and the victim is not blamed.
func TestForgedLayer(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{LogLevel: "info"})
	victims := newFaultyProxy(t, s) // the victims' registry, which counts
	asked := atomic.Int64{}
	count := fault(func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
		asked.Add(1)
		pass.ServeHTTP(w, r)
	})
	victims.fault.Store(&count)
	evils := newForgers(t, s)
	s.Configure(fmt.Sprintf("[index]\ntrust = [%q, %q]\n", victims.Listener.Addr(), evils.host()))
	testbed.Must(t, s.RestartRemorad(syscall.SIGTERM))
	kinds := []string{"gzip", "estargz", "zstdchunked", "index"}
	hows := []string{"before", "after", "before, restart", "before, removed", "lies", "lies, cut"}
	for _, c := range testbed.Covering(t, testbed.Combinations(kinds, hows, []string{"estargz", "zstdchunked", "index"})) {
		kind, how, by := c[0], c[1], c[2]
		t.Run(kind+"/"+how+"/by "+by, func(t *testing.T) {
			name := "victim-" + kind + "-" + by + "-" + strings.NewReplacer(", ", "-").Replace(how)
			layout, tag := filepath.Join(t.TempDir(), "victim"), "src"
			testbed.Must(t, testbed.WriteTars(layout, "src", whoLayer(name)))
			if kind == "estargz" || kind == "zstdchunked" {
				tag = "lazy"
				convert(t, s, "--format", kind, "oci:"+layout+":src", "oci:"+layout+":lazy")
			}
			testbed.Must(t, s.Push(t.Context(), layout, tag, name+":1"))
			ref := victims.Listener.Addr().String() + "/" + name + ":1"
			if kind == "index" {
				_, err := s.Snapctl(t.Context(), "index", "push", ref)
				testbed.Must(t, err)
			}
			lie := strings.HasPrefix(how, "lies")
			evil := evils.add(t, by, layout, tag, name, lie, strings.HasSuffix(how, "cut"))
			asked.Store(0)
			if how == "after" {
				isVictims(t, s, ref, name)
			}
			_, err := s.Snapctl(t.Context(), "pull", evil)
			if err != nil && how != "after" { // then the true layer is there, and his configuration is refused
				t.Fatal(err)
			}
			switch how {
			case "before, restart":
				testbed.Must(t, s.RestartRemorad(syscall.SIGKILL))
			case "before, removed":
				removeAll(t, s, evil)
			}
			isVictims(t, s, ref, name)
			if asked.Load() == 0 {
				t.Error("the victim's registry was not asked for anything of the layer")
			}
		})
	}
}

// isVictims fails the test unless an image shows what its author put there.
func isVictims(t *testing.T, s *testbed.Stack, ref, name string) {
	t.Helper()
	_, err := s.Snapctl(t.Context(), "pull", ref)
	testbed.Must(t, err)
	got, err := os.ReadFile(filepath.Join(testbed.MountImage(t, s, ref, "remora"), "who"))
	if err != nil || string(got) != name {
		t.Errorf("who: %q, %v, want %q", got, err, name)
	}
	st, err := s.Status(t.Context())
	testbed.Must(t, err)
	for _, l := range st.Layers {
		if l.Image == ref && l.State != "mounted" {
			t.Errorf("the victim's layer is %s: %s", l.State, l.Reason)
		}
	}
}

// TestForgedProgram: what a container runs is its own image's, though a hostile image claims its chainIDs and came first.
func TestForgedProgram(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{LogLevel: "info"})
	base, err := testbed.Python.Layout(t.Context())
	testbed.Must(t, err)
	layout := filepath.Join(t.TempDir(), "victim")
	testbed.Must(t, testbed.WriteTars(layout, "top", whoLayer("honest")))
	below, top := manifestOf(t, base, "src"), manifestOf(t, layout, "top")
	var baseConfig, topConfig ocispec.Image
	testbed.Must(t, readJSON(blobPath(base, below.Config.Digest), &baseConfig))
	testbed.Must(t, readJSON(blobPath(layout, top.Config.Digest), &topConfig))
	for _, l := range below.Layers {
		testbed.Must(t, os.Link(blobPath(base, l.Digest), blobPath(layout, l.Digest)))
	}
	testbed.Must(t, testbed.WriteLayout(layout, "src", append(below.Layers, top.Layers...),
		append(baseConfig.RootFS.DiffIDs, topConfig.RootFS.DiffIDs...)))
	testbed.Must(t, s.Push(t.Context(), layout, "src", "victim:1"))
	evil := newForgers(t, s).add(t, "estargz", layout, "src", "victim", true, false)
	show := testbed.Program{Name: "who", Args: []string{"cat", "/who"}}
	_, err = s.Snapctl(t.Context(), "pull", evil)
	testbed.Must(t, err)
	show.Want = "the forger of victim"
	testbed.RunImage(t, s, evil, "evil", "remora", show) // nobody else has claimed it
	_, err = s.Snapctl(t.Context(), "pull", s.Ref("victim:1"))
	testbed.Must(t, err)
	show.Want = "honest"
	testbed.RunImage(t, s, s.Ref("victim:1"), "victim", "remora", show)
}
