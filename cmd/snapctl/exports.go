package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// missingBlobs returns the layers of an image whose blobs are not in containerd's content store: exports, and pushes to another
// registry, leave them out or fail.
func missingBlobs(ctx context.Context, store content.InfoProvider, manifest ocispec.Manifest) (missing []digest.Digest, err error) {
	for _, l := range manifest.Layers {
		_, err := store.Info(ctx, l.Digest)
		if errdefs.IsNotFound(err) {
			missing = append(missing, l.Digest)
		} else if err != nil {
			return nil, err
		}
	}
	return missing, nil
}

// exportFinding names the images of the namespace that cannot be exported.
func (a *app) exportFinding(ctx context.Context, c *client.Client) finding {
	f := finding{Check: "exports", Result: ok,
		Detail: "the blobs of all images in namespace " + a.namespace + " are in containerd's content store"}
	all, err := c.ImageService().List(ctx)
	if err != nil {
		return finding{Check: f.Check, Result: warning, Detail: err.Error()}
	}
	var names []string
	for _, img := range all {
		manifest, err := images.Manifest(ctx, c.ContentStore(), img.Target, platforms.Default())
		if err != nil {
			continue // of another platform, or only named: nothing of it was pulled by Remora
		}
		missing, err := missingBlobs(ctx, c.ContentStore(), manifest)
		if err != nil {
			return finding{Check: f.Check, Result: warning, Detail: err.Error()}
		}
		if len(missing) > 0 {
			names = append(names, img.Name)
		}
	}
	if len(names) == 0 {
		return f
	}
	slices.Sort(names)
	const most = 5
	shown := names[:min(len(names), most)]
	f.Detail = fmt.Sprintf("%d images in namespace %s are not in containerd's content store whole, and cannot be exported, saved or pushed "+
		"to another registry: %s", len(names), a.namespace, strings.Join(shown, ", "))
	if len(names) > most {
		f.Detail += ", ..."
	}
	f.Fix = "nothing, unless you want to do that: snapctl fetch IMAGE completes one, [import] keep_blobs = true all of them"
	return f
}
