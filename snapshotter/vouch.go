package snapshotter

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/cache"
)

// A layer's image in the cache is named by what vouches for its content, so that no image decides what another one
// shows. A manifest names a layer by the digest of its packed bytes, and that proves the content only to who has read
// all of them. An image that is read by parts is believed by a table, which another manifest may have named beside the
// same digest; and it reads from one repository, whose owner may let others wait.
//
// So what was read whole has one image for all, and what is read by a table has one for each table; where nobody but a
// repository says which table is right, that is one for each repository. Once the diffID of such an image is proven it
// serves all images whose configuration promises that diffID.
type imageName struct {
	blob    string // hex of the layer's digest
	voucher string // wholeVoucher, or of a table; "" for an image of an earlier version
	below   string // a hash of what its directories took from the layers below; "" where that is nothing
}

// wholeVoucher is that of an image whose blob was read from start to end and had the digest.
const wholeVoucher = "w"

// tableVoucher is what vouches for an image that is read by a table, which by describes.
func tableVoucher(by string) string {
	sum := sha256.Sum256([]byte(by))
	return "v" + hex.EncodeToString(sum[:8])
}

// blobName is imageName.blob of a layer; "" where the record of a snapshot is damaged.
func blobName(s *Source) string {
	_, hex, _ := strings.Cut(string(s.Descriptor.Digest), ":")
	return hex
}

func (n imageName) String() string {
	s := n.blob
	for _, part := range []string{n.voucher, n.below} {
		if part != "" {
			s += "-" + part
		}
	}
	return s
}

func parseImageName(id string) (n imageName) {
	parts := strings.Split(id, "-")
	n.blob = parts[0]
	for _, p := range parts[1:] {
		if p == wholeVoucher || strings.HasPrefix(p, "v") {
			n.voucher = p
		} else {
			n.below = p
		}
	}
	return n
}

// vouchedBy describes what a layer is read by: two that are read by equal tables have equal descriptions.
func (p promise) vouchedBy(s *Source) string {
	switch {
	case p.format == formatImport:
		return "whole"
	case p.unverified:
		return fmt.Sprintf("%s of %s", p.format, s.Repo)
	}
	return fmt.Sprintf("%s %s %+v", p.format, p.toc, p.table)
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

// keyOf tells openings apart: of two images that name the same layer, only those share one that read it by the same table
// from the same repository, since that may never answer.
func (l *layers) keyOf(s *Source) string {
	p, err := l.promiseOf(s)
	if err != nil {
		p = promise{format: formatImport} // it is not opened
	}
	return imageName{blob: blobName(s), voucher: tableVoucher(p.vouchedBy(s) + " from " + s.Repo.String())}.String()
}

// proven reports whether an image is known to be the layer that an image promises: the whole blob was read and had the
// digest by which s names it, or its plain bytes have the promised diffID.
func proven(f *cache.File, s *Source) bool {
	return f.Imported() || s.DiffID != "" && f.Verified(s.DiffID)
}

// cachedImage returns an image in the cache that may show a layer, or nil: one that is proven goes first, and the other
// is the one that s names. by describes its table; below is part of the image's name.
func (l *layers) cachedImage(s *Source, below, by string) *cache.File {
	blob := blobName(s)
	for _, voucher := range []string{wholeVoucher, ""} { // the second is of earlier versions
		// It may not be open yet.
		if f, err := l.file(imageName{blob, voucher, below}.String(), s); err == nil && proven(f, s) {
			return f
		}
	}
	for _, f := range l.cache.Opened(blob) {
		if parseImageName(f.ID()).below == below && proven(f, s) {
			return f
		}
	}
	if f, err := l.file(imageName{blob, tableVoucher(by), below}.String(), s); err == nil {
		return f
	}
	return nil
}
