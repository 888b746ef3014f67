package registry

import (
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/klauspost/compress/gzip"
)

// We ask for bytes as they are. A proxy that packs what passes it all the same says so in Content-Encoding (RFC 9110, section 8.4). A
// range of its bytes is none of the blob's; a whole answer is unpacked, if it is one of gzip. Other encodings are refused: containerd,
// which asks for some of them, gets the layer then.

// encodings returns what is around the bytes of an answer, the innermost first.
func encodings(resp *http.Response) (all []string) {
	for _, name := range strings.FieldsFunc(strings.Join(resp.Header.Values("Content-Encoding"), ","), func(r rune) bool {
		return r == ' ' || r == '\t' || r == ','
	}) {
		if name = strings.ToLower(name); name != "identity" {
			all = append(all, name)
		}
	}
	return all
}

// unpack has a whole answer's body read without its encoding. The length that the answer gives is no longer of use.
func unpack(resp *http.Response) error {
	around := encodings(resp)
	switch {
	case len(around) == 0 || resp.StatusCode != http.StatusOK:
		return nil
	case len(around) > 1 || around[0] != "gzip":
		return fmt.Errorf("%s answers in the encoding %.80q, which was not asked for", resp.Request.URL.Host, strings.Join(around, ", "))
	}
	resp.Body = &unpacked{packed: resp.Body}
	resp.Header.Del("Content-Encoding")
	resp.ContentLength, resp.Uncompressed = -1, true
	return nil
}

// unpacked is a body without gzip around it. Nothing is read before its reader reads.
type unpacked struct {
	packed io.ReadCloser
	gz     *gzip.Reader
}

func (u *unpacked) Read(p []byte) (n int, err error) {
	if u.gz == nil {
		u.gz, err = gzip.NewReader(u.packed)
	}
	if err == nil {
		n, err = u.gz.Read(p)
	}
	if err != nil && err != io.EOF {
		err = fmt.Errorf("the gzip around an answer: %w", err)
	}
	return n, err
}

func (u *unpacked) Close() error { return u.packed.Close() }
