package layers

import (
	"fmt"

	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/cache"
)

// A layer's image in the cache is named by what vouches for its content (cache.Name), so that no image decides what another one
// shows. An image that is read by parts is believed by a table, which another manifest may have named beside the same digest;
// and it reads from one repository, whose owner may let others wait.
//
// So what was read whole has one image for all, and what is read by a table has one for each table; where nobody but a
// repository says which table is right, that is one for each repository. Once the diffID of such an image is proven it
// serves all images whose configuration promises that diffID.

// vouchedBy describes what a layer is read by: two that are read by equal tables have equal descriptions.
func (p promise) vouchedBy(s *Source) string {
	if p.format == formatImport {
		return "whole"
	}
	if by := p.index.Vouched(); by != "" {
		return p.format + " " + by
	}
	return fmt.Sprintf("%s of %s", p.format, s.Repo)
}

// tableOf describes the table by which an image in the cache may have been made for this promise. An image by a published
// index is found with the index alone.
func (p promise) tableOf(s *Source) string {
	if p.format == formatImport {
		return madeHere
	}
	return p.vouchedBy(s)
}

// madeHere describes an index that this node made of a layer that it had read whole.
const madeHere = "index made here"

// publishedBy describes an index that is published in a layer's repository.
func publishedBy(index []byte, s *Source) string {
	return fmt.Sprintf("index %s of %s", digest.FromBytes(index), s.Repo)
}

// KeyOf tells openings apart: of two images that name the same layer, only those share one that read it by the same table
// from the same repository, since that may never answer.
func (r *promises) KeyOf(s *Source) string {
	p, err := r.promiseOf(s)
	if err != nil {
		p = promise{format: formatImport} // it is not opened
	}
	return cache.Name{Blob: s.BlobName(), Voucher: cache.ByTable(p.vouchedBy(s) + " from " + s.Repo.String())}.String()
}

// KeysOf returns the keys of an image's layers.
func (r *promises) KeysOf(img *Image) map[string]bool {
	keys := map[string]bool{}
	for i := range img.Layers {
		keys[r.KeyOf(&img.Layers[i])] = true
	}
	return keys
}

// Proven reports whether an image is known to be the layer that an image promises: the whole blob was read and had the
// digest by which s names it, or its plain bytes have the promised diffID.
func Proven(f *cache.File, s *Source) bool {
	return f.Imported() || s.DiffID != "" && f.Verified(s.DiffID)
}

// cachedImage returns an image in the cache that may show a layer, or nil: one that is proven goes first, and the other
// is the one that s names. by describes its table; below is part of the image's name.
func (l *Layers) cachedImage(s *Source, below, by string) *cache.File {
	blob := s.BlobName()
	for _, voucher := range []cache.Voucher{cache.Whole, ""} { // the second is of earlier versions
		// It may not be open yet.
		if f, err := l.File(cache.Name{Blob: blob, Voucher: voucher, Below: below}.String(), s); err == nil && Proven(f, s) {
			return f
		}
	}
	for _, f := range l.cache.Opened(blob) {
		if cache.ParseName(f.ID()).Below == below && Proven(f, s) {
			return f
		}
	}
	if f, err := l.File(cache.Name{Blob: blob, Voucher: cache.ByTable(by), Below: below}.String(), s); err == nil {
		return f
	}
	return nil
}

// ContentOf describes what decides a layer's content: the blob and the table, whatever the repository.
func (r *promises) ContentOf(s *Source) string {
	p, err := r.promiseOf(s)
	if err != nil {
		p = promise{format: formatImport} // containerd reads all of it
	}
	return s.BlobName() + " " + p.vouchedBy(s)
}
