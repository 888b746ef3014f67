package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/remora-storage/remora/cmd/internal/control"
)

// fetchedImage is what `snapctl fetch --json` prints.
type fetchedImage struct {
	Image   string          `json:"image"`
	Layers  []digest.Digest `json:"layers"`
	Bytes   int64           `json:"bytes"` // packed, of all layers
	Blobs   bool            `json:"blobs"` // whether they are in containerd's content store
	Seconds float64         `json:"seconds"`
}

func (a *app) fetchCommand() *cobra.Command {
	var cacheOnly bool
	c := &cobra.Command{
		Use:   "fetch [flags] IMAGE",
		Short: "Make a lazily pulled image complete",
		Long: `fetch downloads what is missing of an image that was pulled lazily, and checks every layer against
its diffID. It puts the layers' blobs into containerd's content store, so that you can push the
image to another registry, export or convert it. After that the registry is no longer needed.`,
		Example: `  snapctl fetch registry.example.com/redis:7-lazy
  ctr images export redis.tar registry.example.com/redis:7-lazy`,
		Args: exactly(1, "one image"),
		RunE: func(cmd *cobra.Command, args []string) error { return a.fetch(cmd.Context(), args[0], cacheOnly) },
	}
	c.Flags().BoolVar(&cacheOnly, "cache-only", false, "fill remorad's cache only, not containerd's content store")
	return c
}

func (a *app) fetch(ctx context.Context, image string, cacheOnly bool) error {
	began := time.Now()
	ref, err := normalize(image)
	if err != nil {
		return err
	}
	ctx, containerd, img, err := a.localImage(ctx, ref)
	if err != nil {
		return err
	}
	defer containerd.Close()
	manifest, err := manifestDigest(ctx, containerd.ContentStore(), img.Metadata())
	if err != nil {
		return err
	}
	remora, closer, err := a.dialRemora()
	if err != nil {
		return err
	}
	defer closer.Close()
	result := &fetchedImage{Image: ref, Blobs: !cacheOnly}
	last := time.Time{}
	err = remora.Fetch(ctx, &control.FetchRequest{Namespace: a.namespace, Manifest: manifest, Ref: ref, CacheOnly: cacheOnly},
		func(p *control.FetchProgress) {
			if p.Done {
				result.Layers = append(result.Layers, p.Digest)
				result.Bytes += p.Total
			}
			if p.Done || time.Since(last) > time.Second {
				last = time.Now()
				a.note("%s  %s of %s", short(p.Digest), size(p.Bytes), size(p.Total))
			}
		})
	if err != nil {
		return fmt.Errorf("fetch %s: %w", ref, control.Explain(err, a.remora))
	}
	result.Seconds = time.Since(began).Seconds()
	return a.print(result, func(w io.Writer) {
		where := "in containerd's content store and in the cache"
		if cacheOnly {
			where = "in the cache"
		}
		fmt.Fprintf(w, "%s: %d layers, %s, complete and checked, %s after %.2f s\n", ref, len(result.Layers), size(result.Bytes), where,
			result.Seconds)
	})
}
