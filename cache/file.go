package cache

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"

	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/cache/fetch"
	"github.com/remora-storage/remora/cache/image"
	"github.com/remora-storage/remora/cache/proof"
)

// A File is one image with what fetches for it. It is a blockdev.Device: read-only, every byte of it readable, what is
// missing fetched on the way. It has no state of its own.
type File struct {
	c     *Cache
	img   *image.Image
	fetch *fetch.Fetcher
	proof *proof.Prover
	who   any // asks, of those that share it; nil for nobody in particular
}

var _ blockdev.Device = (*File)(nil)

func (c *Cache) newFile(img *image.Image, src Source) *File {
	f := c.fetches.Fetcher(img, src, c.policy)
	return &File{c: c, img: img, fetch: f, proof: proof.New(img, f, c.plain, c.log)}
}

// For returns the file as one of those that share it reads it: what is missing comes first from what who has, of a Shared source.
func For(f *File, who any) *File {
	mine := *f
	mine.who = who
	return &mine
}

// by returns a context of what is fetched for who reads a file; nil changes nothing.
func by(ctx context.Context, who any) context.Context {
	if who == nil {
		return ctx
	}
	return fetch.AskedBy(ctx, who)
}

// discard closes the file for good and returns how many bytes it had on disk.
func (f *File) discard() int64 {
	f.img.Discard()
	f.fetch.Close(errors.New("image was removed"))
	f.img.Close()
	return f.img.Disk()
}

// ID returns the file's name in the cache.
func (f *File) ID() string { return f.img.ID() }

// Path returns where the image lies. While the file is complete and pinned, the kernel may read
// it without us.
func (f *File) Path() string { return f.img.Path() }

// Image returns the open image file. It stays the cache's.
func (f *File) Image() *os.File { return f.img.File() }

// MetaSize returns the bytes at the image's start that are always present.
func (f *File) MetaSize() int64 { return f.img.Table().MetaSize }

// Sample draws a few units of the file's blob, as Cache.Sample does.
func (f *File) Sample(name string) (*Sample, error) {
	return f.c.Sample(name, fetch.ContentOf(f.img))
}

// Imported reports whether the image's data came whole, by an Import.
func (f *File) Imported() bool { return f.img.Table().Imported() }

// Size returns the image's size in bytes.
func (f *File) Size() int64 { return f.img.Table().ImageSize }

// BlockSize returns 1: any range can be read.
func (f *File) BlockSize() int { return 1 }

// Stats are a file's numbers.
type Stats struct {
	image.Stats
	fetch.Counts
}

// Stats returns the file's numbers.
func (f *File) Stats() Stats { return Stats{f.img.Stats(), f.fetch.Counts()} }

// Disk returns the bytes on disk now, in constant time.
func (f *File) Disk() int64 { return f.img.Disk() }

// Complete reports whether every extent is present.
func (f *File) Complete() bool { return f.img.Complete() }

// Removed reports whether the file was removed from the cache.
func (f *File) Removed() bool { return f.img.Removed() }

// Commit records everything that was filled so far and returns when that is on stable storage.
func (f *File) Commit() error { return f.img.Commit() }

// PinIfComplete keeps all extents where they are until Unpin, if all are here. The kernel may
// read a pinned file directly.
func (f *File) PinIfComplete() bool { return f.img.PinIfComplete() }

// Pin keeps all extents that are here, or come, until Unpin. The kernel may read a pinned file
// directly, if somebody fills it before.
func (f *File) Pin() { f.img.Pin() }

// Unpin undoes one Pin or PinIfComplete.
func (f *File) Unpin() { f.img.Unpin() }

// Keep has the file never evicted, in this life and later ones, or as others are.
func (f *File) Keep(keep bool) error { return f.img.Keep(keep) }

// Kept reports whether an operator wants the file never evicted, and whether it may be now.
func (f *File) Kept() (kept, evictable bool) { return f.img.Kept() }

// Fits reports whether all of the image would fit the budget beside what cannot be evicted.
func (f *File) Fits() bool { return image.Fits(f.img) }

// DropPages gives back the page cache of the image file itself. The kernel keeps what a mounted
// file system has read once more for that, so that these pages are second copies.
func (f *File) DropPages() { f.img.DropPages() }

// Extents calls yield with each extent that shares a byte with [off, off+n) of the image, in order,
// until it returns false.
func (f *File) Extents(off, n int64, yield func(Extent) bool) {
	t := f.img.Table()
	lo, hi := t.Overlapping(off, n)
	for i := lo; i < hi; i++ {
		if !yield(t.Extent(uint32(i))) {
			return
		}
	}
}

// Find returns an extent with some content, if the file has one.
func (f *File) Find(digest [sha256.Size]byte, n int64) (found Extent, ok bool) {
	t := f.img.Table()
	t.Find(&digest, func(i uint32) bool {
		found = t.Extent(i)
		ok = int64(found.Len) == n
		return !ok
	})
	return found, ok
}

// UnitLen returns the packed bytes of a unit.
func (f *File) UnitLen(u uint32) int64 { return f.img.Table().Unit(u).Len }

// UnitBytes returns how many bytes of the image a unit fills.
func (f *File) UnitBytes(u uint32) int64 { return f.img.Table().UnitBytes(u) }

// RecordUses notes which extents readers ask for until the recording is ended. Reads that the
// kernel serves from memory, or of a complete file that it reads itself, are not seen.
func (f *File) RecordUses() *Recording { return &Recording{f.img.RecordUses(), f} }

// A Recording notes which extents of a file readers ask for, in order.
type Recording struct {
	*image.Recording
	f *File
}

// File returns the file whose uses are recorded.
func (r *Recording) File() *File { return r.f }

// ReadAt fills p with the image's bytes from off. It fetches what is missing, sharing the fetch
// with others that wait for the same bytes, and returns soon after ctx ends. At the image's end it
// returns fewer bytes and no error.
func (f *File) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	return f.fetch.ReadAt(by(ctx, f.who), p, off)
}

// Peek reads what is here, without fetching and without counting as a reader. It fails with ErrMissing if anything of
// the range is missing.
func (f *File) Peek(p []byte, off int64) (int, error) { return f.img.Peek(p, off) }

// Fill returns when every byte of [off, off+n) is in the image file itself, for a reader that is
// the kernel. An n of 0 means up to the end. Where there is no room for it, it waits for room up to
// the policy's deadline, and fails with ENOSPC. The caller has pinned the file.
func (f *File) Fill(ctx context.Context, off, n int64) error {
	return f.fetch.Fill(by(ctx, f.who), off, n)
}

// Wants reports whether fetching a unit would bring anything that is neither here nor on its way.
func (f *File) Wants(u uint32) bool { return f.fetch.Wants(u) }

// SetSource replaces where missing extents come from.
func (f *File) SetSource(src Source) { f.fetch.SetSource(src) }

// SetPolicy says what becomes of reads while the source does not answer.
func (f *File) SetPolicy(p Policy) { f.fetch.SetPolicy(p) }

// AddFetched counts bytes that the caller took from the source for this file.
func (f *File) AddFetched(n int64) { f.fetch.AddFetched(n) }

// Prefetch makes units of the file present.
func (f *File) Prefetch(ctx context.Context, units []uint32) error {
	return f.fetch.Prefetch(by(ctx, f.who), units)
}

// PrefetchAll makes the file complete.
func (f *File) PrefetchAll(ctx context.Context) error { return f.fetch.PrefetchAll(by(ctx, f.who)) }

// CompleteInBackground makes the file complete behind everything else, at Options.Rate.
func (f *File) CompleteInBackground(ctx context.Context) error {
	return f.fetch.CompleteInBackground(by(ctx, f.who))
}

// Verified reports whether the plain blob is known to be what a diffID says, from this life or an
// earlier one.
func (f *File) Verified(diffID digest.Digest) bool { return f.img.Proof().Verified(diffID) }

// Known reports whether the digest of the plain blob is known, so that Verify answers immediately.
func (f *File) Known() bool { return f.img.Proof().Known() }

// Verify computes the digest of the whole plain blob and compares it with the diffID. Most of
// it comes from the image; what the cache has not kept is fetched. The result is remembered.
func (f *File) Verify(ctx context.Context, diffID digest.Digest) error {
	return f.proof.Verify(by(ctx, f.who), diffID)
}

// Stream reads the whole blob from the source once. It writes the packed bytes to packed, fills
// every missing extent on the way and checks the diffID. progress, if not nil, is told how many
// bytes were read so far.
func (f *File) Stream(ctx context.Context, diffID digest.Digest, packed io.Writer, progress func(int64)) error {
	return f.proof.Stream(by(ctx, f.who), diffID, packed, progress)
}
