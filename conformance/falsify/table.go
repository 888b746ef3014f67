package falsify

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/fs/annotation"
	"github.com/remora-storage/remora/fs/format/zstdchunked"
)

// Table returns a layer of eStargz or zstd:chunked with another table of contents, which its descriptor vouches for. Its data are the same.
func Table(blob []byte, desc ocispec.Descriptor, edit func(table []byte) ([]byte, error)) ([]byte, ocispec.Descriptor, error) {
	desc.Annotations = maps.Clone(desc.Annotations)
	at, chunked, err := zstdchunked.Named(desc.Annotations)
	switch {
	case err != nil:
	case chunked:
		blob, err = chunkedTable(blob, at, desc.Annotations, edit)
	default:
		blob, err = estargzTable(blob, desc.Annotations, edit)
	}
	if err != nil {
		return nil, desc, fmt.Errorf("falsify a table: %w", err)
	}
	desc.Digest, desc.Size = digest.FromBytes(blob), int64(len(blob))
	return blob, desc, nil
}

// chunkedTable writes another table into the frame behind the data, which decoders skip.
func chunkedTable(blob []byte, at zstdchunked.Table, annotations map[string]string, edit func([]byte) ([]byte, error)) ([]byte, error) {
	dec, err := zstd.NewReader(nil)
	if err != nil {
		return nil, err
	}
	defer dec.Close()
	plain, err := dec.DecodeAll(blob[at.Off:at.Off+at.Packed], nil)
	if err == nil {
		plain, err = edit(plain)
	}
	if err != nil {
		return nil, err
	}
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		return nil, err
	}
	defer enc.Close()
	packed := enc.EncodeAll(plain, nil)
	const magic, size = 4, 4 // of the frame's header
	frame := at.Off - magic - size
	out := append(bytes.Clone(blob[:frame+magic]), binary.LittleEndian.AppendUint32(nil, uint32(len(packed)))...)
	out = append(out, packed...)
	for _, prefix := range []string{zstdchunked.FirstPrefix, zstdchunked.SecondPrefix} {
		if annotations[prefix+zstdchunked.Checksum] != "" {
			annotations[prefix+zstdchunked.Checksum] = digest.FromBytes(packed).String()
			annotations[prefix+zstdchunked.Position] = fmt.Sprintf("%d:%d:%d:1", at.Off, len(packed), len(plain))
		}
	}
	if annotations[annotation.TOCDigest] != "" {
		annotations[annotation.TOCDigest] = digest.FromBytes(plain).String()
	}
	return out, nil
}

// estargzTable writes another table into the archive's last member. So the diffID is another one, too.
func estargzTable(blob []byte, annotations map[string]string, edit func([]byte) ([]byte, error)) ([]byte, error) {
	const footer, offsetAt, digits = 51, 16, 16
	if len(blob) < footer {
		return nil, errors.New("no footer")
	}
	tail := blob[len(blob)-footer:]
	at, err := strconv.ParseInt(string(tail[offsetAt:offsetAt+digits]), 16, 64)
	if err != nil || at > int64(len(blob)) {
		return nil, fmt.Errorf("no footer: %w", err)
	}
	z, err := gzip.NewReader(bytes.NewReader(blob[at:]))
	if err != nil {
		return nil, err
	}
	r := tar.NewReader(z)
	head, err := r.Next()
	if err != nil {
		return nil, err
	}
	plain, err := io.ReadAll(r)
	if err == nil {
		plain, err = edit(plain)
	}
	if err != nil {
		return nil, err
	}
	out := bytes.NewBuffer(bytes.Clone(blob[:at]))
	packed := gzip.NewWriter(out)
	w := tar.NewWriter(packed)
	head.Size = int64(len(plain))
	err = w.WriteHeader(head)
	if err == nil {
		_, err = w.Write(plain)
	}
	if err := errors.Join(err, w.Close(), packed.Close()); err != nil {
		return nil, err
	}
	annotations[annotation.TOCDigest] = digest.FromBytes(plain).String()
	return append(out.Bytes(), tail...), nil
}

// Marked is a table of a directory with attributes, and of marks that it hides what is below it.
func Marked(attributes, marks int) string {
	var b strings.Builder
	b.WriteString(`{"version":1,"entries":[{"name":"d/","type":"dir","mode":493,"xattrs":{"0000":""`)
	for i := 1; i < attributes; i++ {
		fmt.Fprintf(&b, `,"%04x":""`, i)
	}
	b.WriteString(`}}` + strings.Repeat(`,{"name":"d/.wh..wh..opq","type":"reg"}`, marks))
	return b.String() + `]}`
}

// Swap returns an edit that gives two files of a table each other's fields: each chunk of the one and the chunk of the other at its place.
func Swap(one, other string, fields ...string) func([]byte) ([]byte, error) {
	return func(table []byte) ([]byte, error) {
		chunks, all, err := chunksOf(table)
		if err != nil {
			return nil, err
		}
		a, b := chunks[one], chunks[other]
		if len(a) == 0 || len(b) == 0 {
			return nil, fmt.Errorf("the table does not have files %s and %s", one, other)
		}
		for _, f := range fields {
			if a[0][f] == nil || b[0][f] == nil {
				return nil, fmt.Errorf("files %s and %s have no %s", one, other, f)
			}
			if f == "name" {
				for _, of := range []struct {
					chunks []map[string]any
					name   string
				}{{a, other}, {b, one}} {
					for _, c := range of.chunks {
						c[f] = of.name
					}
				}
				continue
			}
			for i := range min(len(a), len(b)) {
				a[i][f], b[i][f] = b[i][f], a[i][f]
			}
		}
		return json.Marshal(all)
	}
}

// Replace returns an edit that gives each chunk of a file other fields.
func Replace(name string, fields map[string]any) func([]byte) ([]byte, error) {
	return func(table []byte) ([]byte, error) {
		chunks, all, err := chunksOf(table)
		if err != nil {
			return nil, err
		}
		if len(chunks[name]) == 0 {
			return nil, fmt.Errorf("the table does not have file %s", name)
		}
		for _, c := range chunks[name] {
			maps.Copy(c, fields)
		}
		return json.Marshal(all)
	}
}

// chunksOf returns a table's entries of regular files by their names, and the table of which they are a part.
func chunksOf(table []byte) (chunks map[string][]map[string]any, all map[string]any, err error) {
	d := json.NewDecoder(bytes.NewReader(table))
	d.UseNumber()
	if err := d.Decode(&all); err != nil {
		return nil, nil, err
	}
	entries, _ := all["entries"].([]any)
	chunks = map[string][]map[string]any{}
	for _, e := range entries {
		if e, ok := e.(map[string]any); ok && (e["type"] == "reg" || e["type"] == "chunk") {
			name := fmt.Sprint(e["name"])
			chunks[name] = append(chunks[name], e)
		}
	}
	return chunks, all, nil
}

// Plain returns a layer's plain bytes.
func Plain(blob []byte) ([]byte, error) {
	if bytes.HasPrefix(blob, []byte{0x1f, 0x8b}) {
		z, err := gzip.NewReader(bytes.NewReader(blob))
		if err != nil {
			return nil, err
		}
		return io.ReadAll(z)
	}
	dec, err := zstd.NewReader(nil)
	if err != nil {
		return nil, err
	}
	defer dec.Close()
	return dec.DecodeAll(blob, nil)
}

// DiffID returns the digest of a layer's plain bytes.
func DiffID(blob []byte) (digest.Digest, error) {
	plain, err := Plain(blob)
	return digest.FromBytes(plain), err
}
