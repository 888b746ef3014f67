package layers

import (
	"errors"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/cache/blob"
	"github.com/remora-storage/remora/fs/format"
	"github.com/remora-storage/remora/fs/layout"
	"github.com/remora-storage/remora/fs/scan"
	"github.com/remora-storage/remora/remote/registry"
)

// A promise is what a manifest says of how a layer can be read.
type promise struct {
	format   string        // of the index, or formatImport
	index    format.Opener // nil if the layer is imported
	codec    blob.Codec
	eager    bool   // no index is to be used
	noImport string // why it cannot be imported, "" if it can
}

// What layers without a format are said to be.
const (
	formatImport = "import" // the layer is read once from start to end
	formatIndex  = "index"  // it is read by an index that was made when it was imported
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
	p, err := r.indexOf(s)
	eager := mode == ImportEager || s.Whole
	if err != nil || eager {
		p = promise{format: formatImport}
		if noImport != "" {
			return p, NotLazy("%s", noImport)
		}
	}
	p.codec, p.noImport, p.eager = codec, noImport, eager
	return p, nil
}

// whole is a promise of the same layer that is read whole, whatever its table.
func (p promise) whole() (promise, error) {
	if p.noImport != "" {
		return p, NotLazy("%s", p.noImport)
	}
	p.format, p.index, p.eager = formatImport, nil, true
	return p, nil
}

// refuses says why a layer is not read here, whatever it is; nil if it is. The error wraps ErrNotLazy.
func (r *promises) refuses(s *Source) error {
	_, err := r.promiseOf(s)
	return err
}

// Whole reports whether a layer that is read here is read whole before it is used.
func (r *promises) Whole(s *Source) bool {
	p, err := r.promiseOf(s)
	return err == nil && p.format == formatImport
}

// indexOf says by which index a layer can be read lazily: the first that its manifest vouches for, or else the first that it may have,
// if the operator trusts the registry.
func (r *promises) indexOf(s *Source) (promise, error) {
	d := s.Descriptor
	if len(d.URLs) > 0 {
		return promise{}, NotLazy("foreign layer")
	}
	if err := d.Digest.Validate(); err != nil || d.Digest.Algorithm() != digest.SHA256 {
		return promise{}, NotLazy("digest %q", d.Digest)
	}
	var vouched, possible promise
	for _, f := range r.opts.Formats {
		o, err := f.Claims(d)
		switch {
		case err != nil:
			return promise{}, NotLazy("%w", err)
		case o == nil:
		case o.Vouched() != "" && vouched.index == nil:
			vouched = promise{format: f.Name(), index: o}
		case o.Vouched() == "" && possible.index == nil:
			possible = promise{format: f.Name(), index: o}
		}
	}
	switch {
	case vouched.index != nil:
		return vouched, nil
	case possible.index == nil:
		return promise{}, NotLazy("media type %s has no index that we read", d.MediaType)
	case slices.Contains(r.opts.Trust.Unverified, s.Repo.Host):
		return possible, nil
	}
	return promise{}, NotLazy("the manifest has no index for this layer")
}

// refusal marks the errors for which a layer takes the ordinary path.
func refusal(err error) error {
	if errors.Is(err, layout.ErrInvalid) || errors.Is(err, registry.ErrRange) || errors.Is(err, registry.ErrNotFound) ||
		errors.Is(err, registry.ErrNotPublic) {
		return NotLazy("%w", err)
	}
	return err
}

// FormatOf names the format of a layer that is read here.
func (r *promises) FormatOf(s *Source, f *cache.File) string {
	if f != nil && f.Imported() {
		return formatImport
	}
	p, err := r.promiseOf(s)
	switch {
	case err == nil && (p.format != formatImport || f == nil):
		return p.format
	case err == nil:
		return formatIndex
	}
	for _, f := range r.opts.Formats {
		if o, err := f.Claims(s.Descriptor); o != nil || err != nil {
			return f.Name()
		}
	}
	return formatImport
}

// ProveBeforeUse reports whether a layer is to be complete, and its diffID checked, before its first mount.
func (r *promises) ProveBeforeUse(s *Source) bool { return r.opts.TrustOf(s.Repo).BeforeUse }

// KeepsBlob reports whether a layer's blob is to be in containerd's content store.
func (r *promises) KeepsBlob(s *Source) bool {
	return r.opts.Blobs != nil && r.opts.ImportOf(s.Repo).KeepBlobs
}
