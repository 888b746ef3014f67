package image

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
)

// A Name says what an image is and why it is believed. A manifest names a blob by the digest of its packed bytes, and that proves
// the content only to those that have read all of them. So the name has what vouches for the content besides: no image decides
// what another one shows.
type Name struct {
	Blob    string // hex of the blob's digest
	Voucher Voucher
	Below   string // a hash of what its directories took from the layers below, which has no "-"; "" where that is nothing
}

// A Voucher is what vouches for an image's content: Whole, or a table; "" for an image of an earlier version.
type Voucher string

// Whole vouches for an image whose blob was read from start to end and had the digest.
const Whole Voucher = "w"

// ByTable is what vouches for an image that is read by the table which by describes.
func ByTable(by string) Voucher {
	sum := sha256.Sum256([]byte(by))
	return Voucher("v" + hex.EncodeToString(sum[:16]))
}

// At is what vouches for an image that is read by a table as one registry serves it.
func (v Voucher) At(host string) Voucher {
	sum := sha256.Sum256([]byte(host))
	return v + atHost + Voucher(hex.EncodeToString(sum[:16]))
}

// Table returns what vouches for an image wherever it is read.
func (v Voucher) Table() Voucher {
	table, _, _ := strings.Cut(string(v), atHost)
	return Voucher(table)
}

const atHost = "."

// String returns the ID by which the cache knows the image.
func (n Name) String() string {
	s := n.Blob
	for _, part := range []string{string(n.Voucher), n.Below} {
		if part != "" {
			s += "-" + part
		}
	}
	return s
}

// ParseName returns the name that an ID is of.
func ParseName(id string) (n Name) {
	parts := strings.Split(id, "-")
	n.Blob = parts[0]
	for _, p := range parts[1:] {
		if p == string(Whole) || strings.HasPrefix(p, "v") {
			n.Voucher = Voucher(p)
		} else {
			n.Below = p
		}
	}
	return n
}
