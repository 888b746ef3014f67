package format

import (
	"context"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/fs/format/toc"
	"github.com/remora-storage/remora/fs/layout"
)

// A Format is a kind of index that layers bring along.
type Format interface {
	// Name is one short word that stays the same for ever, because images in caches are named by it. It is neither "import" nor
	// "index", which status calls layers without a format.
	Name() string
	// Claims returns how a layer with a descriptor is opened; nil if it cannot be of this format. An error says why the
	// descriptor is wrong: the layer is read by no format then. It makes no request.
	Claims(desc ocispec.Descriptor) (Opener, error)
}

// An Opener opens one layer.
type Opener interface {
	// Vouched describes the table that the manifest vouches for: layers of one blob with equal descriptions show the same. It is
	// "" if the manifest vouches for none. Then Open takes the table that it finds, and only who trusts the registry calls it.
	Vouched() string
	// Open reads the layer's table, in as few round trips as it can. It stays within limits, which have their defaults or not.
	// Errors that wrap layout.ErrInvalid are the layer's fault; all others come from blob.
	Open(ctx context.Context, blob toc.Blob, limits layout.Limits) (*Index, error)
}

// An Index is an opened layer.
type Index struct {
	Layout *layout.Layout
	// Tail is the blob from TailOff to its end, as it was read, or nil if not all of that was. Its unit is the last
	// one of the Layout.
	Tail    []byte
	TailOff int64
}
