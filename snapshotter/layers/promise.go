package layers

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/cache/blob"
	"github.com/remora-storage/remora/fs/convert"
	"github.com/remora-storage/remora/fs/format/estargz"
	"github.com/remora-storage/remora/fs/format/zstdchunked"
	"github.com/remora-storage/remora/fs/layout"
	"github.com/remora-storage/remora/fs/scan"
	"github.com/remora-storage/remora/remote/registry"
)

// A promise is what a manifest says of how a layer can be read.
type promise struct {
	format     string // of the index, or formatImport
	codec      blob.Codec
	eager      bool              // no index is to be used
	noImport   string            // why it cannot be imported, "" if it can
	toc        digest.Digest     // eStargz: of the plain table; zstd:chunked: the same, if that is promised too
	table      zstdchunked.Table // zstd:chunked
	unverified bool              // the operator takes the index as it is
	landmarks  bool              // zstd:chunked: our converter has put eStargz's landmarks into the layer
}

const (
	formatEstargz     = "estargz"
	formatZstdChunked = "zstdchunked"
	formatImport      = "import" // none: the layer is read once from start to end
	formatIndex       = "index"  // one that was made when the layer was imported
)

// promises say how layers are read, by their manifests and by what an operator allows.
type promises struct{ opts *Options }

// promiseOf says how a layer is read: by its index, or else whole. An error that wraps ErrNotLazy says
// why containerd is to unpack it.
func (r *promises) promiseOf(s *Source) (promise, error) {
	mode := r.opts.ImportOf(s.Repo).Mode
	if mode == ImportOrdinary {
		return promise{}, NotLazy("[import] mode is %s for %s", ImportOrdinary, s.Repo)
	}
	codec, known := scan.CodecOf(s.Descriptor.MediaType)
	noImport := ""
	if !known {
		noImport = fmt.Sprintf("media type %s is not known", s.Descriptor.MediaType)
	} else if err := s.Descriptor.Digest.Validate(); err != nil || s.Descriptor.Digest.Algorithm() != digest.SHA256 {
		noImport = fmt.Sprintf("digest %q", s.Descriptor.Digest)
	}
	p, err := r.opts.Trust.indexOf(s)
	if err != nil || mode == ImportEager {
		p = promise{format: formatImport}
		if noImport != "" {
			return p, NotLazy("%s", noImport)
		}
	}
	p.codec, p.noImport, p.eager = codec, noImport, mode == ImportEager
	return p, nil
}

// Refuses says why containerd is to unpack a layer; nil if it is read here. The error wraps ErrNotLazy.
func (r *promises) Refuses(s *Source) error {
	_, err := r.promiseOf(s)
	return err
}

// Whole reports whether a layer that is read here is read whole before it is used.
func (r *promises) Whole(s *Source) bool {
	p, err := r.promiseOf(s)
	return err == nil && p.format == formatImport
}

// indexOf says by which index a layer can be read lazily.
func (t Trust) indexOf(s *Source) (promise, error) {
	d := s.Descriptor
	p := promise{format: formatEstargz}
	switch d.MediaType {
	case ocispec.MediaTypeImageLayerGzip, "application/vnd.docker.image.rootfs.diff.tar.gzip":
	case zstdchunked.MediaType:
		p.format = formatZstdChunked
	default:
		return p, NotLazy("media type %s has no index that we read", d.MediaType)
	}
	if len(d.URLs) > 0 {
		return p, NotLazy("foreign layer")
	}
	if err := d.Digest.Validate(); err != nil || d.Digest.Algorithm() != digest.SHA256 {
		return p, NotLazy("digest %q", d.Digest)
	}
	toc, hasTOC := d.Annotations[estargz.TOCDigest]
	if hasTOC {
		sum, err := digest.Parse(toc)
		if err != nil || sum.Algorithm() != digest.SHA256 {
			return p, NotLazy("digest of the table of contents %.80q", toc)
		}
		p.toc = sum
	}
	table, named, err := zstdchunked.Named(d.Annotations)
	if err != nil {
		return p, NotLazy("%w", err)
	}
	if p.format == formatEstargz && named {
		return p, NotLazy("an index of zstd:chunked on a layer that is not zstd")
	}
	p.table = table
	p.landmarks = d.Annotations[convert.Landmarks] != ""
	if p.format == formatEstargz && hasTOC || named {
		return p, nil
	}
	if slices.Contains(t.Unverified, s.Repo.Host) {
		p.unverified = true
		return p, nil
	}
	return p, NotLazy("the manifest has no index for this layer")
}

// openIndex reads a layer's index.
func openIndex(ctx context.Context, blob *countedBlob, p promise, s *Source, limits layout.Limits) (*Tree, error) {
	if p.format == formatZstdChunked {
		x, err := zstdchunked.Open(ctx, blob, zstdchunked.Options{
			Table: p.table, Unverified: p.unverified, JSONDigest: p.toc, Landmarks: p.landmarks, Limits: limits,
		})
		if err != nil {
			return nil, refusal(err)
		}
		return &Tree{by: p.vouchedBy(s), layout: x.Layout, tail: x.Tail, fetched: blob.n}, nil
	}
	hint, _ := strconv.ParseInt(s.Descriptor.Annotations[estargz.TOCOffset], 10, 64) // 0 where there is none
	x, err := estargz.Open(ctx, blob, estargz.Options{TOCDigest: p.toc, Unverified: p.unverified, OffsetHint: hint, Limits: limits})
	if err != nil {
		return nil, refusal(err)
	}
	return &Tree{by: p.vouchedBy(s), layout: x.Layout, tail: x.Tail, fetched: blob.n}, nil
}

// refusal marks the errors for which a layer takes the ordinary path.
func refusal(err error) error {
	if errors.Is(err, layout.ErrInvalid) || errors.Is(err, registry.ErrRange) || errors.Is(err, registry.ErrNotFound) {
		return NotLazy("%w", err)
	}
	return err
}

// FormatOf names the format of a layer that is read here.
func (r *promises) FormatOf(s *Source, f *cache.File) string {
	if f != nil && f.Imported() {
		return formatImport
	}
	if p, err := r.promiseOf(s); err == nil && (p.format != formatImport || f == nil) {
		return p.format
	} else if err == nil {
		return formatIndex
	}
	if strings.HasSuffix(s.Descriptor.MediaType, "+zstd") {
		return formatZstdChunked
	}
	return formatEstargz
}

// ProveBeforeUse reports whether a layer is to be complete, and its diffID checked, before its first mount.
func (r *promises) ProveBeforeUse(s *Source) bool { return r.opts.TrustOf(s.Repo).BeforeUse }

// KeepsBlob reports whether a layer's blob is to be in containerd's content store.
func (r *promises) KeepsBlob(s *Source) bool {
	return r.opts.Blobs != nil && r.opts.ImportOf(s.Repo).KeepBlobs
}
