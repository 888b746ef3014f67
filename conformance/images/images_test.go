package images_test

import (
	"archive/tar"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/conformance/testbed"
)

// writeManyLayers writes an image of n layers, each with a file of its own.
func writeManyLayers(layout string, n int) error {
	var layers []func(*tar.Writer) error
	for i := range n {
		layers = append(layers, func(tw *tar.Writer) error {
			body := fmt.Sprint("layer ", i)
			if err := tw.WriteHeader(&tar.Header{Name: "layers/", Typeflag: tar.TypeDir, Mode: 0o755}); err != nil {
				return err
			}
			if err := tw.WriteHeader(&tar.Header{Name: fmt.Sprint("layers/", i), Typeflag: tar.TypeReg, Mode: 0o644,
				Size: int64(len(body))}); err != nil {
				return err
			}
			_, err := io.WriteString(tw, body)
			return err
		})
	}
	return testbed.WriteTars(layout, "src", layers...)
}

// liar tags a copy of an image whose configuration claims another diffID.
func liar(layout, tag, as string) error {
	var index ocispec.Index
	if err := readJSON(filepath.Join(layout, "index.json"), &index); err != nil {
		return err
	}
	blob := func(d digest.Digest) string { return filepath.Join(layout, "blobs", "sha256", d.Encoded()) }
	for _, m := range index.Manifests {
		if m.Annotations[ocispec.AnnotationRefName] != tag {
			continue
		}
		var manifest ocispec.Manifest
		if err := readJSON(blob(m.Digest), &manifest); err != nil {
			return err
		}
		return testbed.WriteLayout(layout, as, manifest.Layers, []digest.Digest{digest.FromString("somebody else's layer")})
	}
	return fmt.Errorf("no image %s in %s", tag, layout)
}

func readJSON(path string, into any) error {
	p, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(p, into)
}

// outsideClient pulls as any program with containerd's client would, with the labels that say
// which image a layer belongs to or without.
func outsideClient(ctx context.Context, s *testbed.Stack, ref, user string, labels bool) error {
	return outsideClientBy(ctx, s, ref, user, labels, nil, false)
}

// outsideClientBy is outsideClient with another HTTP client, which change makes of the usual one, and by plain HTTP if that is wanted.
func outsideClientBy(
	ctx context.Context, s *testbed.Stack, ref, user string, labels bool, change func(*http.Client), plainHTTP bool,
) error {
	c, err := client.New(s.Socket)
	if err != nil {
		return err
	}
	defer c.Close()
	ctx = namespaces.WithNamespace(ctx, s.Namespace)
	hosts := config.HostOptions{
		HostDir: config.HostDirFromRoot(s.HostsDir),
		Credentials: func(string) (string, string, error) {
			name, secret, _ := strings.Cut(user, ":")
			return name, secret, nil
		},
		UpdateClient: func(c *http.Client) error {
			if change != nil {
				change(c)
			}
			return nil
		},
	}
	if plainHTTP {
		hosts.DefaultScheme = "http"
	}
	resolver := docker.NewResolver(docker.ResolverOptions{Hosts: config.ConfigureHosts(ctx, hosts)})
	opts := []client.RemoteOpt{client.WithResolver(resolver), client.WithPullUnpack, client.WithPullSnapshotter("remora")}
	if labels {
		opts = append(opts, client.WithImageHandlerWrapper(snapshotters.AppendInfoHandlerWrapper(ref)))
	}
	_, err = c.Pull(ctx, ref, opts...)
	return err
}
