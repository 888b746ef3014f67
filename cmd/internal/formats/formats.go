package formats

import (
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/fs/format"
	"github.com/remora-storage/remora/fs/format/estargz"
	"github.com/remora-storage/remora/fs/format/zstdchunked"
)

// All returns all formats.
func All() []format.Format {
	return []format.Format{
		estargz.Format{},
		zstdchunked.Format{},
	}
}

// Indexed reports whether a layer's descriptor says that the layer has an index of its own, rightly or not.
func Indexed(desc ocispec.Descriptor) bool {
	for _, f := range All() {
		if o, err := f.Claims(desc); err != nil || o != nil && o.Vouched() != "" {
			return true
		}
	}
	return false
}
