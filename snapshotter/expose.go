package snapshotter

import (
	"context"
	"fmt"

	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/cache"
)

// Expose makes a file of the image of one of a pulled image's layers: what is mounted of it, from its first byte to its
// last, fetched when it is read. end takes it away.
func (rs *recordings) Expose(ctx context.Context, manifest, layer digest.Digest, ref string) (path string, end func(), err error) {
	files, img, err := rs.Layers(ctx, manifest, ref)
	if err != nil {
		return "", nil, err
	}
	f := files[layer]
	if f == nil {
		return "", nil, fmt.Errorf("%s is no lazy layer of %s: snapctl status %s lists those that are", layer, img.Ref, img.Ref)
	}
	return rs.exports.expose(firstRecorded+rs.recorded.Add(1), cache.For(f, img.Repo))
}
