package s3store

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"

	"github.com/remora-storage/remora/remote/store"
)

// documented takes a server's 404 for an answer of S3 only if it has S3's own error document. Others are of a proxy that has
// no server behind it, say, and mean that the store is not there. What answers HEAD has no document.
type documented struct{ http.RoundTripper }

const mostDocument = 64 << 10 // bytes

// RoundTrip implements http.RoundTripper.
func (d documented) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := d.RoundTripper.RoundTrip(r)
	if err != nil || resp.StatusCode != http.StatusNotFound || r.Method == http.MethodHead {
		return resp, err
	}
	defer resp.Body.Close()
	p, err := io.ReadAll(io.LimitReader(resp.Body, mostDocument))
	if err != nil {
		return nil, err
	}
	var doc struct {
		XMLName xml.Name `xml:"Error"`
		Code    string   `xml:"Code"`
	}
	if xml.Unmarshal(p, &doc) != nil || doc.Code == "" {
		return nil, fmt.Errorf("%s answers 404, and not as S3 does: %w", r.URL.Host, store.ErrAway)
	}
	resp.Body = io.NopCloser(bytes.NewReader(p))
	return resp, nil
}
