package layers

import (
	"bytes"
	"errors"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/cache/blob"
	"github.com/remora-storage/remora/fs/erofs"
	"github.com/remora-storage/remora/fs/format"
	"github.com/remora-storage/remora/remote/registry"
	"github.com/remora-storage/remora/snapshotter/internal/imagetest"
)

// TestTwins: an image gets bytes that another one in the cache has where its repository has let us have that one's layer, too, or the
// operator lets all share. A table that lists somebody's file by its digest, of a layer without it, gets nothing.
func TestTwins(t *testing.T) {
	secret := imagetest.Noise(1, 100_000)
	for name, c := range map[string]struct {
		thief  string // repository of the image that lists what it has not
		shared bool
		copied bool
	}{
		"another repository":     {"thief", false, false},
		"the same repository":    {"app", false, true},
		"another one, if shared": {"thief", true, true},
	} {
		t.Run(name, func(t *testing.T) {
			owned := toyLayer(t, secret, imagetest.Noise(2, 5000))
			lists := toyLayer(t, secret, imagetest.Noise(3, 5000))
			copy(lists.Blob, make([]byte, len(secret)))
			lists.Desc.Digest = digest.FromBytes(lists.Blob)
			owner, thief := imagetest.NewImage(t, "app", nil, owned), imagetest.NewImage(t, c.thief, nil, lists)
			o := imagetest.NewOrigin(t, owner, thief)
			l := newOf(t, o, Options{Formats: []format.Format{toy{}}, TrustOf: func(registry.Repository) TrustPolicy {
				return TrustPolicy{Shared: c.shared}
			}})
			read := func(im *imagetest.Image) ([]byte, error) {
				src := sourceOf(o, im)
				f, _, err := l.Image(t.Context(), &src)
				if err != nil {
					t.Fatal(err)
				}
				files, err := erofs.NewReader(f.Image(), f.MetaSize())
				if err != nil {
					t.Fatal(err)
				}
				n, found, _, _, err := files.Find("f0")
				if err != nil || !found {
					t.Fatalf("found %v, %v", found, err)
				}
				got := make([]byte, n.Size)
				_, err = f.ReadAt(t.Context(), got, n.Data)
				return got, err
			}
			if got, err := read(owner); err != nil || !bytes.Equal(got, secret) {
				t.Fatalf("the owner has other bytes, or %v", err)
			}
			got, err := read(thief)
			switch {
			case c.copied && (err != nil || !bytes.Equal(got, secret)):
				t.Errorf("other bytes, or %v", err)
			case !c.copied && !errors.Is(err, blob.ErrBytes):
				t.Errorf("got %v", err)
			case !c.copied && bytes.Contains(got, secret[:100]):
				t.Error("it read what its registry has not")
			}
		})
	}
}
