package proof

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/semaphore"

	"github.com/remora-storage/remora/cache/blob"
	"github.com/remora-storage/remora/cache/fetch"
	"github.com/remora-storage/remora/cache/image"
)

// ErrDiffID says that a blob, decoded, is not what its image's configuration says.
var ErrDiffID = errors.New("layer's content does not match its diffID")

// ErrTooLarge says that a blob decodes to more than is read to check its diffID.
var ErrTooLarge = errors.New("layer decodes to more than [limits] plain allows, so its diffID is not known")

// A Prover proves what one image is.
type Prover struct {
	img   *image.Image
	t     *image.Table // of img
	fetch *fetch.Fetcher
	log   *slog.Logger
	most  int64 // bytes that a blob may decode to; 0 for no bound

	verifying *semaphore.Weighted // one at a time: a verification may find that what another relies on is wrong
}

// New returns a Prover of an image, which f fills. It decodes at most so many bytes for one digest; 0 for no bound.
func New(img *image.Image, f *fetch.Fetcher, most int64, log *slog.Logger) *Prover {
	return &Prover{img: img, t: img.Table(), fetch: f, most: most, log: log, verifying: semaphore.NewWeighted(1)}
}

// Verify computes the digest of the whole plain blob and compares it with the diffID. Most of
// it comes from the image; what the cache has not kept is fetched. The result is remembered.
func (p *Prover) Verify(ctx context.Context, diffID digest.Digest) error {
	if p.verifying.Acquire(ctx, 1) != nil {
		return context.Cause(ctx)
	}
	defer p.verifying.Release(1)
	if known := p.img.Proof().Sum(); known != "" {
		return p.compare(diffID, known)
	}
	for guesses := true; ; guesses = false {
		h := sha256.New()
		if err := p.writePlain(ctx, p.bounded(h), guesses); err != nil {
			return fmt.Errorf("verify image %s: %w", p.img.ID(), err)
		}
		err := p.conclude(diffID, digest.NewDigestFromBytes(digest.SHA256, h.Sum(nil)))
		if !guesses || !errors.Is(err, ErrDiffID) || !p.img.Residue().DropGuesses() {
			return err
		}
		p.log.Debug("layer is not like the one it resembles; fetching what was supposed", "digest", p.img.ID())
	}
}

func (p *Prover) conclude(want, got digest.Digest) error {
	if err := p.compare(want, got); err != nil {
		return err
	}
	if err := p.img.Proof().Remember(got); err != nil {
		return fmt.Errorf("verify image %s: %w", p.img.ID(), err)
	}
	return nil
}

func (p *Prover) compare(want, got digest.Digest) error {
	if want == "" {
		return fmt.Errorf("verify image %s: its diffID is not known", p.img.ID())
	}
	if want != got {
		return fmt.Errorf("verify image %s: got %s, want %s: %w", p.img.ID(), got, want, ErrDiffID)
	}
	return nil
}

// writePlain writes the plain blob to w. guesses says whether what was supposed of units that
// were filled locally may be taken for it.
func (p *Prover) writePlain(ctx context.Context, w io.Writer, guesses bool) error {
	kept := func(u uint32) (image.Record, bool) {
		at, ok := p.img.Residue().At(u)
		return at, ok && (guesses || !at.Guess())
	}
	stretches := p.fetch.Stretches()
	defer stretches.Close() // only read
	for u := uint32(0); int(u) < p.t.NUnits; {
		if at, ok := kept(u); ok {
			if err := p.writeKept(ctx, w, u, at, stretches); err != nil {
				return err
			}
			u++
			continue
		}
		end := u + 1 // fetch this unit and the unknown ones behind it by one request
		for int(end) < p.t.NUnits {
			if _, ok := kept(end); ok {
				break
			}
			end++
		}
		if err := stretches.Stream(ctx, u, end, nil, w, nil); err != nil {
			return err
		}
		u = end
	}
	return nil
}

// bounded returns a writer that passes on no more than a blob may decode to. A table says nothing of what lies behind a unit's last
// extent, and a kilobyte of blob may hold a megabyte of it.
func (p *Prover) bounded(w io.Writer) io.Writer {
	if p.most == 0 {
		return w
	}
	return &boundedWriter{w, p.most}
}

type boundedWriter struct {
	w    io.Writer
	left int64
}

func (b *boundedWriter) Write(p []byte) (int, error) {
	if b.left -= int64(len(p)); b.left < 0 {
		return 0, ErrTooLarge
	}
	return b.w.Write(p)
}

// pieceSize is how many bytes of an extent are hashed at a time.
const pieceSize = 256 << 10

// writeKept writes a unit's plain bytes from the image and the residue. A unit of which something was evicted is fetched.
func (p *Prover) writeKept(ctx context.Context, w io.Writer, u uint32, at image.Record, fetched *fetch.Stretches) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	p.img.Pin()
	defer p.img.Unpin()
	if !at.Packed() && !p.img.HasUnit(u) {
		return fetched.Stream(ctx, u, u+1, nil, w, nil)
	}
	takes := p.img.Residue().Takes(at) + pieceSize
	if at.Packed() {
		takes += p.t.Codec.MaxWindow()
	}
	share, err := p.fetch.Memory(ctx, takes)
	if err != nil {
		return fmt.Errorf("read unit %d: %w", u, err)
	}
	defer share.Release()
	leave, err := p.fetch.Decoding(ctx)
	if err != nil {
		return fmt.Errorf("read unit %d: %w", u, err)
	}
	defer leave()
	rest, err := p.img.Residue().Read(at)
	if err != nil {
		return err
	}
	if at.Packed() {
		return blob.Decode(p.t.Codec, bytes.NewReader(rest), 0, func(r io.Reader) error {
			_, err := io.Copy(w, r)
			return err
		})
	}
	n, unitExtent := p.t.UnitExtents(u)
	buf := make([]byte, pieceSize)
	pos := uint32(0)
	for k := range n {
		e := p.t.Extent(unitExtent(k))
		if k > 0 && e.Inner < pos && e.Same(p.t.Extent(unitExtent(k-1))) {
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
		if err := p.writeExtent(w, &e, buf); err != nil {
			return err
		}
		pos = e.Inner + e.Len
	}
	_, err = w.Write(rest)
	return err
}

// writeExtent writes the bytes of an extent that is here, by means of a buffer.
func (p *Prover) writeExtent(w io.Writer, e *image.Extent, buf []byte) error {
	for at := int64(0); at < int64(e.Len); at += pieceSize {
		b := buf[:min(pieceSize, int64(e.Len)-at)]
		if _, err := p.img.Peek(b, e.Off+at); err != nil {
			return err
		}
		if _, err := w.Write(b); err != nil {
			return err
		}
	}
	return nil
}

// Stream reads the whole blob from the source once. It writes the packed bytes to packed, fills
// every missing extent on the way and checks the diffID. progress, if not nil, is told how many
// bytes were read so far.
func (p *Prover) Stream(ctx context.Context, diffID digest.Digest, packed io.Writer, progress func(int64)) error {
	if p.img.Proof().Known() {
		return p.copyPacked(ctx, diffID, packed, progress)
	}
	h := sha256.New()
	all := p.fetch.Stretches()
	defer all.Close() // only read
	if err := all.Stream(ctx, 0, uint32(p.t.NUnits), packed, p.bounded(h), progress); err != nil {
		return fmt.Errorf("read blob of image %s: %w", p.img.ID(), err)
	}
	return p.conclude(diffID, digest.NewDigestFromBytes(digest.SHA256, h.Sum(nil)))
}

// copyPacked reads the whole blob of an image whose content is known.
func (p *Prover) copyPacked(ctx context.Context, diffID digest.Digest, packed io.Writer, progress func(int64)) error {
	r := p.fetch.ReadBlob(ctx)
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
			return fmt.Errorf("read blob of image %s: %w", p.img.ID(), err)
		}
	}
	if err := p.fetch.PrefetchAll(ctx); err != nil {
		return err
	}
	return p.Verify(ctx, diffID)
}
