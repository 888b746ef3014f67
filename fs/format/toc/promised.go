package toc

import (
	"fmt"

	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/fs/annotation"
)

// Promised returns the digest of the plain table that a layer's annotations promise; "" if they promise none.
func Promised(annotations map[string]string) (digest.Digest, error) {
	text, ok := annotations[annotation.TOCDigest]
	if !ok {
		return "", nil
	}
	sum, err := digest.Parse(text)
	if err != nil || sum.Algorithm() != digest.SHA256 {
		return "", fmt.Errorf("digest of the table of contents %.80q", text)
	}
	return sum, nil
}
