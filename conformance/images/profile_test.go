package images_test

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	oras "oras.land/oras-go/v2/registry/remote"

	"github.com/remora-storage/remora/conformance/testbed"
	"github.com/remora-storage/remora/fs/profile"
	"github.com/remora-storage/remora/remote/registry"
)

// fewWaits is how many reads of a start by profile may wait for the network.
const fewWaits = 5

// unlisted pushes a program's image converted without any list.
func unlisted(t *testing.T, s *testbed.Stack, p testbed.Program, name string) string {
	t.Helper()
	layout, err := p.UnlistedLayout(t.Context())
	testbed.Must(t, err)
	testbed.Must(t, s.Push(t.Context(), layout, "lazy", name))
	return s.Ref(name)
}

// start pulls an image that is not here, runs its program, and returns what became of its bytes.
func start(t *testing.T, s *testbed.Stack, ref, id string, p testbed.Program) (sum testbed.LayerStatus) {
	t.Helper()
	_, err := s.Snapctl(t.Context(), "pull", ref)
	testbed.Must(t, err)
	testbed.RunImage(t, s, ref, id, "remora", p)
	return account(t, s, ref)
}

// account adds up what `snapctl status IMAGE` says of an image's layers.
func account(t *testing.T, s *testbed.Stack, ref string) (sum testbed.LayerStatus) {
	t.Helper()
	out, err := s.Snapctl(t.Context(), "status", "--json", ref)
	testbed.Must(t, err)
	var st testbed.Status
	if err := json.Unmarshal([]byte(out), &st); err != nil || len(st.Layers) == 0 {
		t.Fatalf("%v: %s", err, out)
	}
	for _, l := range st.Layers {
		sum.PrefetchedBytes += l.PrefetchedBytes
		sum.PrefetchUsedBytes += l.PrefetchUsedBytes
		sum.DemandBytes += l.DemandBytes
		sum.Waits += l.Waits
		sum.WaitSeconds += l.WaitSeconds
	}
	t.Logf("%s: %d bytes prefetched, %d of them used, %d on demand, %d reads waited %.3f s", ref,
		sum.PrefetchedBytes, sum.PrefetchUsedBytes, sum.DemandBytes, sum.Waits, sum.WaitSeconds)
	return sum
}

// removed removes an image and waits until nothing of its layers is left.
func removed(t *testing.T, s *testbed.Stack, ref string) {
	t.Helper()
	_, err := s.Ctr(t.Context(), "images", "rm", "--sync", ref)
	testbed.Must(t, err)
	waitNoLayers(t, s)
}

// settled does what begins the start of an image, and returns what became of its bytes when prefetching has ended: the account
// is that of the whole start then.
func settled(t *testing.T, s *testbed.Stack, ref string, begin func()) testbed.LayerStatus {
	t.Helper()
	ended := func() int { return countLog(t, s, "msg=prefetched", "image="+ref+" ") }
	before := ended()
	begin()
	testbed.WaitFor(t, "prefetching to end", func() bool { return ended() > before })
	return account(t, s, ref)
}

// settledStart is a start whose prefetching has ended.
func settledStart(t *testing.T, s *testbed.Stack, ref, id string, p testbed.Program) testbed.LayerStatus {
	t.Helper()
	return settled(t, s, ref, func() { start(t, s, ref, id, p) })
}

// wellPrefetched checks the account of a start by profile.
func wellPrefetched(t *testing.T, what string, a testbed.LayerStatus) {
	t.Helper()
	if a.Waits > fewWaits+allowance {
		t.Errorf("%s: %d reads waited", what, a.Waits)
	}
	if a.PrefetchedBytes == 0 || a.PrefetchUsedBytes*10 < a.PrefetchedBytes*7 {
		t.Errorf("%s: %d of %d prefetched bytes were used", what, a.PrefetchUsedBytes, a.PrefetchedBytes)
	}
	if a.DemandBytes*10 > a.PrefetchedBytes {
		t.Errorf("%s: %d bytes were fetched on demand, %d before", what, a.DemandBytes, a.PrefetchedBytes)
	}
}

// allowance is for a registry on loopback: with hardly any delay, containers start before the first
// bytes have been decoded. The benchmark counts behind a link.
const allowance = 20

// TestProfile records what a program reads, publishes it, and has another node, and another build of
// the image, start by it.
func TestProfile(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{})
	p := testbed.Programs[0]
	ref := unlisted(t, s, p, "python/profiled:1")
	file := filepath.Join(t.TempDir(), "python.profile")
	out, err := s.Snapctl(t.Context(), append([]string{"record", "--json", "--until-line", p.Want, "-o", file, ref, "--"}, p.Args...)...)
	testbed.Must(t, err)
	var rec struct {
		Ended                string
		Files, Entries, Runs int
		Bytes                int64
	}
	testbed.Must(t, json.Unmarshal([]byte(out), &rec))
	if rec.Ended != "line printed" || rec.Files < 100 || rec.Entries < rec.Files || rec.Runs != 1 {
		t.Errorf("recorded %+v", rec)
	}
	if left, err := os.ReadDir(filepath.Join(s.Root, "record")); err == nil && len(left) > 0 {
		t.Errorf("left of the recording: %v", left)
	}
	shown, err := s.Snapctl(t.Context(), "profile", "show", "--all", ref)
	testbed.Must(t, err)
	if !strings.Contains(shown, "/usr/bin/python3") || !strings.Contains(shown, "libc.so.6") {
		t.Errorf("profile show:\n%s", shown)
	}
	// Recorded once more, it is of two runs, and hardly larger.
	_, err = s.Snapctl(t.Context(), append([]string{"record", ref, "--"}, p.Args...)...)
	testbed.Must(t, err)
	two := profileOf(t, s, ref)
	if two.Runs != 2 || len(two.Entries) > rec.Entries*12/10 {
		t.Errorf("after two runs: %d runs, %d entries, %d before", two.Runs, len(two.Entries), rec.Entries)
	}
	removed(t, s, ref)
	t.Run("on this node", func(t *testing.T) {
		wellPrefetched(t, "the node's own profile", settledStart(t, s, ref, "again", p))
		removed(t, s, ref)
	})
	_, err = s.Snapctl(t.Context(), "profile", "push", ref)
	testbed.Must(t, err)
	_, err = s.Snapctl(t.Context(), "profile", "rm", ref)
	testbed.Must(t, err)
	if _, err := s.Snapctl(t.Context(), "profile", "show", ref); err == nil {
		t.Error("a removed profile is shown")
	}
	t.Run("published", func(t *testing.T) {
		wellPrefetched(t, "the published profile", settledStart(t, s, ref, "published", p))
		if n := countLog(t, s, "start by profile", "from=registry"); n != 1 {
			t.Errorf("%d starts by the published profile in the log", n)
		}
		removed(t, s, ref)
	})
	t.Run("pulled to the node", func(t *testing.T) {
		_, err := s.Snapctl(t.Context(), "profile", "pull", ref)
		testbed.Must(t, err)
		if got := profileOf(t, s, ref); got.Runs != 2 {
			t.Errorf("%d runs", got.Runs)
		}
	})
	t.Run("another build", func(t *testing.T) {
		layout := rebuilt(t, p)
		next := s.Ref("python/profiled:2")
		_, err := s.Snapctl(t.Context(), "convert", "oci:"+layout+":src", next)
		testbed.Must(t, err)
		wellPrefetched(t, "the profile of the build before", settledStart(t, s, next, "rebuilt", p))
		if n := countLog(t, s, "start by profile", `from="another build"`); n != 1 {
			t.Errorf("%d starts by another build's profile in the log", n)
		}
		_, err = s.Snapctl(t.Context(), "profile", "push", next, file)
		testbed.Must(t, err)
		out, err := s.Snapctl(t.Context(), "profile", "show", "--published", "--json", next)
		testbed.Must(t, err)
		if !strings.Contains(out, "/usr/bin/python3") {
			t.Errorf("published for the next build:\n%s", out)
		}
		removed(t, s, next)
	})
	t.Run("merged", func(t *testing.T) {
		out := filepath.Join(t.TempDir(), "merged.profile")
		_, err := s.Snapctl(t.Context(), "profile", "merge", out, file, file)
		testbed.Must(t, err)
		data, err := os.ReadFile(out)
		testbed.Must(t, err)
		m, err := profile.Decode(data)
		testbed.Must(t, err)
		if m.Runs != 2 || len(m.Entries) != rec.Entries || m.Entries[0].Runs != 2 {
			t.Errorf("%d runs, %d entries", m.Runs, len(m.Entries))
		}
	})
	t.Run("baked into the layout", func(t *testing.T) {
		for _, format := range []string{"estargz", "zstdchunked"} {
			layout, err := p.Layout(t.Context())
			testbed.Must(t, err)
			baked := s.Ref("python/baked-" + format + ":1")
			_, err = s.Snapctl(t.Context(), "convert", "--format", format, "--profile", file, "oci:"+layout+":src", baked)
			testbed.Must(t, err)
			wellPrefetched(t, format, settledStart(t, s, baked, "baked-"+format, p))
			removed(t, s, baked)
		}
	})
}

func profileOf(t *testing.T, s *testbed.Stack, ref string) *profile.Profile {
	t.Helper()
	out, err := s.Snapctl(t.Context(), "profile", "show", "--json", ref)
	testbed.Must(t, err)
	p, err := profile.Decode([]byte(out))
	testbed.Must(t, err)
	return p
}

// rebuilt makes a program's image anew, with twenty changed files and others moved.
func rebuilt(t *testing.T, p testbed.Program) string {
	t.Helper()
	layout := filepath.Join(t.TempDir(), "rebuilt")
	testbed.Must(t, p.Rebuild(t.Context(), layout))
	return layout
}

// countLog counts the lines of remorad's log that hold all words.
func countLog(t *testing.T, s *testbed.Stack, words ...string) (n int) {
	t.Helper()
	p, err := os.ReadFile(s.RemoradLog())
	testbed.Must(t, err)
lines:
	for line := range strings.Lines(string(p)) {
		for _, w := range words {
			if !strings.Contains(line, w) {
				continue lines
			}
		}
		n++
	}
	return n
}

// TestHostileProfiles: a published profile that is broken, too large, or of something else is ignored
// with one warning, and the image starts as it would without.
func TestHostileProfiles(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{})
	p := testbed.Programs[2]
	other := digest.FromString("other")
	packed := func(entries ...profile.Entry) []byte {
		data, err := profile.New(other, "elsewhere.test/other", entries).Encode()
		testbed.Must(t, err)
		return data
	}
	var million bytes.Buffer
	million.WriteString(`{"version":1,"runs":1,"entries":[`)
	for i := range 1_000_000 {
		if i > 0 {
			million.WriteByte(',')
		}
		million.WriteString(`{"path":"/x"}`)
	}
	million.WriteString(`]}`)
	var strange []profile.Entry
	for i := range 500 {
		strange = append(strange, profile.Entry{Path: fmt.Sprintf("/no/such/file-%d", i), Off: 1 << 50, Len: 1 << 40, Digest: other})
	}
	beyond := []profile.Entry{{Path: "/usr/sbin/nginx", Off: 1 << 61, Len: 1 << 61, Digest: other}}
	cases := []struct {
		name    string
		content []byte
	}{
		{"garbage", bytes.Repeat([]byte("garbage"), 1000)},
		{"a million entries", million.Bytes()},
		{"of another image", packed(strange...)},
		{"ranges beyond the file", packed(beyond...)},
		{"half of one", packed(strange...)[:20]},
	}
	for i, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			name := fmt.Sprintf("hostile%d:1", i)
			ref := unlisted(t, s, p, name)
			pushArtifact(t, s, strings.TrimSuffix(name, ":1"), "1", profile.Artifact, c.content)
			before := countLog(t, s, "level=WARN")
			start(t, s, ref, fmt.Sprint("hostile-", i), p)
			if n := countLog(t, s, "level=WARN"); n != before+1 {
				t.Errorf("%d warnings, want one", n-before)
			}
			if n := countLog(t, s, "level=WARN", "profile ignored"); n != i+1 {
				t.Errorf("%d warnings of profiles so far, want %d", n, i+1)
			}
			removed(t, s, ref)
		})
	}
}

// pushArtifact publishes any content as an artifact of a kind beside an image.
func pushArtifact(t *testing.T, s *testbed.Stack, repo, tag string, kind registry.ArtifactKind, content []byte) {
	t.Helper()
	ctx := t.Context()
	r, err := oras.NewRepository(s.Ref(repo))
	testbed.Must(t, err)
	r.PlainHTTP = true
	subject, err := r.Resolve(ctx, tag)
	testbed.Must(t, err)
	layer := ocispec.Descriptor{MediaType: kind.MediaType, Digest: digest.FromBytes(content), Size: int64(len(content))}
	testbed.Must(t, r.Push(ctx, ocispec.DescriptorEmptyJSON, strings.NewReader("{}")))
	testbed.Must(t, r.Push(ctx, layer, bytes.NewReader(content)))
	doc, err := json.Marshal(ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		ArtifactType: kind.Type, Config: ocispec.DescriptorEmptyJSON, Layers: []ocispec.Descriptor{layer}, Subject: &subject})
	testbed.Must(t, err)
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(doc), Size: int64(len(doc))}
	testbed.Must(t, r.PushReference(ctx, desc, bytes.NewReader(doc), "sha256-"+subject.Digest.Encoded()+"."+kind.Tag))
}

// TestLearn: the first start of an image is recorded by itself, and the next pull is prefetched by it.
func TestLearn(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{Config: "[profile]\nlearn = true\n"})
	p := testbed.Programs[0]
	ref := unlisted(t, s, p, "learned:1")
	first := start(t, s, ref, "first", p)
	if first.PrefetchedBytes > first.DemandBytes/2 { // the image's own command, a shell, is foretold
		t.Errorf("%d bytes prefetched of an image that nothing is known of, %d on demand", first.PrefetchedBytes, first.DemandBytes)
	}
	testbed.WaitFor(t, "the start to be learned", func() bool { return countLog(t, s, "start learned") > 0 })
	if got := profileOf(t, s, ref); got.Runs != 1 || len(got.Entries) < 100 {
		t.Errorf("learned %d entries of %d runs", len(got.Entries), got.Runs)
	}
	removed(t, s, ref)
	wellPrefetched(t, "what was learned", settledStart(t, s, ref, "second", p))
}

// listens reports whether somebody listens on a port of a process's network, by the kernel's list of sockets: number, address,
// the other's address, state.
func listens(pid, port int) bool {
	const listening = "0A"
	for _, name := range []string{"tcp", "tcp6"} {
		p, _ := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, name)) // it may have ended
		for line := range strings.Lines(string(p)) {
			if f := strings.Fields(line); strings.HasSuffix(f[1], fmt.Sprintf(":%04X", port)) && f[3] == listening {
				return true
			}
		}
	}
	return false
}

// TestRecordEnds: a recording ends with the first of what was asked for, keeps what was seen when it
// is interrupted, and leaves nothing when it is killed.
func TestRecordEnds(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{})
	p := testbed.Programs[0]
	ref := unlisted(t, s, p, "ends:1")
	serve := []string{ref, "--", "python3", "-m", "http.server", "8123"}
	for name, c := range map[string]struct {
		flags []string
		args  []string
		ended string
	}{
		"port": {[]string{"--until-port", "8123"}, serve, "port 8123 listened on"},
		"time": {[]string{"--for", "1s"}, serve, "time is over"},
		"exit": {nil, []string{ref, "--", "python3", "-c", "pass"}, "process exited"},
		"stdout": {[]string{"--until-line", "here it is", "--for", "1m"}, []string{ref, "--", "sh", "-c",
			"echo here it is; sleep 100"}, "line printed"},
		"setting": {[]string{"--env", "SAY=found", "--until-line", "found", "--for", "1m"}, []string{ref, "--", "sh", "-c",
			"echo $SAY >&2; sleep 100"}, "line printed"},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := s.Snapctl(t.Context(), append(append([]string{"record", "--json"}, c.flags...), c.args...)...)
			testbed.Must(t, err)
			var r struct{ Ended string }
			testbed.Must(t, json.Unmarshal([]byte(out), &r))
			if r.Ended != c.ended {
				t.Errorf("ended by %q, want %q", r.Ended, c.ended)
			}
		})
	}
	if _, err := s.Snapctl(t.Context(), "record", ref, "--", "sh", "-c", "echo what is wrong; exit 3"); err == nil ||
		!strings.Contains(err.Error(), "what is wrong") || !strings.Contains(err.Error(), "status 3") {
		t.Errorf("a program that fails: %v", err)
	}
	before := profileOf(t, s, ref).Runs
	background := func(sig syscall.Signal) {
		t.Helper()
		proc, err := testbed.Start(filepath.Join(t.TempDir(), "record.log"), func() bool { return true }, s.SnapctlEnv(),
			"snapctl", append([]string{"record"}, serve...)...)
		testbed.Must(t, err)
		defer func() {
			if t.Failed() {
				t.Logf("snapctl record: %s", proc.Tail())
			}
		}()
		testbed.WaitFor(t, "the program to serve", func() bool {
			return listens(runningTask(t, s), 8123)
		})
		if err := proc.Stop(sig); err != nil && sig != syscall.SIGKILL {
			t.Errorf("%v: %s", err, proc.Tail())
		}
	}
	background(syscall.SIGINT)
	if after := profileOf(t, s, ref).Runs; after != before+1 {
		t.Errorf("%d runs after an interrupt, %d before", after, before)
	}
	if tasks, err := s.Ctr(t.Context(), "tasks", "ls", "-q"); err != nil || strings.TrimSpace(tasks) != "" {
		t.Errorf("tasks left after an interrupt: %s %v", tasks, err)
	}
	background(syscall.SIGKILL)
	testbed.WaitFor(t, "the mounts of a killed recording to go", func() bool { // its container stays, as that of any killed client
		mounts, err := testbed.MountsUnder(filepath.Join(s.Root, "record"))
		testbed.Must(t, err)
		return len(mounts) == 0
	})
}

// TestTrace: the timeline of a cold start has its parts, and its drawing is SVG.
func TestTrace(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{})
	p := testbed.Programs[1]
	_, lazy := testbed.Pushed(t, s, p)
	svg := filepath.Join(t.TempDir(), "start.svg")
	trace := func() (r struct {
		Cold       bool
		Ended      string
		Prefetched int64 `json:"prefetched_bytes"`
		Spans      []struct {
			Lane string
			Took int64 `json:"took_ns"`
		}
	}) {
		out, err := s.Snapctl(t.Context(), append([]string{"trace", "--json", "--svg", svg, "--until-line", p.Want, lazy, "--"}, p.Args...)...)
		testbed.Must(t, err)
		testbed.Must(t, json.Unmarshal([]byte(out), &r))
		return r
	}
	r := trace()
	lanes := map[string]int{}
	for _, sp := range r.Spans {
		lanes[sp.Lane]++
	}
	if !r.Cold || r.Ended != "line printed" || r.Prefetched == 0 {
		t.Errorf("%+v", r)
	}
	for lane, least := range map[string]int{"snapctl": 4, "resolve": 1, "index": 3, "image": 3, "mount": 3, "profile": 1, "prefetch": 1} {
		if lanes[lane] < least {
			t.Errorf("%d spans of %s, want %d", lanes[lane], lane, least)
		}
	}
	f, err := os.Open(svg)
	testbed.Must(t, err)
	defer f.Close()
	dec := xml.NewDecoder(f)
	rects := 0
	for {
		tok, err := dec.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		testbed.Must(t, err)
		if e, ok := tok.(xml.StartElement); ok && e.Name.Local == "rect" {
			rects++
		}
	}
	if rects < len(r.Spans) {
		t.Errorf("%d bars for %d spans", rects, len(r.Spans))
	}
	if again := trace(); again.Cold {
		t.Error("an image that is here is called cold")
	}
}

// TestForetold: of an image that nothing is known of, what its own command needs comes before it is
// asked for: the program through its symbolic links, the loader and the libraries, in all layers.
func TestForetold(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{})
	kept, err := testbed.Programs[0].UnlistedLayout(t.Context())
	testbed.Must(t, err)
	layout := filepath.Join(t.TempDir(), "layout")
	if out, err := testbed.Output(t.Context(), nil, "cp", "-a", kept, layout); err != nil {
		t.Fatal(err, out)
	}
	m := manifestOf(t, kept, "lazy")
	var config ocispec.Image
	testbed.Must(t, readJSON(blobPath(kept, m.Config.Digest), &config))
	testbed.Must(t, testbed.WriteLayoutCmd(layout, "python3", m.Layers, config.RootFS.DiffIDs, "python3", "-V"))
	testbed.Must(t, s.Push(t.Context(), layout, "python3", "foretold:1"))
	ref := s.Ref("foretold:1")
	before := settled(t, s, ref, func() {
		_, err = s.Snapctl(t.Context(), "pull", ref)
		testbed.Must(t, err)
	})
	if before.PrefetchedBytes < 2<<20 {
		t.Errorf("only %d bytes were foretold", before.PrefetchedBytes)
	}
	out, err := s.Ctr(t.Context(), "run", "--rm", "--snapshotter", "remora", ref, "foretold")
	if err != nil || !strings.Contains(out, "Python 3") {
		t.Fatal(err, out)
	}
	after := account(t, s, ref)
	if after.DemandBytes > before.PrefetchedBytes/2 || after.PrefetchUsedBytes*2 < after.PrefetchedBytes {
		t.Errorf("%d bytes foretold, %d of them used, %d on demand", after.PrefetchedBytes, after.PrefetchUsedBytes, after.DemandBytes)
	}
}

// TestProfileUnderFaults: prefetching from a registry that is slow, fails, limits its rate, cuts or spoils
// every third answer keeps no program from running, nor brings it wrong bytes, and ends with its image.
func TestProfileUnderFaults(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{Config: impatient, LogLevel: "info"})
	p := testbed.Programs[1]
	_, _ = testbed.Pushed(t, s, p) // what the list names comes first in its layers
	proxy := newFaultyProxy(t, s)
	ref := proxy.Listener.Addr().String() + "/redis:lazy"
	sometimes := func(f fault) *fault {
		var n atomic.Int64
		g := fault(func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
			if k := n.Add(1); k > 9 && k%3 == 0 { // the first are for the layers' indexes: with a bad one, a layer is imported
				f(w, r, pass)
				return
			}
			pass.ServeHTTP(w, r)
		})
		return &g
	}
	limited := func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		w.Header().Set("Retry-After", "1")
		w.WriteHeader(http.StatusTooManyRequests)
	}
	all := map[string]fault{"slow": nil, "fails": status(500), "limits its rate": limited, "cuts": cut, "wrong bytes": wrongBytes}
	for _, name := range sortedKeys(all) { // wrong bytes come last: layers are read whole after them
		f := all[name]
		t.Run(name, func(t *testing.T) {
			if f == nil {
				proxy.delay.Store(int64(200 * time.Millisecond))
				defer proxy.delay.Store(0)
			} else {
				proxy.fault.Store(sometimes(f))
				defer proxy.fault.Store(nil)
			}
			a := start(t, s, ref, "faults-"+strings.ReplaceAll(name, " ", "-"), p)
			if a.PrefetchedBytes == 0 {
				t.Error("nothing was prefetched")
			}
			removed(t, s, ref)
		})
	}
}
