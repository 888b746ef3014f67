package registry_test

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/remote/registry"
)

// TestChangedConfiguration: a file that says how a registry is reached counts for the next request, with no restart; one that cannot
// be used counts for nothing.
func TestChangedConfiguration(t *testing.T) {
	const hosts = "reg.test/hosts.toml"
	byT := "server = \"https://{T}\"\nca = \"ca.pem\"\nclient = [[\"{root}/c.pem\", \"{root}/k.pem\"]]\n"
	for _, c := range []struct {
		name          string
		before, after map[string]string // a file without content is removed
		link          bool              // hosts.toml is a link, which is changed
		was, is       string            // who is asked; "" is nobody
	}{
		{"hosts.toml", map[string]string{hosts: `server = "http://{A}"`}, map[string]string{hosts: `server = "http://{B}"`}, false, "A", "B"},
		{"hosts.toml behind a link", map[string]string{"first": `server = "http://{A}"`, "second": `server = "http://{B}"`}, nil, true,
			"A", "B"},
		{"a directory of its own", map[string]string{"_default/hosts.toml": `server = "http://{A}"`},
			map[string]string{hosts: `server = "http://{B}"`}, false, "A", "B"},
		{"no directory of its own", map[string]string{"_default/hosts.toml": `server = "http://{A}"`, hosts: `server = "http://{B}"`},
			map[string]string{hosts: "", "reg.test": ""}, false, "B", "A"},
		{"its authority", map[string]string{hosts: byT, "reg.test/ca.pem": "@other", "c.pem": "@client", "k.pem": "@client.key"},
			map[string]string{"reg.test/ca.pem": "@authority"}, false, "", "T cert=client"},
		{"its client's certificate", map[string]string{hosts: byT, "reg.test/ca.pem": "@authority", "c.pem": "@client", "k.pem": "@client.key"},
			map[string]string{"c.pem": "@second", "k.pem": "@second.key"}, false, "T cert=client", "T cert=second"},
		{"a certificate without its key", map[string]string{hosts: byT, "reg.test/ca.pem": "@authority", "c.pem": "@client",
			"k.pem": "@client.key"}, map[string]string{"c.pem": "@second"}, false, "T cert=client", "T cert=client"},
		{"an authority that is not there", map[string]string{hosts: `server = "http://{A}"`, "reg.test/other.pem": "@other"},
			map[string]string{hosts: "server = \"https://{T}\"\nca = \"none.pem\""}, false, "A", "A"},
	} {
		t.Run(c.name, func(t *testing.T) {
			bed := newHostsBed(t)
			root := t.TempDir()
			bed.write(t, root, c.before)
			if c.link {
				link(t, root, "first", hosts)
			}
			r := registry.New(registry.Options{ConfigPath: []string{filepath.Join(root, "none"), root}, Retry: registry.Retry{Attempts: 1}})
			asked := func() string {
				got := ""
				saw, err := bed.during(func() error {
					b := r.Blob(registry.Repository{Host: "reg.test", Path: repo}, digest.FromBytes(bedBlob), int64(len(bedBlob)))
					_, err := b.ReadAt(t.Context(), make([]byte, 10), 0)
					return err
				})
				if (err == nil) != (len(saw) == 1) {
					t.Fatalf("%v, %v", saw, err)
				}
				if len(saw) == 1 {
					got = siteOf(saw[0])
				}
				return got
			}
			if got := asked(); got != c.was {
				t.Fatalf("asked %q, want %q", got, c.was)
			}
			names := slices.Sorted(maps.Keys(c.after))
			for _, name := range slices.Backward(names) { // a directory after what it holds
				if c.after[name] == "" {
					if err := os.Remove(filepath.Join(root, name)); err != nil {
						t.Fatal(err)
					}
				}
			}
			for _, name := range names {
				if c.after[name] == "" {
					continue
				}
				bed.write(t, root, map[string]string{name: c.after[name]})
				later := time.Now().Add(time.Minute) // a file system may keep time by the second
				if err := os.Chtimes(filepath.Join(root, name), later, later); err != nil {
					t.Fatal(err)
				}
			}
			if c.link {
				link(t, root, "second", hosts)
			}
			for range 2 {
				if got := asked(); got != c.is {
					t.Errorf("afterwards asked %q, want %q", got, c.is)
				}
			}
		})
	}
}

// link makes a path lead to a file.
func link(t *testing.T, root, to, path string) {
	t.Helper()
	at := filepath.Join(root, path)
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(root, to), at+".new"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(at+".new", at); err != nil {
		t.Fatal(err)
	}
}

// siteOf returns who was asked, and by which client's certificate.
func siteOf(saw string) string {
	site, rest, _ := strings.Cut(saw, " ")
	if _, cert, ok := strings.Cut(rest, " cert="); ok {
		site += " cert=" + cert
	}
	return site
}
