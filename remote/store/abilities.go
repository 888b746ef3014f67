package store

import "context"

// What only some Stores can do is an interface below. As finds it in a Store, and in what the Store wraps.

// A Warner is a Store that knows whether it was set up in a way that will cost its owner money or objects.
type Warner interface {
	// Warnings returns what is unwise about the store's settings, and what to do about it.
	Warnings(ctx context.Context) ([]string, error)
}

// A Local is a Store that knows how far away it is.
type Local interface {
	// Near reports whether objects are on this machine, so that keeping copies of them here gains nothing.
	Near() bool
}

// A Bulk is a Store that keeps some objects more cheaply than others. It is made for objects that are large, are written once
// under a key of their own, and whose reappearance does no harm. For these it promises less than Store does:
//
//   - a put that succeeds may return no Version; Head and Get return it as ever
//   - after a power cut of the store's machine, an object that was deleted may be there again
//   - where room is short, puts of them fail with ErrFull before those of others do
type Bulk interface {
	Store
	// IsBulk reports whether the object under a key is one of these.
	IsBulk(key string) bool
}

// A Maker is a Store that must be made before it can keep an object, as a directory must. A bucket is made elsewhere.
type Maker interface {
	// Make makes the store unless it is there. Nothing else does.
	Make() error
}

// Around is what a Store embeds that wraps another: all that the wrapper does not do itself, the inner Store does.
type Around struct{ Store }

// Unwrap returns the Store inside, for As.
func (a Around) Unwrap() Store { return a.Store }

// As returns the outermost Store that has the ability A: s itself or one that it wraps.
func As[A any](s Store) (a A, ok bool) {
	for {
		if a, ok = s.(A); ok {
			return a, true
		}
		w, wraps := s.(interface{ Unwrap() Store })
		if !wraps {
			return a, false
		}
		s = w.Unwrap()
	}
}

// IsNear reports whether a Store says that its objects are on this machine.
func IsNear(s Store) bool {
	l, ok := As[Local](s)
	return ok && l.Near()
}
