package main

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/cmd/internal/cmdtest"
	"github.com/remora-storage/remora/remote/registry"
)

// TestKeepBlob puts blobs into containerd's store, where they stay though no image refers to them yet.
func TestKeepBlob(t *testing.T) {
	socket := shortDir(t) + "/containerd.sock"
	ctrd := cmdtest.NewContainerd(t, socket)
	c, err := client.New(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	data := cmdtest.Noise(1, 3<<20) // several messages
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromBytes(data), Size: int64(len(data))}
	repo := registry.Repository{Host: "r.example.com", Path: "team/app"}
	b := &storedBlobs{containerd: c}
	if _, err := b.Blob(t.Context(), "default", desc.Digest); !errdefs.IsNotFound(err) {
		t.Errorf("a blob that is not there: %v", err)
	}
	diffID := digest.FromString("plain")
	for range 2 { // the second time it is there
		if err := b.KeepBlob(t.Context(), "default", desc, repo, diffID, bytes.NewReader(data)); err != nil {
			t.Fatal(err)
		}
	}
	ctrd.Collect(t)
	r, err := b.Blob(t.Context(), "default", desc.Digest)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got, err := io.ReadAll(content.NewReader(r)); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	info, err := c.ContentStore().Info(namespaces.WithNamespace(t.Context(), "default"), desc.Digest)
	if err != nil || info.Labels["containerd.io/uncompressed"] != diffID.String() ||
		info.Labels["containerd.io/distribution.source.r.example.com"] != "team/app" {
		t.Errorf("labels %v, %v", info.Labels, err)
	}
}

// TestPortsApart: the repository on one port of a host has no part in what containerd had from another one.
func TestPortsApart(t *testing.T) {
	for name, c := range map[string]struct {
		configured []string
		image      string // that is there, too
		want       bool
	}{
		"nothing else is known":             {want: true},
		"this port is configured":           {configured: []string{"localhost:5001"}, want: true},
		"another one is, too":               {configured: []string{"localhost:5001", "localhost:5000"}},
		"an image of another port":          {image: "localhost:5000/x:1"},
		"an image of another path there":    {image: "localhost:5000/y:1", want: true},
		"an image of this port":             {image: "localhost:5001/x:1", want: true},
		"an image of another host, as here": {image: "elsewhere:5000/x:1", want: true},
	} {
		t.Run(name, func(t *testing.T) {
			socket := shortDir(t) + "/containerd.sock"
			ctrd := cmdtest.NewContainerd(t, socket)
			client, err := client.New(socket)
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			if c.image != "" {
				ctrd.Put(t, c.image, cmdtest.NewImage(t, cmdtest.OCI))
			}
			b := &storedBlobs{client, func(string) []string { return c.configured }}
			data := []byte("a layer")
			desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromBytes(data), Size: int64(len(data))}
			had := registry.Repository{Host: "localhost", Path: "x"} // as the label says
			if err := b.KeepBlob(t.Context(), "default", desc, had, digest.FromString("plain"), bytes.NewReader(data)); err != nil {
				t.Fatal(err)
			}
			asks := registry.Repository{Host: "localhost:5001", Path: "x"}
			if got := b.From(t.Context(), "default", desc.Digest, asks); got != c.want {
				t.Errorf("got %v, want %v", got, c.want)
			}
			if asks.Path = "z"; b.From(t.Context(), "default", desc.Digest, asks) {
				t.Error("of a path that is not in the label")
			}
		})
	}
}

// TestPutBlobFails: other bytes are not stored, and what an earlier try has left is no part of the next.
func TestPutBlobFails(t *testing.T) {
	ctrd := cmdtest.NewContainerd(t, shortDir(t)+"/containerd.sock")
	ctx := namespaces.WithNamespace(t.Context(), "default")
	store := ctrd.DB.ContentStore()
	data := cmdtest.Noise(1, 100_000)
	desc := ocispec.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data))}
	put := func(write func(io.Writer) error) error {
		return putBlob(ctx, store, desc, registry.Repository{Host: "r.example.com", Path: "app"}, "sha256:x", write)
	}
	gone := errors.New("the registry is gone")
	err := put(func(w io.Writer) error {
		if _, err := w.Write(data[:50_000]); err != nil {
			return err
		}
		return gone
	})
	if !errors.Is(err, gone) {
		t.Errorf("got %v", err)
	}
	fails(t, put(func(w io.Writer) error { _, err := w.Write(make([]byte, len(data))); return err }), "the registry serves another blob")
	if err := put(func(w io.Writer) error { _, err := w.Write(data); return err }); err != nil {
		t.Errorf("after two that failed: %v", err)
	}
}
