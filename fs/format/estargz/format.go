package estargz

import (
	"context"
	"strconv"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/fs/annotation"
	"github.com/remora-storage/remora/fs/format"
	"github.com/remora-storage/remora/fs/format/toc"
	"github.com/remora-storage/remora/fs/layout"
)

// Format is eStargz as a format of layers.
type Format struct{}

// Name implements format.Format.
func (Format) Name() string { return "estargz" }

// Claims implements format.Format: any gzip may have a table at its end.
func (Format) Claims(desc ocispec.Descriptor) (format.Opener, error) {
	switch desc.MediaType {
	case ocispec.MediaTypeImageLayerGzip, "application/vnd.docker.image.rootfs.diff.tar.gzip":
	default:
		return nil, nil
	}
	sum, err := toc.Promised(desc.Annotations)
	if err != nil {
		return nil, err
	}
	hint, _ := strconv.ParseInt(desc.Annotations[annotation.TOCOffset], 10, 64) // 0 where there is none
	return opener{sum, hint}, nil
}

// opener opens one layer.
type opener struct {
	toc  digest.Digest // that the manifest promises; "" if it promises none
	hint int64
}

// Vouched implements format.Opener.
func (o opener) Vouched() string {
	if o.toc == "" {
		return ""
	}
	return o.toc.String() + " {Digest: Off:0 Packed:0 Plain:0}" // as images in the caches of earlier versions are named
}

// Open implements format.Opener.
func (o opener) Open(ctx context.Context, blob toc.Blob, limits layout.Limits) (*format.Index, error) {
	return Open(ctx, blob, Options{TOCDigest: o.toc, Unverified: o.toc == "", OffsetHint: o.hint, Limits: limits})
}
