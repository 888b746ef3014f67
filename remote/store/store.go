package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// A Store keeps objects under keys: names of one or more parts between slashes. It is what disks that many machines
// can reach are made of, and rests on one thing beside durability: a conditional put is atomic against all other
// writers, wherever they run. Probe says whether a server's is.
//
// All methods are safe for concurrent use. They fail if ctx has ended, and return soon after it ends. What a put has stored is
// on stable storage, and seen by every Get, Head and List that begins later. A put that fails, for its ctx or anything else,
// has stored the object whole, or not at all, or does so later.
//
// No key continues another one behind a slash: beside "a" there is no "a/b". Stores differ in what they make of such a pair.
// One that cannot keep both refuses the second put with ErrNested, and leaves the first object as it is. One that keeps
// both may list only one of them, as MinIO does.
type Store interface {
	// Get returns n bytes of an object from off, fewer where it ends before, and all that follows off if n is
	// negative. The object's Version is set only if the bytes are all of it. More than MostRead bytes are not read:
	// ErrTooLarge. ErrNoObject. Where the whole store is not there, it is ErrAway instead.
	Get(ctx context.Context, key string, off, n int64) ([]byte, Object, error)

	// Head returns what is known of an object. ErrNoObject.
	Head(ctx context.Context, key string) (Object, error)

	// Put stores an object of one byte or more, whatever was there.
	Put(ctx context.Context, key string, p []byte) (Object, error)

	// PutIfAbsent stores an object if there is none, and fails with ErrExists if there is.
	PutIfAbsent(ctx context.Context, key string, p []byte) (Object, error)

	// PutIfMatch replaces an object that still is of the given version, and fails with ErrChanged if it is of
	// another or gone.
	PutIfMatch(ctx context.Context, key string, p []byte, version string) (Object, error)

	// Delete removes an object. One that is not there is no error.
	Delete(ctx context.Context, key string) error

	// List yields the objects whose keys begin with prefix, in the order of their keys' bytes, until yield
	// returns false. Versions may be empty.
	List(ctx context.Context, prefix string, yield func(Object) bool) error

	// String names the store for people, without credentials.
	String() string
}

// An Object is what a Store knows of an object beside its bytes. Two contents of a key that differ have different
// Versions; the same content may have the same one.
type Object struct {
	Key     string
	Size    int64 // bytes
	Version string
}

// Errors of Stores. An error of a put that is neither ErrExists nor ErrChanged leaves open whether the object was
// stored, and if not, whether it will be: the request may still be on its way.
var (
	ErrNoObject = errors.New("no such object")
	// ErrAway says that the store itself is not there: a directory that is not mounted, a bucket that does not exist, a proxy with
	// no server behind it. Nothing is known of the object then. The store may come back.
	ErrAway    = errors.New("the store is not there")
	ErrExists  = errors.New("the object exists")
	ErrChanged = errors.New("the object has changed")
	// ErrTooLarge says that a Get was to return more than MostRead bytes.
	ErrTooLarge = errors.New("more bytes than are read into memory together")
	// ErrNested says that a key continues another object's, or another's continues it, and the store cannot keep both.
	ErrNested = errors.New("the store cannot keep an object beside others whose keys continue its own")
	// ErrFull says that a store has no room, or that a quota is used up. Room may come.
	ErrFull = errors.New("the store is full")
	// ErrDenied says that a store refuses the credentials, or that they do not permit this. Others may come.
	ErrDenied = errors.New("the store refuses access")
	// ErrUnsafe says that a store breaks what Store promises.
	ErrUnsafe = errors.New("the store's conditional writes are not safe")
)

// MarkKey is the key of the object that says which store a Store is. One that was never prepared has none.
const MarkKey = "remora"

// MostRead is how many bytes one Get returns at most: twice what the largest object of a volume has. Objects may come from
// anybody who can write to the store, and all that a Get returns is in memory.
const MostRead = 64 << 20

// CheckRead refuses a Get of more than MostRead bytes of an object, given the object's size.
func CheckRead(key string, size, off, n int64) error {
	if n < 0 || n > size-off {
		n = size - off
	}
	if n > MostRead {
		return fmt.Errorf("get %s: %d bytes at %d (limit %d): %w", key, n, off, int64(MostRead), ErrTooLarge)
	}
	return nil
}

// CheckKey refuses keys that a Store need not take.
func CheckKey(key string) error {
	if key == "" || len(key) > 512 {
		return fmt.Errorf("key of %d bytes: want 1 to 512", len(key))
	}
	for part := range strings.SplitSeq(key, "/") {
		if part == "" || part[0] == '.' || len(part) > 200 {
			return fmt.Errorf("key %q: parts are neither empty, nor begin with a dot, nor have more than 200 bytes", key)
		}
	}
	for _, c := range []byte(key) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', strings.IndexByte("/-_.", c) >= 0:
		default:
			return fmt.Errorf("key %q: want letters, digits and - _ . / only", key)
		}
	}
	return nil
}
