package convert

import (
	"bytes"
	"encoding/json"
	"errors"
	"hash"
	"io"
	"slices"
	"sync"

	lib "github.com/containerd/stargz-snapshotter/estargz"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/vbatts/tar-split/tar/asm"
	"github.com/vbatts/tar-split/tar/storage"

	"github.com/remora-storage/remora/fs/annotation"
	"github.com/remora-storage/remora/fs/format/zstdchunked"
)

// zstdPacker makes zstd:chunked of either generation.
type zstdPacker struct {
	second bool
	level  zstd.EncoderLevel
	window int
	limit  *limiter
	pool   sync.Pool

	table *lib.JTOC
	split bytes.Buffer // the packed record of the tar's headers
	plain int64        // its plain bytes
	ended error        // of the record; io.EOF if it is whole
}

const (
	minWindow = 1 << 20 // bytes: a file that is smaller than a chunk needs no more
	maxWindow = 8 << 20 // what every reader must take
)

func newZstd(level, chunk int, second bool, limit *limiter) *zstdPacker {
	window := minWindow
	for window < chunk && window < maxWindow {
		window *= 2
	}
	return &zstdPacker{second: second, level: zstd.EncoderLevelFromZstd(level), window: window, limit: limit}
}

func (z *zstdPacker) encoder(w io.Writer) (*zstd.Encoder, error) {
	return zstd.NewWriter(w, zstd.WithEncoderLevel(z.level), zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true),
		zstd.WithWindowSize(z.window))
}

// Writer implements the library's Compressor.
func (z *zstdPacker) Writer(w io.Writer) (lib.WriteFlushCloser, error) {
	e, ok := z.pool.Get().(*zstd.Encoder)
	if !ok {
		var err error
		if e, err = z.encoder(nil); err != nil {
			return nil, err
		}
	}
	e.Reset(w)
	return &pooled{e, z.limit, func() { z.pool.Put(e) }}, nil
}

// WriteTOCAndFooter implements the library's Compressor. All of that is written by finish, since the
// table has the digest of the record of headers, which is not known yet.
func (z *zstdPacker) WriteTOCAndFooter(_ io.Writer, _ int64, table *lib.JTOC, _ hash.Hash) (digest.Digest, error) {
	z.table = table
	return "", nil
}

// Reader implements the library's Decompressor: the library reads the whole tar once more, and the
// record of its headers is made on the way.
func (z *zstdPacker) Reader(r io.Reader) (io.ReadCloser, error) {
	dec, err := zstd.NewReader(r, zstd.WithDecoderMaxWindow(maxWindow))
	if err != nil {
		return nil, err
	}
	if !z.second {
		return dec.IOReadCloser(), nil
	}
	packed, err := z.encoder(&z.split)
	if err != nil {
		return nil, err
	}
	count := &counter{w: packed}
	in, done, err := asm.NewInputTarStreamWithDone(dec, storage.NewJSONPacker(count), nil)
	if err != nil {
		return nil, err
	}
	return &recorder{in, func(err error) {
		if z.ended != nil {
			return
		}
		if derr := errors.Join(<-done, packed.Close()); derr != nil && err == io.EOF {
			err = derr
		}
		z.ended, z.plain = err, count.n
		dec.Close()
	}}, nil
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// recorder tells how reading has ended.
type recorder struct {
	io.ReadCloser
	end func(error)
}

func (r *recorder) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if err != nil {
		r.end(err)
	}
	return n, err
}

// FooterSize, ParseFooter and ParseTOC are for the library's reader, which is not used.
func (z *zstdPacker) FooterSize() int64 { return 0 }

// ParseFooter is not used.
func (z *zstdPacker) ParseFooter([]byte) (int64, int64, int64, error) { return 0, 0, 0, errNotRead }

// ParseTOC is not used.
func (z *zstdPacker) ParseTOC(io.Reader) (*lib.JTOC, digest.Digest, error) {
	return nil, "", errNotRead
}

var errNotRead = errors.New("the converter does not read what it writes")

// tableDoc is the table of contents as both generations read it.
type tableDoc struct {
	Version        int           `json:"version"`
	Entries        []tableEntry  `json:"entries"`
	TarSplitDigest digest.Digest `json:"tarSplitDigest,omitempty"`
}

type tableEntry struct {
	*lib.TOCEntry
	EndOffset int64 `json:"endOffset,omitempty"`
}

func (z *zstdPacker) finish(n int64) (tail []byte, annotations map[string]string, err error) {
	if z.second && z.ended != io.EOF {
		return nil, nil, errors.Join(errors.New("record of the tar's headers is not whole"), z.ended)
	}
	doc := tableDoc{Version: 1, Entries: withEnds(z.table.Entries, n)}
	if z.second {
		doc.TarSplitDigest = digest.FromBytes(z.split.Bytes())
	}
	plain, err := json.Marshal(doc)
	if err != nil {
		return nil, nil, err
	}
	enc, err := z.encoder(nil)
	if err != nil {
		return nil, nil, err
	}
	defer enc.Close()
	table := zstdchunked.NewTail(n)
	table.Add(enc.EncodeAll(plain, nil), int64(len(plain)))
	if z.second {
		table.AddTarSplit(z.split.Bytes(), z.plain)
	}
	tail, annotations = table.Finish()
	annotations[annotation.Landmarks] = "true"
	if !z.second {
		annotations[annotation.TOCDigest] = digest.FromBytes(plain).String()
	}
	return tail, annotations, nil
}

// withEnds adds where the packed bytes of each chunk end: where the next ones begin.
func withEnds(entries []*lib.TOCEntry, end int64) []tableEntry {
	hasData := func(e *lib.TOCEntry) bool { return e.Type == "reg" && e.Size > 0 || e.Type == "chunk" }
	var starts []int64
	for _, e := range entries {
		if hasData(e) {
			starts = append(starts, e.Offset)
		}
	}
	starts = append(starts, end)
	slices.Sort(starts)
	out := make([]tableEntry, len(entries))
	for i, e := range entries {
		out[i].TOCEntry = e
		if hasData(e) {
			k, _ := slices.BinarySearch(starts, e.Offset+1)
			out[i].EndOffset = starts[k]
		}
	}
	return out
}

func (z *zstdPacker) mediaType() string { return zstdchunked.MediaType }

func (z *zstdPacker) landmark() int64 { return landmarkOf(z.table) }
