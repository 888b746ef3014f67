package zstdchunked

import (
	"fmt"

	"github.com/opencontainers/go-digest"
)

// A Tail is what stands behind a layer's data: the table of contents, in the second generation the
// record of the tar's headers, and the footer, each in a skippable frame.
type Tail struct {
	dataEnd int64
	p       []byte
	table   Table
	split   *[3]int64 // offset, packed and plain bytes of the record
}

// NewTail returns the tail of a layer with so many bytes of data.
func NewTail(dataEnd int64) *Tail { return &Tail{dataEnd: dataEnd} }

func (t *Tail) frame(payload []byte) (off int64) {
	t.p = le.AppendUint32(t.p, skippable)
	t.p = le.AppendUint32(t.p, uint32(len(payload)))
	off = t.dataEnd + int64(len(t.p))
	t.p = append(t.p, payload...)
	return off
}

// Add adds the packed table of contents. It comes first.
func (t *Tail) Add(packed []byte, plain int64) {
	t.table = Table{Digest: digest.FromBytes(packed), Off: t.frame(packed), Packed: int64(len(packed)), Plain: plain}
}

// AddTarSplit adds the packed record of the tar's headers, which makes the layer one of the second
// generation.
func (t *Tail) AddTarSplit(packed []byte, plain int64) {
	t.split = &[3]int64{t.frame(packed), int64(len(packed)), plain}
}

// Finish returns the tail's bytes and the annotations that name what is in it.
func (t *Tail) Finish() (tail []byte, annotations map[string]string) {
	prefix := FirstPrefix
	annotations = map[string]string{}
	if t.split != nil {
		prefix = SecondPrefix
		annotations[prefix+TarSplit] = fmt.Sprintf("%d:%d:%d", t.split[0], t.split[1], t.split[2])
	}
	annotations[prefix+Checksum] = t.table.Digest.String()
	annotations[prefix+Position] = fmt.Sprintf("%d:%d:%d:%d", t.table.Off, t.table.Packed, t.table.Plain, tableType)
	return appendFooter(t.p, t.table, t.split), annotations
}
