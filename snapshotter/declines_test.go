package snapshotter

import (
	"testing"

	"github.com/containerd/errdefs"
)

// TestDeclinedOnce: once a layer was declined since it was not proven in time, nobody asks for it, or for those above it,
// beside containerd, but for an index of the one that is prepared. What containerd has stored of them is used.
func TestDeclinedOnce(t *testing.T) {
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) {
			im := newImage(t, "app", nil, f.make(t, file("a", honest)), f.make(t, file("b", honest)), f.make(t, file("c", honest)))
			o := newOrigin(t, im)
			b := newBed(t, o, func(b *bed) { withBlobs(b); b.opts.Layers.ProofWait = claimWait })
			release := o.Silence("/blobs/")
			defer release()
			b.fetch(im)
			b.decline(im, 0, "")
			mounts, err := b.Prepare(b.ctx, "unpack", "")
			if err != nil {
				t.Fatal(err)
			}
			b.unpack("unpack", "below", mounts, file("a", honest))
			b.layers.Proofs.Forgive()
			release()
			o.Forget()
			if _, err := b.prepare(im, 1, "below"); f.whole && err != nil || err != nil && !errdefs.IsAlreadyExists(err) {
				t.Errorf("got %v", err)
			}
			b.put(im.Layers[1].Desc, im.Layers[1].Blob, b.from(im))
			eventually(t, "what is stored is claimed", func() bool {
				_, err := b.prepare(im, 1, "below")
				return errdefs.IsAlreadyExists(err)
			})
			for i, l := range im.Layers {
				if n := o.Requests("blobs", l.Digest().String()); n > 0 && (i != 1 || f.whole) {
					t.Errorf("layer %d was asked for %d times", i, n)
				}
			}
		})
	}
}
