package snapshotter

import (
	"context"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/snapshotter/layers"
)

// Progress is how far the import of a layer is, in packed bytes.
type Progress struct {
	Digest      digest.Digest
	Came, Total int64
}

const progressEvery = 200 * time.Millisecond

// Resolve opens every layer of a manifest that is read here and returns when all are open or have
// failed, with the reasons of those that containerd is to unpack. Meanwhile it tells of the layers that are
// imported.
func (c *claims) Resolve(ctx context.Context, manifest digest.Digest, ref string,
	tell func([]Progress)) (reasons map[digest.Digest]string, err error) {
	img, err := c.images.Manifest(ctx, manifest, ref)
	if err != nil {
		return nil, err
	}
	c.layers.Indexes.Expect(img)
	c.starts.Begin(img)
	reasons = map[digest.Digest]string{}
	var all []*layers.Opening
	bound := c.bindings.keys()
	for i := range img.Layers {
		if bound[c.layers.KeyOf(&img.Layers[i])] {
			continue
		}
		if err := c.layers.Refuses(&img.Layers[i]); err != nil {
			reasons[img.Layers[i].Descriptor.Digest] = err.Error()
			continue
		}
		all = append(all, c.layers.OpenAgain(img.Layers[i]))
	}
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for i := 0; i < len(all); {
		o := all[i]
		select {
		case <-o.Done():
			if err := o.Err(); err != nil {
				reasons[o.Source().Descriptor.Digest] = err.Error()
			}
			i++
		case <-tick.C:
			tell(progressOf(all))
		case <-ctx.Done():
			return reasons, context.Cause(ctx)
		}
	}
	return reasons, nil
}

func progressOf(all []*layers.Opening) (p []Progress) {
	for _, o := range all {
		if n := o.Came(); n > 0 {
			desc := o.Source().Descriptor
			p = append(p, Progress{desc.Digest, n, desc.Size})
		}
	}
	return p
}
