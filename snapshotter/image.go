package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/fs/format/estargz"
	"github.com/remora-storage/remora/remote"
)

// An Image is what containerd's content store says of an image, and where it came from.
type Image struct {
	Ref      string // for people; "" if unknown
	Manifest digest.Digest
	Repo     remote.Repository
	Layers   []Source // lowest first
}

// A Source is where one layer's bytes are. It is kept with the snapshot.
type Source struct {
	Image      string             `json:"image"`
	Repo       remote.Repository  `json:"repository"`
	Descriptor ocispec.Descriptor `json:"descriptor"`
	DiffID     digest.Digest      `json:"diff_id,omitempty"`
}

// A Query asks for the image that a layer belongs to. Empty fields are unknown.
type Query struct {
	ChainID  digest.Digest
	Manifest digest.Digest // as a label says; a hint
	Ref      string        // likewise
}

// Images finds images in containerd's content store.
type Images interface {
	// Find returns the image that has a layer with the chainID, and the layer's index. The
	// image's repository is one that containerd fetched its manifest from. An error that
	// wraps ErrNotLazy says why there is no such image, or none that is certain.
	Find(ctx context.Context, q Query) (Image, int, error)

	// Manifest returns the image with the given manifest, without diffIDs if the
	// configuration is not in the store yet.
	Manifest(ctx context.Context, manifest digest.Digest, ref string) (Image, error)
}

// ErrNotLazy says that a layer takes containerd's ordinary path. Its text is the reason.
var ErrNotLazy = errors.New("layer cannot be lazy")

func notLazy(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrNotLazy, fmt.Errorf(format, args...))
}

// indexOf says by which index a layer can be read lazily.
func (t Trust) indexOf(s *Source) (toc digest.Digest, unverified bool, err error) {
	d := s.Descriptor
	switch d.MediaType {
	case ocispec.MediaTypeImageLayerGzip, "application/vnd.docker.image.rootfs.diff.tar.gzip":
	default:
		return "", false, notLazy("media type %s has no index that we read", d.MediaType)
	}
	if len(d.URLs) > 0 {
		return "", false, notLazy("foreign layer")
	}
	if err := d.Digest.Validate(); err != nil || d.Digest.Algorithm() != digest.SHA256 {
		return "", false, notLazy("digest %q", d.Digest)
	}
	for key := range d.Annotations {
		if strings.HasPrefix(key, "io.containers.zstd-chunked.") || strings.HasPrefix(key, "io.github.containers.zstd-chunked.") {
			if _, both := d.Annotations[estargz.TOCDigest]; both {
				return "", false, notLazy("two kinds of index on one layer")
			}
		}
	}
	v, ok := d.Annotations[estargz.TOCDigest]
	if !ok {
		if slices.Contains(t.Unverified, s.Repo.Host) {
			return "", true, nil
		}
		return "", false, notLazy("the manifest has no index for this layer (convert the image with snapctl convert)")
	}
	toc, perr := digest.Parse(v)
	if perr != nil || toc.Algorithm() != digest.SHA256 {
		return "", false, notLazy("digest of the table of contents %.80q", v)
	}
	return toc, false, nil
}

// Trust is what an operator allows.
type Trust struct {
	// Unverified lists registry hosts whose layers are used by a table of contents that the
	// manifest does not vouch for.
	Unverified []string
	// BeforeUse makes a layer complete and checks its diffID before its first mount.
	BeforeUse bool
}
