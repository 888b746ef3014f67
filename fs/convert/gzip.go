package convert

import (
	"archive/tar"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"strconv"
	"sync"

	lib "github.com/containerd/stargz-snapshotter/estargz"
	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/fs/annotation"
	"github.com/remora-storage/remora/fs/format/toc"
)

// gzipPacker makes eStargz.
type gzipPacker struct {
	lib.GzipDecompressor
	level int
	limit *limiter
	pool  sync.Pool

	tocOff int64
	toc    digest.Digest
	first  int64
}

func newGzip(level int, limit *limiter) *gzipPacker { return &gzipPacker{level: level, limit: limit} }

// pooled is a packer of one stream. Its work is done under a token.
type pooled struct {
	lib.WriteFlushCloser
	limit   *limiter
	release func()
}

// Write implements io.Writer.
func (p *pooled) Write(b []byte) (n int, err error) {
	err = p.limit.do(func() (err error) { n, err = p.WriteFlushCloser.Write(b); return err })
	if p.limit.progress != nil {
		p.limit.progress(n)
	}
	return n, err
}

// Close implements io.Closer.
func (p *pooled) Close() error {
	err := p.limit.do(p.WriteFlushCloser.Close)
	p.release()
	return err
}

// Writer implements the library's Compressor.
func (g *gzipPacker) Writer(w io.Writer) (lib.WriteFlushCloser, error) {
	z, ok := g.pool.Get().(*gzip.Writer)
	if !ok {
		var err error
		if z, err = gzip.NewWriterLevel(w, g.level); err != nil {
			return nil, err
		}
	}
	z.Reset(w)
	return &pooled{z, g.limit, func() { g.pool.Put(z) }}, nil
}

// Reader implements the library's Decompressor.
func (g *gzipPacker) Reader(r io.Reader) (io.ReadCloser, error) { return gzip.NewReader(r) }

// WriteTOCAndFooter implements the library's Compressor. The table is JSON without white space, which
// a node reads faster than the library's own.
func (g *gzipPacker) WriteTOCAndFooter(w io.Writer, off int64, table *lib.JTOC, _ hash.Hash) (digest.Digest, error) {
	plain, err := json.Marshal(table)
	if err != nil {
		return "", err
	}
	zw, err := gzip.NewWriterLevel(w, g.level)
	if err != nil {
		return "", err
	}
	zw.Extra = []byte("stargz.toc")
	tw := tar.NewWriter(zw)
	if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: toc.Name, Size: int64(len(plain))}); err != nil {
		return "", err
	}
	if _, err := tw.Write(plain); err != nil {
		return "", err
	}
	if err := tw.Close(); err != nil {
		return "", err
	}
	if err := zw.Close(); err != nil {
		return "", err
	}
	if _, err := w.Write(gzipFooter(off)); err != nil {
		return "", err
	}
	g.tocOff, g.toc, g.first = off, digest.FromBytes(plain), landmarkOf(table)
	return g.toc, nil
}

// gzipFooter is an empty gzip member of 51 bytes whose extra field says where the table is: see
// docs/estargz.md of stargz-snapshotter.
func gzipFooter(tocOff int64) []byte {
	where := fmt.Sprintf("%016xSTARGZ", tocOff)
	return lib.CreateGzipFooter(append([]byte{'S', 'G', byte(len(where)), 0}, where...))
}

func (g *gzipPacker) finish(int64) ([]byte, map[string]string, error) {
	return nil, map[string]string{annotation.TOCDigest: g.toc.String(), annotation.TOCOffset: strconv.FormatInt(g.tocOff, 10)}, nil
}

func (g *gzipPacker) mediaType() string { return ocispec.MediaTypeImageLayerGzip }

func (g *gzipPacker) landmark() int64 { return g.first }
