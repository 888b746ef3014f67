package layers

import (
	"errors"

	"github.com/remora-storage/remora/fs/scan"
	"github.com/remora-storage/remora/remote/registry"
)

// MayUnpack reports whether a layer that was refused may be one that can be unpacked. A bomb is none, and wrong bytes are not the layer.
func MayUnpack(refused error) bool {
	return errors.Is(refused, ErrNotLazy) && !errors.Is(refused, scan.ErrBomb) && !errors.Is(refused, errWrongBlob)
}

// IsGone reports whether a place has answered that it has not the layer, for good.
func IsGone(err error) bool {
	return (errors.Is(err, registry.ErrNotFound) || errors.Is(err, errWrongBlob)) &&
		!errors.Is(err, registry.ErrUnauthorized) && !registry.Retryable(err)
}
