package convert

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"

	lib "github.com/containerd/stargz-snapshotter/estargz"
	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/fs/annotation"
	"github.com/remora-storage/remora/fs/format/zstdchunked"
)

// A Format is what layers are turned into.
type Format string

// The formats.
const (
	Estargz     Format = "estargz"
	ZstdChunked Format = "zstdchunked"
)

// Formats lists all formats.
var Formats = []Format{Estargz, ZstdChunked}

// A Generation of zstd:chunked says which other programs can check a layer's table of contents. No
// layer can be for both: Podman refuses one that carries what stargz-snapshotter checks by.
type Generation string

// The generations.
const (
	ForPodman Generation = "podman" // the second; also Buildah and Skopeo
	ForStargz Generation = "stargz" // the first; stargz-snapshotter
)

// Levels returns the lowest and highest level of compression, and the one that is taken if none is
// wanted.
func (f Format) Levels() (least, most, usual int) {
	if f == ZstdChunked {
		return 1, 22, 3
	}
	return 1, 9, 6
}

// DefaultChunkSize is the unit in which large files are read: a page fault costs a chunk.
const DefaultChunkSize = 1 << 20

// Options of Layer. The zero value makes eStargz.
type Options struct {
	Format    Format
	Level     int        // 0 for the format's usual one
	ChunkSize int        // bytes; 0 for DefaultChunkSize
	For       Generation // of zstd:chunked; "" for ForPodman
	First     []string   // paths of files that come first, in order, and are prefetched
	Jobs      Jobs       // shared by all layers that are converted at once
	// Progress is told how many bytes of the tar were packed since it was told last; nil for nobody. It
	// is called by several goroutines at once.
	Progress func(n int)
	Dir      string // for files on the way; "" for the system's
}

// Jobs bounds how many processors are used: it holds a token for each. nil is no bound.
type Jobs chan struct{}

// NewJobs returns Jobs for n processors.
func NewJobs(n int) Jobs { return make(Jobs, n) }

// limiter bounds the work on one layer: it takes processors by turns, and ends with a context.
type limiter struct {
	ctx      context.Context // of Layer: all of this is one operation
	jobs     Jobs
	progress func(int)
}

func (l *limiter) do(work func() error) error {
	if l.jobs != nil {
		select {
		case l.jobs <- struct{}{}:
			defer func() { <-l.jobs }()
		case <-l.ctx.Done():
		}
	}
	if l.ctx.Err() != nil {
		return context.Cause(l.ctx)
	}
	return work()
}

// limitedReader ends when its limiter does.
type limitedReader struct {
	io.Reader
	limit *limiter
}

func (r *limitedReader) Read(p []byte) (n int, err error) {
	if r.limit.ctx.Err() != nil {
		return 0, context.Cause(r.limit.ctx)
	}
	return r.Reader.Read(p)
}

// parts is into how many pieces a layer is cut that are packed at the same time. It is fixed, since
// it decides the bytes.
const parts = 8

// A Result is a converted layer, in a file.
type Result struct {
	Descriptor ocispec.Descriptor
	DiffID     digest.Digest
	Plain      int64    // bytes of the tar
	Missed     []string // of First, what is not in the layer
	File       *os.File // removed from its directory already; to be closed
}

// Layer converts a layer.
func Layer(ctx context.Context, src io.ReaderAt, size int64, o Options) (_ *Result, err error) {
	if o.Format == "" {
		o.Format = Estargz
	}
	least, most, usual := o.Format.Levels()
	if o.Level == 0 {
		o.Level = usual
	}
	if o.Level < least || o.Level > most {
		return nil, fmt.Errorf("level %d: %s has %d to %d", o.Level, o.Format, least, most)
	}
	if o.ChunkSize == 0 {
		o.ChunkSize = DefaultChunkSize
	}
	// The library's own context would leave files behind: it ends through what it calls.
	limit := &limiter{ctx, o.Jobs, o.Progress}
	var pack packer
	switch o.Format {
	case Estargz:
		pack = newGzip(o.Level, limit)
	case ZstdChunked:
		pack = newZstd(o.Level, o.ChunkSize, o.For != ForStargz, limit)
	default:
		return nil, fmt.Errorf("format %q: want one of %v", o.Format, Formats)
	}
	r := new(Result)
	opts := []lib.Option{
		lib.WithChunkSize(o.ChunkSize), lib.WithParallelism(parts), lib.WithCompression(pack),
		lib.WithAllowPrioritizeNotFound(&r.Missed),
		lib.WithGzipHelperFunc(func(r io.Reader) (io.ReadCloser, error) { return gzip.NewReader(r) }),
	}
	if len(o.First) > 0 {
		opts = append(opts, lib.WithPrioritizedFiles(o.First))
	}
	blob, err := lib.Build(io.NewSectionReader(src, 0, size), opts...)
	if err != nil {
		return nil, err
	}
	defer blob.Close()
	if r.File, err = os.CreateTemp(o.Dir, "layer-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			r.File.Close()
		}
	}()
	if err := os.Remove(r.File.Name()); err != nil {
		return nil, err
	}
	sum := digest.Canonical.Digester()
	out := io.MultiWriter(r.File, sum.Hash())
	n, err := io.Copy(out, &limitedReader{blob, limit})
	if err != nil {
		return nil, err
	}
	if r.Plain, err = blob.UncompressedSize(); err != nil {
		return nil, err
	}
	tail, annotations, err := pack.finish(n)
	if err != nil {
		return nil, err
	}
	if _, err := io.Copy(out, bytes.NewReader(tail)); err != nil {
		return nil, err
	}
	if landmark := pack.landmark(); landmark > 0 {
		annotations[annotation.StartSize] = strconv.FormatInt(landmark, 10)
	}
	annotations[lib.StoreUncompressedSizeAnnotation] = strconv.FormatInt(r.Plain, 10)
	r.DiffID = blob.DiffID()
	r.Descriptor = ocispec.Descriptor{
		MediaType: pack.mediaType(), Digest: sum.Digest(), Size: n + int64(len(tail)), Annotations: annotations,
	}
	return r, nil
}

// Ready reports whether a layer is in the format already, so that it need not be touched.
func Ready(desc ocispec.Descriptor, f Format) bool {
	switch f {
	case Estargz:
		gz := desc.MediaType == ocispec.MediaTypeImageLayerGzip || desc.MediaType == "application/vnd.docker.image.rootfs.diff.tar.gzip"
		return gz && desc.Annotations[annotation.TOCDigest] != ""
	case ZstdChunked:
		_, named, err := zstdchunked.Named(desc.Annotations)
		return desc.MediaType == zstdchunked.MediaType && named && err == nil
	}
	return false
}

// A packer packs the pieces of a layer and makes what stands at its end.
type packer interface {
	lib.Compression
	// finish returns what comes behind the n bytes that were packed, and the annotations of the layer's
	// descriptor. It is called once, at the end.
	finish(n int64) (tail []byte, annotations map[string]string, err error)
	mediaType() string
	// landmark returns where what comes first ends, or 0 if nothing does.
	landmark() int64
}

// landmarkOf finds where what comes first ends.
func landmarkOf(table *lib.JTOC) int64 {
	for _, e := range table.Entries {
		if path.Clean("/"+e.Name) == "/"+lib.PrefetchLandmark {
			return e.Offset
		}
	}
	return 0
}
