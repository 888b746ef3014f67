package cache

import (
	"context"

	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/cache/image"
)

// An Import is an image that comes whole, from its blob read once from start to end.
type Import struct {
	*image.Import
	c *Cache
}

// Import begins the import of a blob that id names, or goes on with one. There is one at a time of an id: it
// waits for the end of another. Finish or Stop must be called. Data is written by one goroutine; Keep may be
// called by another.
func (c *Cache) Import(ctx context.Context, id string) (*Import, error) {
	im, err := c.images.Import(ctx, id)
	if err != nil {
		return nil, err
	}
	return &Import{im, c}, nil
}

// Finish makes the image a file of the cache, called id, instead of another one of that name. Of its extents those are present
// that were written, and its content is known to be diffID's. It may be mounted immediately; it survives a crash of the machine
// once its first commit is done.
func (im *Import) Finish(id string, spec Spec, diffID digest.Digest, src Source) (*File, error) {
	img, err := im.Import.Finish(id, spec, diffID, func() error { return im.c.removeAny(id) })
	if err != nil {
		return nil, err
	}
	return im.c.add(im.c.newFile(img, src)), nil
}
