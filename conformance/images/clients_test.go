package images_test

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/remora-storage/remora/conformance/testbed"
)

// clients pull an image by Remora without a word to remorad. User is "" for an open registry.
var clients = map[string]func(ctx context.Context, s *testbed.Stack, ref, user string) error{
	"ctr": func(ctx context.Context, s *testbed.Stack, ref, user string) error {
		args := []string{"images", "pull", "--hosts-dir", s.HostsDir, "--snapshotter", "remora"}
		if user != "" {
			args = append(args, "--user", user)
		}
		_, err := s.Ctr(ctx, append(args, ref)...)
		return err
	},
	"labels": func(ctx context.Context, s *testbed.Stack, ref, user string) error {
		return outsideClient(ctx, s, ref, user, true)
	},
	"no labels": func(ctx context.Context, s *testbed.Stack, ref, user string) error {
		return outsideClient(ctx, s, ref, user, false)
	},
}

// byLayers are the layers of the image that they pull: sizes in bytes by their seeds.
var byLayers = map[uint64]int64{71: 5 << 20, 72: 100 << 10}

func byImage(t *testing.T) (layout string) {
	t.Helper()
	layout = filepath.Join(t.TempDir(), "layout")
	testbed.Must(t, testbed.WriteTars(layout, "src", randomLayer(71, byLayers[71]), randomLayer(72, byLayers[72])))
	return layout
}

// registries misbehave towards remorad, or lack what the client has.
var registries = func() map[string]fault {
	all := maps.Clone(faults)
	all["as it should be"] = func(w http.ResponseWriter, r *http.Request, pass http.Handler) { pass.ServeHTTP(w, r) }
	all["200 without a length"] = func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
		rec := recorded(withoutRange(r), pass)
		w.WriteHeader(rec.Code)
		w.(http.Flusher).Flush()
		_, _ = w.Write(rec.Body.Bytes())
	}
	var bucket tokens
	all["10 requests a second"] = func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
		if !bucket.take() {
			w.WriteHeader(http.StatusTooManyRequests)
			return
		}
		pass.ServeHTTP(w, r)
	}
	for _, code := range []int{http.StatusTemporaryRedirect, http.StatusPermanentRedirect} {
		all[fmt.Sprintf("%d to itself", code)] = func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
			if r.URL.Query().Has("signed") {
				pass.ServeHTTP(w, r)
				return
			}
			http.Redirect(w, r, r.URL.Path+"?signed", code)
		}
	}
	return all
}()

// tokens are ten a second, of which ten are kept.
type tokens struct {
	mu   sync.Mutex // guards the fields below
	n    int
	last time.Time
}

func (b *tokens) take() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if came := int(time.Since(b.last) / (time.Second / 10)); came > 0 {
		b.n, b.last = min(b.n+came, 10), time.Now()
	}
	b.n--
	return b.n >= 0
}

func withoutRange(r *http.Request) *http.Request {
	r = r.Clone(r.Context())
	r.Header.Del("Range")
	return r
}

// TestClientsAndRegistries: whatever a registry does to remorad, and whatever only the client has, an image that its client can pull is
// whole, by each client that does not speak to remorad, for layers with an index of their own and for those without.
func TestClientsAndRegistries(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{LogLevel: "info", Config: impatient})
	layout := byImage(t)
	testbed.Must(t, s.Push(t.Context(), layout, "src", "by:import"))
	convert(t, s, "oci:"+layout+":src", s.Ref("by:lazy"))
	proxies := map[string]*faultyProxy{} // remorad remembers of each host what it is like
	var table strings.Builder
	for _, c := range testbed.Covering(t, testbed.Combinations(sortedKeys(registries), sortedKeys(clients), []string{"lazy", "import"})) {
		registry, client, kind := c[0], c[1], c[2]
		p := proxies[registry]
		if p == nil {
			p = newFaultyProxy(t, s)
			f := registries[registry]
			p.fault.Store(&f)
			proxies[registry] = p
		}
		ref := p.Listener.Addr().String() + "/by:" + kind
		how := pulledBy(t, s, client, ref, "")
		good := registry == "as it should be" && client != "no labels"
		for try := 1; good && how == "unpacked" && try < 20; try++ { // on a busy machine a proof may come late
			time.Sleep(time.Second)
			how = pulledBy(t, s, client, ref, "")
		}
		fmt.Fprintf(&table, "%-22s %-10s %-7s %s\n", registry, client, kind, how)
		if good && how != "remora" {
			t.Errorf("%s by %s: layers are %s", kind, client, how)
		}
	}
	t.Log("\n" + table.String())
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// TestCredentialsOfTheClientAlone: an image whose registry lets only the client in is pulled by the client.
func TestCredentialsOfTheClientAlone(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{LogLevel: "info", Config: impatient, Auth: true})
	layout := byImage(t)
	convert(t, s, "oci:"+layout+":src", "oci:"+layout+":lazy")
	for tag, name := range map[string]string{"src": "private/by:import", "lazy": "private/by:lazy"} {
		testbed.Must(t, s.Push(t.Context(), layout, tag, name))
	}
	var table strings.Builder
	for _, c := range testbed.Combinations(sortedKeys(clients), []string{"lazy", "import"}) {
		how := pulledBy(t, s, c[0], s.Ref("private/by:"+c[1]), testbed.User+":"+testbed.Password)
		fmt.Fprintf(&table, "%-10s %-7s %s\n", c[0], c[1], how)
	}
	t.Log("\n" + table.String())
}

// pulledBy has a client pull byImage, looks at all of it, and removes it. It returns who supplies the layers.
func pulledBy(t *testing.T, s *testbed.Stack, client, ref, user string) (how string) {
	t.Helper()
	if err := clients[client](t.Context(), s, ref, user); err != nil {
		t.Errorf("%s by %s: %v", ref, client, err)
		return "not pulled"
	}
	if how = "unpacked"; claimed(t, s) > 0 {
		how = "remora"
	}
	root := filepath.Join(t.TempDir(), "root")
	testbed.Must(t, os.Mkdir(root, 0o755))
	if out, err := s.Ctr(t.Context(), "images", "mount", "--snapshotter", "remora", ref, root); err != nil {
		t.Errorf("%s by %s: %v\n%s", ref, client, err, out)
		how = "not mounted"
	} else {
		for seed, size := range byLayers {
			got, err := os.ReadFile(filepath.Join(root, fmt.Sprint("file-", seed)))
			if err != nil || !bytes.Equal(got, randomBytes(seed, size)) {
				t.Errorf("%s by %s: %d bytes of %d, right ones or not, %v", ref, client, len(got), size, err)
				how = "not read"
			}
		}
		_, err = s.Ctr(t.Context(), "images", "unmount", "--rm", "--snapshotter", "remora", root)
		testbed.Must(t, err)
	}
	removeAll(t, s, ref)
	return how
}
