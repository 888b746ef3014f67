package layers

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/remote/registry"
)

// TestIsGone: only who says that he has not the layer says that it is gone, whoever else says what.
func TestIsGone(t *testing.T) {
	missing := error(&registry.StatusError{Status: http.StatusNotFound})
	status := func(code int) error { return &registry.StatusError{Status: code} }
	for name, c := range map[string]struct {
		err  error
		want bool
	}{
		"missing": {missing, true}, "other bytes": {errWrongBlob, false}, "both": {errors.Join(missing, errWrongBlob), false},
		"nothing": {nil, false}, "no access": {status(http.StatusForbidden), false}, "an outage": {status(http.StatusBadGateway), false},
		"missing, no access elsewhere": {errors.Join(missing, status(http.StatusUnauthorized)), false},
		"missing, an outage elsewhere": {errors.Join(status(http.StatusServiceUnavailable), missing), false},
		"an outage, missing elsewhere": {errors.Join(missing, status(http.StatusServiceUnavailable)), false},
		"other bytes, so not lazy":     {fmt.Errorf("layer: %w", NotLazy("%w", errWrongBlob)), false},
		"not lazy for another reason":  {NotLazy("it is a bomb"), false},
		"missing, whole elsewhere":     {errors.Join(missing, registry.ErrRange), false},
	} {
		if got := IsGone(c.err); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// TestNotPublicIsNotGone: a layer that lies at an address which its image may not name is declined, and is not gone: what is there is
// not known, and a name may lead elsewhere tomorrow.
func TestNotPublicIsNotGone(t *testing.T) {
	s := httptest.NewServer(http.NotFoundHandler())
	defer s.Close()
	at := s.Listener.Addr().String()
	logins, err := registry.OpenLogins(filepath.Join(t.TempDir(), "logins.json"), slog.New(slog.DiscardHandler))
	if err == nil {
		_, err = logins.Set(at, registry.Login{PlainHTTP: true})
	}
	if err != nil {
		t.Fatal(err)
	}
	reg := Remote{registry.New(registry.Options{Logins: logins, Retry: registry.Retry{Attempts: 1}})}
	open := func(place string) error {
		_, err := reg.Blob(registry.Repository{Host: at, Path: "a"}, ocispec.Descriptor{
			MediaType: "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
			Digest:    digest.FromString("x"), Size: 1, URLs: []string{place},
		}).Open(t.Context(), 0, 1, 0)
		return err
	}
	if err := open("ftp://nowhere.test/"); !IsGone(err) {
		t.Errorf("nobody has it: %v", err)
	}
	if err := open("http://10.0.0.1/layer"); IsGone(err) || !errors.Is(err, registry.ErrNotPublic) || !errors.Is(refusal(err), ErrNotLazy) {
		t.Errorf("at an address that is not public: %v", err)
	}
}
