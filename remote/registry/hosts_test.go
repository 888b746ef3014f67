package registry_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/remote/registry"
)

var update = flag.Bool("update", false, "rewrite golden files")

// A hostsCase is a configuration directory, and what is asked for by it.
type hostsCase struct {
	name     string
	registry string            // as references name it
	files    map[string]string // of the configuration directory; hostsBed.named says what they may name
	fault    map[string]int    // statuses that sites answer with
	differs  map[string]string // by operation: why our requests are others than containerd's
}

var hostsCases = []hostsCase{
	{"server", "reg.test", map[string]string{"reg.test/hosts.toml": `server = "http://{A}"`}, nil, nil},
	{"server without a scheme is https", "reg.test", map[string]string{
		"reg.test/hosts.toml": "server = \"{T}\"\nca = \"ca.pem\"", "reg.test/ca.pem": "@authority",
	}, nil, nil},
	{"server that ends with a slash", "reg.test", map[string]string{"reg.test/hosts.toml": `server = "http://{A}/"`}, nil, nil},
	{"server with a path", "reg.test", map[string]string{"reg.test/hosts.toml": `server = "http://{A}/deep//er/"`}, nil, nil},
	{"server with the path of the API", "reg.test", map[string]string{"reg.test/hosts.toml": `server = "http://{A}/v2/"`}, nil, nil},
	{"the default server comes last", "{A}", map[string]string{"{A_}/hosts.toml": `[host."http://{B}"]`}, map[string]int{"B": 404}, nil},
	{"hosts in the order of the file", "reg.test", map[string]string{
		"reg.test/hosts.toml": "server = \"http://{A}\"\n[host.\"https://{U}\"]\n  skip_verify = true\n" +
			"[host.\"http://{B}\"]\n[host.\"https://{T}\"]\n  skip_verify = true\n",
	}, map[string]int{"U": 404, "B": 404, "T": 404}, nil},
	{"a mirror that fails", "reg.test", map[string]string{
		"reg.test/hosts.toml": "server = \"http://{A}\"\n[host.\"http://{B}\"]\n",
	}, map[string]int{"B": 502}, nil},
	{"a mirror of docker.io", "docker.io", map[string]string{
		"docker.io/hosts.toml": "server = \"http://{A}\"\n[host.\"http://{B}\"]\n",
	}, nil, nil},
	{"a mirror of itself has no ns", "{A}", map[string]string{
		"{A_}/hosts.toml": "server = \"http://{A}\"\n[host.\"http://{A}\"]\n",
	}, nil, nil},
	{"a mirror may pull", "reg.test", map[string]string{
		"reg.test/hosts.toml": "server = \"http://{A}\"\n[host.\"http://{B}\"]\n  capabilities = [\"pull\"]\n",
	}, nil, nil},
	{"a mirror may resolve", "reg.test", map[string]string{
		"reg.test/hosts.toml": "server = \"http://{A}\"\n[host.\"http://{B}\"]\n  capabilities = [\"resolve\"]\n",
	}, nil, map[string]string{
		"blob":     "containerd fetches from all hosts as long as one may pull: a host that may not is not asked by us",
		"manifest": "as above",
	}},
	{"only the server may not pull", "reg.test", map[string]string{
		"reg.test/hosts.toml": "server = \"http://{A}\"\ncapabilities = [\"push\"]\n[host.\"http://{B}\"]\n",
	}, nil, nil},
	{"a capability that nobody knows", "{A}", map[string]string{
		"{A_}/hosts.toml": "server = \"http://{B}\"\ncapabilities = [\"fly\"]\n",
	}, nil, nil},
	{"override_path", "reg.test", map[string]string{
		"reg.test/hosts.toml": "server = \"http://{A}/api/docker/\"\noverride_path = true\n",
	}, nil, nil},
	{"override_path of the root", "reg.test", map[string]string{
		"reg.test/hosts.toml": "server = \"http://{A}/\"\noverride_path = true\n",
	}, nil, nil},
	{"override_path without a path", "reg.test", map[string]string{
		"reg.test/hosts.toml": "server = \"http://{A}\"\noverride_path = true\n",
	}, nil, nil},
	{"override_path of a mirror", "reg.test", map[string]string{
		"reg.test/hosts.toml": "server = \"http://{A}\"\n[host.\"http://{B}/v2/proxy\"]\n  override_path = true\n",
	}, nil, nil},
	{"ca", "reg.test", map[string]string{
		"reg.test/hosts.toml": "server = \"https://{T}\"\nca = [\"other.pem\", \"{root}/ca.pem\"]\n",
		"ca.pem":              "@authority", "reg.test/other.pem": "@other",
	}, nil, nil},
	{"ca of another", "reg.test", map[string]string{
		"reg.test/hosts.toml": "server = \"https://{T}\"\nca = \"other.pem\"\n", "reg.test/other.pem": "@other",
	}, nil, nil},
	{"ca that is missing", "reg.test", map[string]string{
		"reg.test/hosts.toml": "server = \"https://{T}\"\nca = \"ca.pem\"\n",
	}, nil, nil},
	{"ca of one host is not another's", "reg.test", map[string]string{
		"reg.test/hosts.toml": "server = \"https://{T}\"\nca = \"ca.pem\"\n[host.\"https://{U}\"]\n", "reg.test/ca.pem": "@authority",
	}, nil, nil},
	{"client, certificate and key in one file", "reg.test", map[string]string{
		"reg.test/hosts.toml": "server = \"https://{T}\"\nca = \"ca.pem\"\nclient = \"both.pem\"\n",
		"reg.test/ca.pem":     "@authority", "reg.test/both.pem": "@both",
	}, nil, nil},
	{"client, a list of files", "reg.test", map[string]string{
		"reg.test/hosts.toml": "server = \"https://{T}\"\nca = \"ca.pem\"\nclient = [\"{root}/both.pem\"]\n",
		"reg.test/ca.pem":     "@authority", "both.pem": "@both",
	}, nil, nil},
	{"client, a list of pairs", "reg.test", map[string]string{
		"reg.test/hosts.toml": "server = \"https://{T}\"\nca = \"ca.pem\"\nclient = [[\"c.pem\", \"k.pem\"]]\n",
		"reg.test/ca.pem":     "@authority", "reg.test/c.pem": "@client", "reg.test/k.pem": "@client.key",
	}, nil, nil},
	{"client of one host is not another's", "reg.test", map[string]string{
		"reg.test/hosts.toml": "server = \"https://{T}\"\nca = \"ca.pem\"\n" +
			"[host.\"https://{U}\"]\n  ca = \"ca.pem\"\n  client = \"both.pem\"\n",
		"reg.test/ca.pem": "@authority", "reg.test/both.pem": "@both",
	}, map[string]int{"U": 404}, nil},
	{"skip_verify", "reg.test", map[string]string{"reg.test/hosts.toml": "server = \"https://{T}\"\nskip_verify = true\n"}, nil, nil},
	{"skip_verify = false", "reg.test", map[string]string{
		"reg.test/hosts.toml": "server = \"https://{T}\"\nskip_verify = false\n",
	}, nil, nil},
	{"skip_verify of plain HTTP tries TLS first", "reg.test", map[string]string{
		"reg.test/hosts.toml": "server = \"http://{A}\"\nskip_verify = true\n[host.\"http://{T}\"]\n  skip_verify = true\n",
	}, map[string]int{"T": 404}, nil},
	{"header", "reg.test", map[string]string{
		"reg.test/hosts.toml": "server = \"http://{A}\"\n[header]\n  x-one = \"server's\"\n[host.\"http://{B}\"]\n" +
			"  [host.\"http://{B}\".header]\n    X-Two = [\"a\", \"b\"]\n    User-Agent = \"set by an operator\"\n",
	}, map[string]int{"B": 404}, nil},
	{"header Authorization", "reg.test", map[string]string{
		"reg.test/hosts.toml": "server = \"http://{A}\"\n[host.\"http://{B}\"]\n" +
			"  [host.\"http://{B}\".header]\n    Authorization = \"Basic eDp5\"\n",
	}, map[string]int{"B": 404}, nil},
	{"dial_timeout", "reg.test", map[string]string{
		"reg.test/hosts.toml": "server = \"http://{A}\"\n[host.\"http://{silent}\"]\n  dial_timeout = \"100ms\"\n",
	}, nil, nil},
	{"dial_timeout that is none", "{A}", map[string]string{
		"{A_}/hosts.toml": "server = \"http://{B}\"\ndial_timeout = \"soon\"\n",
	}, nil, nil},
	{"_default", "reg.test:5000", map[string]string{"_default/hosts.toml": `[host."http://{B}"]`}, nil, nil},
	{"a directory of its own goes before _default", "reg.test", map[string]string{
		"_default/hosts.toml": `server = "http://{B}"`, "reg.test/hosts.toml": `server = "http://{A}"`,
	}, nil, nil},
	{"an empty directory of its own goes before _default", "{A}", map[string]string{
		"_default/hosts.toml": `server = "http://{B}"`, "{A_}/README": "nothing",
	}, nil, nil},
	{"a port as host_port_", "reg.test:5000", map[string]string{
		"reg.test_5000_/hosts.toml": `server = "http://{A}"`, "reg.test:5000/hosts.toml": `server = "http://{B}"`,
		"reg.test/hosts.toml": `server = "http://{B}"`,
	}, nil, nil},
	{"a port as host:port", "reg.test:5000", map[string]string{
		"reg.test:5000/hosts.toml": `server = "http://{A}"`, "reg.test/hosts.toml": `server = "http://{B}"`,
	}, nil, nil},
	{"a port of an IPv6 address", "[fd00::1]:5000", map[string]string{"[fd00::1]_5000_/hosts.toml": `server = "http://{A}"`}, nil, nil},
	{"Docker's certificates", "{T}", map[string]string{
		"{T}/ca.crt": "@authority", "{T}/x.cert": "@client", "{T}/x.key": "@client.key", "{T}/notes.txt": "x",
	}, nil, nil},
	{"Docker's certificate with its key inside", "{T}", map[string]string{"{T_}/x.cert": "@both"}, nil, nil},
	{"Docker's certificates where hosts.toml is damaged", "{T}", map[string]string{
		"{T_}/hosts.toml": "server = ", "{T_}/ca.crt": "@authority", "{T_}/x.cert": "@client", "{T_}/x.key": "@client.key",
	}, nil, nil},
	{"Docker's certificates where hosts.toml is empty", "{T}", map[string]string{
		"{T_}/hosts.toml": "", "{T_}/x.cert": "@client", "{T_}/x.key": "@client.key",
	}, nil, nil},
	{"no directory, on localhost: TLS", "{T}", nil, nil, nil},
	{"no directory, on localhost: plain HTTP", "localhost:{Aport}", nil, nil, nil},
	{"no host at all", "reg.test", map[string]string{"reg.test/hosts.toml": "server = \"http://{A}\"\ncapabilities = [\"push\"]"}, nil, nil},
}

// operations are what is asked for: each by containerd and by us.
var operations = []struct {
	name       string
	containerd func(context.Context, remotes.Resolver, registry.Repository) error
	ours       func(context.Context, *registry.Registry, registry.Repository) error
}{
	{"tag", func(ctx context.Context, r remotes.Resolver, repo registry.Repository) error {
		_, _, err := r.Resolve(ctx, repo.String()+":latest")
		return err
	}, func(ctx context.Context, r *registry.Registry, repo registry.Repository) error {
		_, _, err := r.Manifest(ctx, repo, "latest")
		return err
	}},
	{"manifest", func(ctx context.Context, r remotes.Resolver, repo registry.Repository) error {
		return fetch(ctx, r, repo, ocispec.MediaTypeImageManifest, bedManifest)
	}, func(ctx context.Context, r *registry.Registry, repo registry.Repository) error {
		_, _, err := r.Manifest(ctx, repo, digest.FromBytes(bedManifest).String())
		return err
	}},
	{"blob", func(ctx context.Context, r remotes.Resolver, repo registry.Repository) error {
		return fetch(ctx, r, repo, ocispec.MediaTypeImageLayerGzip, bedBlob)
	}, func(ctx context.Context, r *registry.Registry, repo registry.Repository) error {
		got := make([]byte, len(bedBlob))
		_, err := r.Blob(repo, digest.FromBytes(bedBlob), int64(len(bedBlob))).ReadAt(ctx, got, 0)
		return sameBytes(err, got, bedBlob)
	}},
}

func fetch(ctx context.Context, r remotes.Resolver, repo registry.Repository, mediaType string, want []byte) error {
	f, err := r.Fetcher(ctx, repo.String()+":latest")
	if err != nil {
		return err
	}
	in, err := f.Fetch(ctx, ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(want), Size: int64(len(want))})
	if err != nil {
		return err
	}
	got, err := io.ReadAll(in)
	return sameBytes(errors.Join(err, in.Close()), got, want)
}

func sameBytes(err error, got, want []byte) error {
	if err == nil && !bytes.Equal(got, want) {
		err = errors.New("other bytes")
	}
	return err
}

// TestHostsToml: for each file of the table, containerd's resolver and ours send the same requests, to the same hosts in the same
// order, and both succeed or both fail. The golden file has our requests.
func TestHostsToml(t *testing.T) {
	level := log.GetLevel()
	if err := log.SetLevel("fatal"); err != nil { // containerd says much of files that are meant to be wrong
		t.Fatal(err)
	}
	defer func() { _ = log.SetLevel(level.String()) }() // it was one
	bed := newHostsBed(t)
	silent := silentHost(t)
	var golden strings.Builder
	for _, c := range hostsCases {
		t.Run(c.name, func(t *testing.T) {
			root := t.TempDir()
			files := map[string]string{}
			for name, content := range c.files {
				files[name] = strings.ReplaceAll(content, "{silent}", silent)
			}
			bed.write(t, root, files)
			bed.mu.Lock()
			bed.fault = c.fault
			bed.mu.Unlock()
			repo := registry.Repository{Host: bed.named(c.registry), Path: repo}
			theirs := docker.NewResolver(docker.ResolverOptions{
				Hosts: config.ConfigureHosts(t.Context(), config.HostOptions{HostDir: config.HostDirFromRoot(root)}),
			})
			fmt.Fprintf(&golden, "%s\n", c.name)
			for _, op := range operations {
				want, theirErr := bed.during(func() error { return op.containerd(t.Context(), theirs, repo) })
				// A new one each time: it leaves out hosts that have failed.
				ours := registry.New(registry.Options{ConfigPath: []string{root}, Retry: registry.Retry{Attempts: 1}})
				got, ourErr := bed.during(func() error { return op.ours(t.Context(), ours, repo) })
				same := slices.Equal(got, want) && (ourErr == nil) == (theirErr == nil)
				if why := c.differs[op.name]; same != (why == "") {
					t.Errorf("%s: we asked\n\t%s (%v)\ncontainerd asked\n\t%s (%v)\nthey should differ since: %q", op.name,
						strings.Join(got, "\n\t"), ourErr, strings.Join(want, "\n\t"), theirErr, why)
				}
				if len(got) == 0 {
					got = []string{"nobody"}
				}
				end := "served"
				if ourErr != nil {
					end = "fails"
				}
				fmt.Fprintf(&golden, "\t%s\n\t\t%s\n\t\t%s\n", op.name, strings.Join(got, "\n\t\t"), end)
			}
		})
	}
	path := filepath.Join("testdata", "hosts.golden")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(golden.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := golden.String(); !t.Failed() && got != string(want) {
		t.Errorf("requests are others than in %s (-update rewrites it):\n%s", path, got)
	}
}
