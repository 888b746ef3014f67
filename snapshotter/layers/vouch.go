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
// So what was read whole has one image for all, and what is read by a table has one for each table and registry: a table says nothing of
// who has the bytes, and one registry's are not for another one's images (grant.go). Where nobody but a repository says which table is
// right, that is one for each repository.

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

// tableOf is what vouches for an image in the cache that may have been made for this promise. An image by a published
// index is found with the index alone.
func (p promise) tableOf(s *Source) cache.Voucher {
	if p.format == formatImport {
		return madeHere
	}
	return cache.ByTable(p.vouchedBy(s)).At(s.Repo.Host)
}

// madeHere vouches for an image by an index that this node made of a layer that it had read whole.
var madeHere = cache.ByTable("index made here")

// isWhole reports whether a voucher is of images whose tree this node made of the whole layer.
func isWhole(v cache.Voucher) bool { return v == cache.Whole || v == madeHere }

// publishedBy describes an index that is published in a layer's repository.
func publishedBy(index []byte, s *Source) string {
	return fmt.Sprintf("index %s of %s", digest.FromBytes(index), s.Repo)
}

// KeyOf tells openings apart: of two images that name the same layer, only those share one that read it by the same table
// from the same repository, since that may never answer. What is to be read whole joins nobody who reads it by a published index.
func (r *promises) KeyOf(s *Source) string {
	if asks := *s; s.Whole {
		if asks.Whole = false; r.mayBePublished(&asks) {
			return wholeKey(s)
		}
	}
	p, err := r.promiseOf(s)
	if err != nil {
		p = promise{format: formatImport} // it is not opened
	}
	return cache.Name{Blob: s.BlobName(), Voucher: cache.ByTable(p.vouchedBy(s) + " from " + s.Repo.String())}.String()
}

// wholeKeyOf is the key of an opening that reads a layer whole, whatever table its manifest names.
func (r *promises) wholeKeyOf(s *Source) string {
	if r.Whole(s) && !r.mayBePublished(s) {
		return r.KeyOf(s) // that is how it is read anyway
	}
	return wholeKey(s)
}

func wholeKey(s *Source) string {
	return cache.Name{Blob: s.BlobName(), Voucher: cache.ByTable("whole whatever its table from " + s.Repo.String())}.String()
}

// KeysOf returns the keys of an image's layers.
func (r *promises) KeysOf(img *Image) map[string]bool {
	keys := map[string]bool{}
	for i := range img.Layers {
		keys[r.KeyOf(&img.Layers[i])] = true
	}
	return keys
}

// Proven reports whether an image is known to be the layer that an image promises, its tree as well as its bytes: this node read the
// whole blob, which had the digest by which s names it, and made the tree of it. A table or a published index may name the layer's
// own bytes by other names; then the diffID is right, and proves nothing of the tree.
func Proven(f *cache.File, s *Source) bool {
	return f.Imported() || readWhole(f) && s.DiffID != "" && f.Verified(s.DiffID)
}

// readWhole reports whether this node made an image's tree of the whole layer, now or when it made the index.
func readWhole(f *cache.File) bool {
	return f.Imported() || isWhole(cache.ParseName(f.ID()).Voucher)
}

// cachedImage returns an image in the cache that may show a layer, or nil: one that is proven goes first, and the other
// is the one that s names, by its table; below is part of the image's name.
func (l *Layers) cachedImage(s *Source, below string, by cache.Voucher) *cache.File {
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
	if f, err := l.File(cache.Name{Blob: blob, Voucher: by, Below: below}.String(), s); err == nil {
		return f
	}
	return nil
}

// Agree reports whether what is shown of a layer is also what another claimant of its chainID would show. f is the image that is shown,
// or nil if there is none yet: then it is whatever may come. Who publishes an index decides for his own repository alone.
func (r *promises) Agree(f *cache.File, ours, theirs *Source) bool {
	if ours.BlobName() != theirs.BlobName() {
		return false
	}
	if f != nil && readWhole(f) {
		return true
	}
	mine, others := r.contentOf(ours), r.contentOf(theirs)
	switch {
	case f != nil && cache.ParseName(f.ID()).Voucher.Table() == cache.ByTable(others):
		return true
	case f == nil && !r.mayBePublished(ours):
		return mine == others
	}
	return mine == others && ours.Repo == theirs.Repo
}

// ContentOf describes what a claimant says that decides a layer's content: the blob and the table, whatever the repository.
func (r *promises) ContentOf(s *Source) string { return s.BlobName() + " " + r.contentOf(s) }

// contentOf describes what a layer is read by. What is not read here is read whole by containerd.
func (r *promises) contentOf(s *Source) string {
	p, err := r.promiseOf(s)
	if err != nil {
		p = promise{format: formatImport}
	}
	return p.vouchedBy(s)
}

// mayBePublished reports whether a layer may be read by an index that is published in its repository.
func (r *promises) mayBePublished(s *Source) bool {
	p, err := r.promiseOf(s)
	return err == nil && p.format == formatImport && !p.eager && r.opts.IndexOf(s.Repo).Trust
}
