package images_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/conformance/testbed"
)

// A puller is a client that pulls an image by Remora. User is "" for an open registry.
type puller func(ctx context.Context, s *testbed.Stack, ref, user string) error

// clients pull without a word to remorad.
var clients = map[string]puller{
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
		how := pulledBy(t, s, clients[c[0]], s.Ref("private/by:"+c[1]), testbed.User+":"+testbed.Password, byLayers)
		fmt.Fprintf(&table, "%-10s %-7s %s\n", c[0], c[1], how)
	}
	t.Log("\n" + table.String())
}

// pulledBy has a client pull an image of random layers, sizes by their seeds, looks at all of it, and removes it. It returns who supplies
// the layers: the formats that status names, and "unpacked" if it does not know them all.
func pulledBy(t *testing.T, s *testbed.Stack, pull puller, ref, user string, layers map[uint64]int64) (how string) {
	t.Helper()
	if err := pull(t.Context(), s, ref, user); err != nil {
		t.Errorf("%s: %v", ref, err)
		return "not pulled"
	}
	how = suppliedBy(t, s, ref, len(layers))
	root := filepath.Join(t.TempDir(), "root")
	testbed.Must(t, os.Mkdir(root, 0o755))
	if out, err := s.Ctr(t.Context(), "images", "mount", "--snapshotter", "remora", ref, root); err != nil {
		t.Errorf("%s: %v\n%s", ref, err, out)
		how = "not mounted"
	} else {
		for seed, size := range layers {
			got, err := os.ReadFile(filepath.Join(root, fmt.Sprint("file-", seed)))
			if err != nil || !bytes.Equal(got, randomBytes(seed, size)) {
				t.Errorf("%s: %d bytes of %d, right ones or not, %v", ref, len(got), size, err)
				how = "not read"
			}
		}
		_, err = s.Ctr(t.Context(), "images", "unmount", "--rm", "--snapshotter", "remora", root)
		testbed.Must(t, err)
	}
	removeAll(t, s, ref)
	return how
}

// suppliedBy says how the layers of an image are supplied.
func suppliedBy(t *testing.T, s *testbed.Stack, ref string, layers int) string {
	t.Helper()
	st, err := s.Status(t.Context())
	testbed.Must(t, err)
	repository := ref[:strings.LastIndex(ref, ":")]
	var ways []string
	for _, l := range st.Layers {
		if l.Image == ref || strings.HasPrefix(l.Image, repository+"@") { // so it is called for who names no tag
			ways = append(ways, l.Format)
		}
	}
	if len(ways) < layers {
		ways = append(ways, "unpacked")
	}
	slices.Sort(ways)
	return strings.Join(slices.Compact(ways), ", ")
}

// TestNamesOfImages: snapctl names an image as ctr names it, whatever way it is asked for.
func TestNamesOfImages(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{LogLevel: "info"})
	layout := byImage(t)
	testbed.Must(t, s.Push(t.Context(), layout, "src", "named/app:1.2"))
	var index ocispec.Index
	p, err := os.ReadFile(filepath.Join(layout, "index.json"))
	testbed.Must(t, err)
	testbed.Must(t, json.Unmarshal(p, &index))
	target := index.Manifests[0].Digest.String()
	repository := s.Addr + "/named/app"
	for _, ref := range []string{repository + ":1.2", repository + "@" + target, repository + ":1.2@" + target} {
		names := map[string]string{}
		for client, pull := range matrixClients {
			testbed.Must(t, pull(t.Context(), s, ref, ""))
			out, err := s.Ctr(t.Context(), "images", "ls", "-q")
			testbed.Must(t, err)
			names[client] = out
			removeAll(t, s, strings.Fields(out)...)
		}
		if names["snapctl"] != names["ctr"] || names["ctr"] == "" {
			t.Errorf("%s: ctr names it %q, snapctl %q", ref, names["ctr"], names["snapctl"])
		}
	}
}
