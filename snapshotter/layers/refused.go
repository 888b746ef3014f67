package layers

import (
	"errors"
	"slices"

	"github.com/remora-storage/remora/fs/layout"
	"github.com/remora-storage/remora/fs/scan"
	"github.com/remora-storage/remora/internal/memory"
	"github.com/remora-storage/remora/remote/registry"
)

// MayUnpack reports whether a layer that was refused may be one that can be unpacked. A bomb is none, and wrong bytes are not the layer.
func MayUnpack(refused error) bool {
	return errors.Is(refused, ErrNotLazy) && !errors.Is(refused, scan.ErrBomb) && !errors.Is(refused, errWrongBlob)
}

// IsBeyond reports whether a layer asks for more than [limits] allow: the same bytes will ask for it again.
func IsBeyond(err error) bool {
	return errors.Is(err, layout.ErrBeyond) || errors.Is(err, scan.ErrBomb) || errors.Is(err, memory.ErrBeyond)
}

// IsGone reports whether all places that an error is of have answered that they have not the layer, for good. A place that serves all of
// it, but no ranges, has it. One that serves other bytes may have it, too: a stale proxy before it ends some day.
func IsGone(err error) bool {
	if err == nil || registry.Retryable(err) {
		return false
	}
	if several, ok := err.(interface{ Unwrap() []error }); ok {
		return !slices.ContainsFunc(several.Unwrap(), func(one error) bool { return one != ErrNotLazy && !IsGone(one) })
	}
	if inner := errors.Unwrap(err); inner != nil {
		return IsGone(inner)
	}
	return errors.Is(err, registry.ErrNotFound)
}
