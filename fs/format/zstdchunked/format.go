package zstdchunked

import (
	"context"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/fs/annotation"
	"github.com/remora-storage/remora/fs/format"
	"github.com/remora-storage/remora/fs/format/toc"
	"github.com/remora-storage/remora/fs/layout"
)

// Format is zstd:chunked as a format of layers.
type Format struct{}

// Name implements format.Format.
func (Format) Name() string { return "zstdchunked" }

// Claims implements format.Format: any zstd may have a table at its end.
func (Format) Claims(desc ocispec.Descriptor) (format.Opener, error) {
	table, named, err := Named(desc.Annotations)
	switch {
	case err != nil:
		return nil, err
	case desc.MediaType != MediaType && named:
		return nil, errors.New("an index of zstd:chunked on a layer that is not zstd")
	case desc.MediaType != MediaType:
		return nil, nil
	}
	plain, err := toc.Promised(desc.Annotations)
	if err != nil {
		return nil, err
	}
	return opener{table, plain, desc.Annotations[annotation.Landmarks] != ""}, nil
}

// opener opens one layer.
type opener struct {
	table     Table         // that the manifest names; the zero value if it names none
	plain     digest.Digest // of the plain table, if that is promised too
	landmarks bool          // our converter has put eStargz's landmarks into the layer
}

// Vouched implements format.Opener.
func (o opener) Vouched() string {
	if o.table == (Table{}) {
		return ""
	}
	return fmt.Sprintf("%s %+v", o.plain, o.table)
}

// Open implements format.Opener.
func (o opener) Open(ctx context.Context, blob toc.Blob, limits layout.Limits) (*format.Index, error) {
	return Open(ctx, blob, Options{
		Table: o.table, Unverified: o.table == (Table{}), JSONDigest: o.plain, Landmarks: o.landmarks, Limits: limits,
	})
}
