package cache

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/cache/blob"
)

// ErrDiffID says that a blob, decoded, is not what its image's configuration says.
var ErrDiffID = errors.New("layer's content does not match its diffID")

// Verified reports whether the plain blob is known to be what a diffID says, from this life or an
// earlier one.
func (f *File) Verified(diffID digest.Digest) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.plainSum != "" && f.plainSum == diffID
}

// Known reports whether the digest of the plain blob is known, so that Verify answers at once.
func (f *File) Known() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.plainSum != ""
}

// Verify computes the digest of the whole plain blob and compares it with the diffID. Most of
// it comes from the image; what the cache has not kept is fetched. The result is remembered.
func (f *File) Verify(ctx context.Context, diffID digest.Digest) error {
	// One at a time: a verification may find that what another relies on is wrong.
	if f.verifying.Acquire(ctx, 1) != nil {
		return context.Cause(ctx)
	}
	defer f.verifying.Release(1)
	f.mu.Lock()
	known := f.plainSum
	f.mu.Unlock()
	if known != "" {
		return f.compare(diffID, known)
	}
	for guesses := true; ; guesses = false {
		h := sha256.New()
		if err := f.writePlain(ctx, h, guesses); err != nil {
			return fmt.Errorf("verify image %s: %w", f.id, err)
		}
		err := f.conclude(diffID, digest.NewDigestFromBytes(digest.SHA256, h.Sum(nil)))
		if !guesses || !errors.Is(err, ErrDiffID) || !f.dropGuesses() {
			return err
		}
		f.c.log.Debug("layer is not like the one it resembles; fetching what was supposed", "digest", f.id)
	}
}

// loadPlainSum reads what was found earlier.
func (f *File) loadPlainSum() {
	p, err := os.ReadFile(filepath.Join(f.dir, plainFile))
	if err != nil {
		return // it is not known yet
	}
	if d, err := digest.Parse(strings.TrimSpace(string(p))); err == nil {
		f.plainSum = d
	}
}

func (f *File) conclude(want, got digest.Digest) error {
	if err := f.compare(want, got); err != nil {
		return err
	}
	if err := f.remember(got); err != nil {
		return fmt.Errorf("verify image %s: %w", f.id, err)
	}
	return nil
}

// remember notes the digest of the plain blob, for later lives, too.
func (f *File) remember(sum digest.Digest) error {
	if err := os.WriteFile(filepath.Join(f.dir, plainFile), []byte(sum.String()+"\n"), 0o600); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.plainSum = sum
	return nil
}

func (f *File) compare(want, got digest.Digest) error {
	if want == "" {
		return fmt.Errorf("verify image %s: its diffID is not known", f.id)
	}
	if want != got {
		return fmt.Errorf("verify image %s: got %s, want %s: %w", f.id, got, want, ErrDiffID)
	}
	return nil
}

// writePlain writes the plain blob to w. guesses says whether what was supposed of units that
// were filled locally may be taken for it.
func (f *File) writePlain(ctx context.Context, w io.Writer, guesses bool) error {
	index := f.residueIndex()
	if !guesses {
		maps.DeleteFunc(index, func(_ uint32, at residueAt) bool { return at.flag == residueGuess })
	}
	for u := uint32(0); int(u) < f.t.nUnits; {
		if at, ok := index[u]; ok {
			if err := f.writeKept(ctx, w, u, at); err != nil {
				return err
			}
			u++
			continue
		}
		end := u + 1 // fetch this unit and the unknown ones behind it by one request
		for int(end) < f.t.nUnits {
			if _, ok := index[end]; ok {
				break
			}
			end++
		}
		if err := f.streamUnits(ctx, u, end, nil, w, nil); err != nil {
			return err
		}
		u = end
	}
	return nil
}

// writeKept writes a unit's plain bytes from the image and the residue.
func (f *File) writeKept(ctx context.Context, w io.Writer, u uint32, at residueAt) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	rest, err := f.readResidue(at)
	if err != nil {
		return err
	}
	if at.flag == residuePacked {
		return blob.Decode(f.t.codec, bytes.NewReader(rest), func(r io.Reader) error {
			_, err := io.Copy(w, r)
			return err
		})
	}
	n, unitExtent := f.t.unitExtents(u)
	pos := uint32(0)
	for k := range n {
		e := f.t.extent(unitExtent(k))
		if k > 0 && e.Inner < pos && e.same(f.t.extent(unitExtent(k-1))) {
			continue // the same bytes in two files
		}
		if e.Inner < pos { // extents that share bytes: only a made-up table has them
			return fmt.Errorf("extents of unit %d overlap: %w", u, ErrDiffID)
		}
		gap := min(int(e.Inner-pos), len(rest))
		if _, err := w.Write(rest[:gap]); err != nil {
			return err
		}
		rest = rest[gap:]
		b := make([]byte, e.Len)
		if _, err := f.ReadAt(ctx, b, e.Off); err != nil {
			return err
		}
		if _, err := w.Write(b); err != nil {
			return err
		}
		pos = e.Inner + e.Len
	}
	_, err = w.Write(rest)
	return err
}

// Stream reads the whole blob from the source once. It writes the packed bytes to packed, fills
// every missing extent on the way and checks the diffID. progress, if not nil, is told how many
// bytes were read so far.
func (f *File) Stream(ctx context.Context, diffID digest.Digest, packed io.Writer, progress func(int64)) error {
	if f.Known() {
		return f.copyPacked(ctx, diffID, packed, progress)
	}
	h := sha256.New()
	if err := f.streamUnits(ctx, 0, uint32(f.t.nUnits), packed, h, progress); err != nil {
		return fmt.Errorf("read blob of image %s: %w", f.id, err)
	}
	return f.conclude(diffID, digest.NewDigestFromBytes(digest.SHA256, h.Sum(nil)))
}

// copyPacked reads the whole blob of an image whose content is known.
func (f *File) copyPacked(ctx context.Context, diffID digest.Digest, packed io.Writer, progress func(int64)) error {
	r := f.c.Read(ctx, f.source(), 0, f.t.blobSize, 0)
	defer r.Close()
	buf := make([]byte, 1<<20)
	for n := int64(0); ; {
		k, err := r.Read(buf)
		n += int64(k)
		if _, werr := packed.Write(buf[:k]); werr != nil {
			return werr
		}
		if progress != nil {
			progress(n)
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("read blob of image %s: %w", f.id, err)
		}
	}
	if err := f.PrefetchAll(ctx); err != nil {
		return err
	}
	return f.Verify(ctx, diffID)
}

// streamUnits reads units [from, to) by one request, stores their extents, and writes the packed
// and the plain bytes to where they are wanted.
func (f *File) streamUnits(ctx context.Context, from, to uint32, packed, plain io.Writer, progress func(int64)) error {
	f.mu.Lock()
	src := f.src
	f.mu.Unlock()
	if src == nil {
		return errors.New("no source for this image")
	}
	t := f.c.scheds.enter(src, prefetch)
	defer t.release()
	if err := t.wait(ctx); err != nil {
		return err
	}
	first, last := f.t.unit(from), f.t.unit(to-1)
	r, err := src.Open(ctx, first.Off, last.Off+last.Len-first.Off, 0)
	if err != nil {
		return err
	}
	defer r.Close()
	in := &countingReader{r: r}
	defer func() {
		f.fetched.Add(in.n)
		f.c.metrics.fetchBytes.Add(float64(in.n))
	}()
	for u := from; u < to; u++ {
		one := io.Reader(&io.LimitedReader{R: in, N: f.t.unit(u).Len})
		if packed != nil {
			one = io.TeeReader(one, packed)
		}
		if err := f.streamUnit(ctx, u, one, plain); err != nil {
			return err
		}
		if progress != nil {
			progress(f.t.unit(u).Off + f.t.unit(u).Len - first.Off)
		}
	}
	return nil
}

// streamUnit decodes and stores one of streamUnits.
func (f *File) streamUnit(ctx context.Context, u uint32, packed io.Reader, plain io.Writer) error {
	share, err := f.memoryFor(ctx, u)
	if err != nil {
		return err
	}
	defer share.Release()
	fill := &unitFill{unit: u}
	if err := f.decodeUnit(fill, packed, plain); err != nil {
		return fmt.Errorf("unit %d at %d: %w", u, f.t.unit(u).Off, err)
	}
	if _, err := io.Copy(io.Discard, packed); err != nil {
		return err
	}
	f.store(fill)
	return nil
}
