package layers

import (
	"bufio"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"

	ctrarchive "github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/cache/blob"
	"github.com/remora-storage/remora/fs/scan"
	"github.com/remora-storage/remora/internal/memory"
)

// UnpackInto unpacks a whole layer into a directory that it makes. lowers are the directories of the layers below, the nearest first.
// What is there afterwards has the digests that were promised, and is on stable storage. It may have beyondImages times as much as
// [limits] allow an image; a layer that has more is refused with an error of IsBeyond, and known for a while.
func (i *Imports) UnpackInto(ctx context.Context, src *Source, dir string, lowers []string) error {
	if err := i.unpackable(src); err != nil {
		return err
	}
	err := i.unpackInto(ctx, src, dir, lowers)
	if IsBeyond(err) {
		i.noteBeyond(src, err)
	}
	return err
}

func (i *Imports) unpackInto(ctx context.Context, src *Source, dir string, lowers []string) error {
	release, err := i.pool.Acquire(ctx, userOf(src.Repo))
	if err != nil {
		return err
	}
	defer release()
	if err := os.RemoveAll(dir); err != nil { // what a killed process has left
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	whole := i.restOf(ctx, src, 0, 0, i.places.lacksRanges(ctx, src))
	defer whole.Close() // only read
	packedSum, plainSum := sha256.New(), sha256.New()
	packed := bufio.NewReaderSize(io.TeeReader(whole, packedSum), scan.HeadSize)
	plain, share, err := i.decode(ctx, src, packed)
	if err != nil {
		return err
	}
	defer share.Release()
	defer plain.Close() // only read
	most := i.opts.Limits.WithDefaults().Plain
	all := io.TeeReader(&bounded{r: plain, left: most, most: most}, plainSum)
	opts := []ctrarchive.ApplyOpt{
		ctrarchive.WithConvertWhiteout(ctrarchive.OverlayConvertWhiteout),
		ctrarchive.WithFilter(newUnpackTally(ctx, dir, i.opts.Limits, share).entry),
	}
	if len(lowers) > 0 {
		opts = append(opts, ctrarchive.WithParents(lowers))
	}
	if _, err := ctrarchive.Apply(ctx, dir, all, opts...); err != nil {
		return err
	}
	for _, rest := range []io.Reader{all, packed} {
		if _, err := io.Copy(io.Discard, rest); err != nil {
			return err
		}
	}
	if d := digest.NewDigest(digest.SHA256, packedSum); d != src.Descriptor.Digest {
		return fmt.Errorf("%w: its digest is %s", errWrongBlob, d)
	}
	if d := digest.NewDigest(digest.SHA256, plainSum); src.DiffID != "" && d != src.DiffID {
		return fmt.Errorf("its diffID is %s, and the image promises %s", d, src.DiffID)
	}
	return syncFS(dir)
}

// usualWindow is what frames of zstd without a word of their own may need.
const usualWindow = 8 << 20

// decode returns a reader of a layer's plain bytes, and the memory that decoding takes.
func (i *Imports) decode(ctx context.Context, src *Source, packed *bufio.Reader) (plain io.ReadCloser, share *memory.Share, err error) {
	codec, err := scan.Detect(src.Descriptor.MediaType, packed)
	if err != nil {
		return nil, nil, err
	}
	window := int64(0)
	if codec == blob.Zstd {
		head, err := packed.Peek(zstd.HeaderMaxSize)
		if err != nil && err != io.EOF {
			return nil, nil, err
		}
		if window, err = blob.FrameWindow(head); err != nil {
			return nil, nil, err
		}
		if window = max(window, usualWindow); window > zstd.MaxWindowSize {
			return nil, nil, fmt.Errorf("a zstd window of %d bytes: more than %d is not decoded", window, zstd.MaxWindowSize)
		}
	}
	share, err = i.opts.Memory.Acquire(ctx, userOf(src.Repo), importMemoryOf(codec)+window)
	if err != nil {
		return nil, nil, err
	}
	switch codec {
	case blob.Zstd:
		var d *zstd.Decoder
		if d, err = zstd.NewReader(packed, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(uint64(window))); err == nil {
			plain = d.IOReadCloser()
		}
	case blob.Gzip:
		plain, err = compression.DecompressStream(packed)
	default:
		plain = io.NopCloser(packed)
	}
	if err != nil {
		share.Release()
		return nil, nil, err
	}
	return plain, share, nil
}

// bounded is a reader of no more than some bytes.
type bounded struct {
	r          io.Reader
	left, most int64
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, fmt.Errorf("%w (%d bytes)", scan.ErrBomb, b.most)
	}
	return n, err
}

func syncFS(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close() // only read
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return &os.PathError{Op: "syncfs", Path: dir, Err: err}
	}
	return nil
}
