package index

import (
	"fmt"

	"github.com/remora-storage/remora/fs/layout"
	"github.com/remora-storage/remora/remote/registry"
)

// Artifact is how the indexes of an image's layers are published.
var Artifact = registry.ArtifactKind{
	Type:      "application/vnd.remora.index.v1",
	MediaType: "application/vnd.remora.index.v1",
	Tag:       "remora-index",
	Limit:     256 << 20,
}

// The indexes of several layers, one behind the other, all numbers little-endian:
//
//	offset  size  field
//	0       8     "REMORAIM"
//	8       4     version, 1
//	12      4     layers
//	16      4 a layer: bytes of its index
//	...           the indexes
const (
	documentMagic   = "REMORAIM"
	documentVersion = 1
	documentHeader  = 16
	maxLayers       = 1024
)

// Join puts the indexes of several layers together.
func Join(layers [][]byte) []byte {
	p := make([]byte, documentHeader, documentHeader+4*len(layers))
	copy(p, documentMagic)
	le.PutUint32(p[8:], documentVersion)
	le.PutUint32(p[12:], uint32(len(layers)))
	for _, l := range layers {
		p = le.AppendUint32(p, uint32(len(l)))
	}
	for _, l := range layers {
		p = append(p, l...)
	}
	return p
}

// Split takes apart what Join made, without copying. Errors wrap layout.ErrInvalid.
func Split(p []byte) (layers [][]byte, err error) {
	if len(p) < documentHeader || string(p[:8]) != documentMagic || le.Uint32(p[8:]) != documentVersion {
		return nil, fmt.Errorf("%w: indexes without their mark", layout.ErrInvalid)
	}
	n := int(le.Uint32(p[12:]))
	if n > maxLayers || len(p) < documentHeader+4*n {
		return nil, fmt.Errorf("%w: indexes of %d layers", layout.ErrInvalid, n)
	}
	lengths, rest := p[documentHeader:], p[documentHeader+4*n:]
	for i := range n {
		k := le.Uint32(lengths[4*i:])
		if uint64(k) > uint64(len(rest)) {
			return nil, fmt.Errorf("%w: index of %d bytes in %d", layout.ErrInvalid, k, len(rest))
		}
		layers = append(layers, rest[:k:k])
		rest = rest[k:]
	}
	if len(rest) > 0 {
		return nil, fmt.Errorf("%w: %d bytes behind the indexes", layout.ErrInvalid, len(rest))
	}
	return layers, nil
}
