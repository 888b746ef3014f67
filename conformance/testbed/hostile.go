package testbed

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// RandomFile writes a file whose bytes its name fixes.
func RandomFile(name string, size int64) func(*tar.Writer) error {
	return func(tw *tar.Writer) error {
		if err := tw.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: size}); err != nil {
			return err
		}
		var key [32]byte
		copy(key[:], name)
		_, err := io.CopyN(tw, rand.NewChaCha8(key), size)
		return err
	}
}

// SmallBlob is a layer of one small file, another one for each k.
func SmallBlob(k int) Blob { return gzipBlob(RandomFile(fmt.Sprint("small", k), 64<<10)) }

// hostileKinds are small layers that take much, or break what reads them, by each front end; another one for each k.
var hostileKinds = []func(k int) Blob{
	func(k int) Blob { return gzipBlob(linkBomb(k)) },
	func(k int) Blob { return gzipBlob(zeros(k)) },
	func(k int) Blob { return cut(SmallBlob(k)) },
	func(k int) Blob { return garbage(k, ocispec.MediaTypeImageLayerGzip) },
	func(k int) Blob { return zstdBlob(linkBomb(k)) },
	func(k int) Blob { return zstdBlob(zeros(k)) },
	func(k int) Blob { return cut(zstdBlob(RandomFile(fmt.Sprint("small", k), 64<<10))) },
	func(k int) Blob { return garbage(k, ocispec.MediaTypeImageLayerZstd) },
	func(k int) Blob { return stargzBlob(k, linkTable(k)) },
	func(k int) Blob { return stargzBlob(k, unitTable(k)) },
	func(k int) Blob { return chunkedBlob(k, linkTable(k)) },
	func(k int) Blob { return chunkedBlob(k, unitTable(k)) },
}

// HostileBlob is a hostile layer, of one kind after the other.
func HostileBlob(k int) Blob { return hostileKinds[k%len(hostileKinds)](k) }

func garbage(k int, mediaType string) Blob {
	no := fmt.Appendf(nil, "no layer at all %d", k)
	return Blob{MediaType: mediaType, Data: no, DiffID: digest.FromBytes(no)}
}

// cut ends a blob in its middle.
func cut(b Blob) Blob {
	b.Data = b.Data[:len(b.Data)/2]
	return b
}

// zeros are a thousand times what they pack to.
func zeros(k int) func(*tar.Writer) error {
	return func(tw *tar.Writer) error {
		err := tw.WriteHeader(&tar.Header{Name: fmt.Sprint("zeros", k), Typeflag: tar.TypeReg, Mode: 0o644, Size: 32 << 20})
		if err != nil {
			return err
		}
		_, err = tw.Write(make([]byte, 32<<20))
		return err
	}
}

// longPath leads through as many directories as a path can name.
var longPath = strings.TrimSuffix(strings.Repeat("a/", 2047), "/")

// linkBomb asks for hundreds of thousands of directories that nobody lists, by links through a long path.
func linkBomb(k int) func(*tar.Writer) error {
	list := []tar.Header{{Name: "s", Typeflag: tar.TypeSymlink, Linkname: longPath}, {Name: fmt.Sprint("own", k), Typeflag: tar.TypeReg}}
	for i := range 100 {
		list = append(list, tar.Header{Name: fmt.Sprintf("%d/s", i), Typeflag: tar.TypeLink, Linkname: "s"},
			tar.Header{Name: fmt.Sprintf("%d/s/f", i), Typeflag: tar.TypeReg})
	}
	return func(tw *tar.Writer) error {
		for _, h := range list {
			h.Format = tar.FormatPAX
			if err := tw.WriteHeader(&h); err != nil {
				return err
			}
		}
		return nil
	}
}

// linkTable is a linkBomb as a table of contents.
func linkTable(k int) string {
	var b strings.Builder
	fmt.Fprintf(&b, `{"version":1,"entries":[{"name":"s","type":"symlink","linkName":%q},{"name":"own%d","type":"reg"}`, longPath, k)
	for i := range 100 {
		fmt.Fprintf(&b, `,{"name":"%d/s","type":"hardlink","linkName":"s"},{"name":"%d/s/f","type":"reg"}`, i, i)
	}
	return b.String() + `]}`
}

// unitTable has a reader of any byte decode gigabytes.
func unitTable(k int) string {
	var b strings.Builder
	fmt.Fprintf(&b, `{"version":1,"entries":[{"name":"own%d","type":"dir"}`, k)
	for i := range 1000 {
		fmt.Fprintf(&b, `,{"name":"%d","type":"reg","size":67108864,"offset":0,"digest":%q}`, i, digest.FromString("x"))
	}
	return b.String() + `]}`
}

// must is for what fails only where memory does.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func tarOf(write func(*tar.Writer) error) []byte {
	var plain bytes.Buffer
	tw := tar.NewWriter(&plain)
	must(0, errors.Join(write(tw), tw.Close()))
	return plain.Bytes()
}

func gzipped(p []byte) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, err := w.Write(p)
	must(0, errors.Join(err, w.Close()))
	return b.Bytes()
}

func zstdPacked(p []byte) []byte { return must(zstd.NewWriter(nil)).EncodeAll(p, nil) }

func gzipBlob(write func(*tar.Writer) error) Blob {
	plain := tarOf(write)
	return Blob{MediaType: ocispec.MediaTypeImageLayerGzip, Data: gzipped(plain), DiffID: digest.FromBytes(plain)}
}

func zstdBlob(write func(*tar.Writer) error) Blob {
	plain := tarOf(write)
	return Blob{MediaType: ocispec.MediaTypeImageLayerZstd, Data: zstdPacked(plain), DiffID: digest.FromBytes(plain)}
}

// stargzBlob is an eStargz layer of a small file and of a table that says something else.
func stargzBlob(k int, table string) Blob {
	b := SmallBlob(k)
	at := len(b.Data)
	b.Data = append(b.Data, gzipped(tarOf(func(tw *tar.Writer) error {
		err := tw.WriteHeader(&tar.Header{Name: estargz.TOCTarName, Typeflag: tar.TypeReg, Size: int64(len(table))})
		_, werr := io.WriteString(tw, table)
		return errors.Join(err, werr)
	}))...)
	sub := fmt.Sprintf("%016xSTARGZ", at)
	b.Data = append(b.Data, estargz.CreateGzipFooter(append([]byte{'S', 'G', byte(len(sub)), 0}, sub...))...)
	b.Annotations = map[string]string{estargz.TOCJSONDigestAnnotation: digest.FromString(table).String()}
	return b
}

// chunkedBlob is a zstd:chunked layer of a small file and of a table that says something else.
func chunkedBlob(k int, table string) Blob {
	const skippable, header = 0x184d2a50, 8
	le := binary.LittleEndian
	b := zstdBlob(RandomFile(fmt.Sprint("small", k), 64<<10))
	packed := zstdPacked([]byte(table))
	at := len(b.Data) + header
	footer := le.AppendUint64(le.AppendUint64(nil, uint64(at)), uint64(len(packed)))
	footer = append(le.AppendUint64(le.AppendUint64(footer, uint64(len(table))), 1), "GnUlInUx"...)
	for _, frame := range [][]byte{packed, footer} {
		b.Data = le.AppendUint32(le.AppendUint32(b.Data, skippable), uint32(len(frame)))
		b.Data = append(b.Data, frame...)
	}
	const prefix = "io.github.containers.zstd-chunked."
	b.Annotations = map[string]string{
		prefix + "manifest-checksum": digest.FromBytes(packed).String(),
		prefix + "manifest-position": fmt.Sprintf("%d:%d:%d:1", at, len(packed), len(table)),
	}
	return b
}
